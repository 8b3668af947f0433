"""Tensors, quantisation, networks and training. Knows nothing about the network or about nodes."""

from __future__ import annotations

if __name__ == "engine":
    raise ImportError("import this package as aios_node.engine, not as engine")
