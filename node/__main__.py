"""``python -m aios_node.node``: the same as ``aios-node``."""

from __future__ import annotations

from aios_node.node.cli import main

if __name__ == "__main__":
    main()
