"""Networks in torch, built from mappings of tensors. They know shapes, not files, versions or nodes."""

from __future__ import annotations

from aios_node.engine.devices import wait_quietly

# Every module of this package, and whatever uses one, imports torch after this line.
wait_quietly()
