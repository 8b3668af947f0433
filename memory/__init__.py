"""Memory tables: rows, search, lifecycle. Knows tables, not models: its embedder is a Protocol."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ == "memory":
    raise ImportError("import this package as aios_node.memory, not as memory")

if TYPE_CHECKING:
    from aios_node.memory.embed import Embedder
    from aios_node.memory.federate import Merged, merge_hits
    from aios_node.memory.retrieve import HITS
    from aios_node.memory.schema import Limits, TableStats
    from aios_node.memory.store import ArrowStorage, MemoryStore

__all__ = [
    "HITS",
    "ArrowStorage",
    "Embedder",
    "Limits",
    "MemoryStore",
    "Merged",
    "TableStats",
    "merge_hits",
]

_LAZY = {
    "ArrowStorage": "store",
    "Embedder": "embed",
    "HITS": "retrieve",
    "Limits": "schema",
    "MemoryStore": "store",
    "Merged": "federate",
    "TableStats": "schema",
    "merge_hits": "federate",
}


def __getattr__(name: str) -> Any:
    """Import public names only when they are asked for: the package itself costs nothing."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
