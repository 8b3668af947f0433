"""The command line. ``main`` is the console script ``aios-node``."""

from __future__ import annotations

from aios_node.node.cli.app import main

__all__ = ["main"]
