"""Memory tables: rows, search, lifecycle. Knows tables, not models: its embedder is a Protocol."""

from __future__ import annotations

if __name__ == "memory":
    raise ImportError("import this package as aios_node.memory, not as memory")
