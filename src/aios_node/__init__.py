"""AIOS Node: a federated network of AI nodes over Apache Arrow Flight.

The rooms of the project stand at the top of the repository (``engine/``, ``delta/``, ``memory/``,
``flight/``, ``node/``) and are imported as ``aios_node.engine`` and so on.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Client", "__version__"]

# In a checkout the rooms are links into the repository's root. Searching the root first makes
# tracebacks and breakpoints name ``node/service.py`` instead of a path through the link.
_ROOT = Path(__file__).resolve().parent.parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "cluster-configs").is_dir():
    __path__.insert(0, str(_ROOT))

if TYPE_CHECKING:
    from aios_node.flight.client import Client

_LAZY = {"Client": "aios_node.flight.client"}


def __getattr__(name: str) -> Any:
    """Import the few public names only when they are asked for: start-up stays instant."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
