"""Arrow Flight: turns calls into method calls on the Protocols of ports.py. Holds no policy."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if __name__ == "flight":
    raise ImportError("import this package as aios_node.flight, not as flight")

# gRPC prints C++ log lines to stderr; it reads this once, when pyarrow.flight is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if TYPE_CHECKING:
    from aios_node.flight.client import Client
    from aios_node.flight.limits import Limits
    from aios_node.flight.listener import FlightListener, Tls
    from aios_node.flight.peer_link import PeerLink
    from aios_node.flight.ports import Ports
    from aios_node.flight.tickets import TicketSigner

__all__ = ["Client", "FlightListener", "Limits", "PeerLink", "Ports", "TicketSigner", "Tls"]

_LAZY = {
    "Client": "client",
    "FlightListener": "listener",
    "Limits": "limits",
    "PeerLink": "peer_link",
    "Ports": "ports",
    "TicketSigner": "tickets",
    "Tls": "listener",
}


def __getattr__(name: str) -> Any:
    """Import public names only when they are asked for: pyarrow.flight takes a while to load."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
