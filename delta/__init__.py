"""Deltas between versions of weights, their lineage and the exchange protocol. No sockets, threads, clocks or torch."""

from __future__ import annotations

if __name__ == "delta":
    raise ImportError("import this package as aios_node.delta, not as delta")
