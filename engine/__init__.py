"""Tensors, quantisation, networks and training. Knows nothing about the network or about nodes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ == "engine":
    raise ImportError("import this package as aios_node.engine, not as engine")

__all__ = ["ArrowEngine"]

if TYPE_CHECKING:
    from aios_node.engine.runtime.engine import ArrowEngine

_LAZY = {"ArrowEngine": "aios_node.engine.runtime.engine"}


def __getattr__(name: str) -> Any:
    """Import torch only when somebody asks for something that needs it."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
