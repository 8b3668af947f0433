"""Deltas between versions of weights, their lineage and the exchange protocol. No sockets, threads, clocks or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ == "delta":
    raise ImportError("import this package as aios_node.delta, not as delta")

if TYPE_CHECKING:
    from aios_node.delta.codec.diff import apply, apply_from, encode, encode_to

__all__ = ["apply", "apply_from", "encode", "encode_to"]


def __getattr__(name: str) -> Any:
    """Load the codec only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aios_node.delta.codec import diff

    return getattr(diff, name)
