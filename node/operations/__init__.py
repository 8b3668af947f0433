"""Everything a node can be asked to do. Importing this package registers all operations."""

from __future__ import annotations

from aios_node.node.operations import general, memory, merging, models, network, sums, training, validation
from aios_node.node.operations.registry import OPERATIONS, Operation, find_operation, run_operation

__all__ = ["OPERATIONS", "Operation", "find_operation", "run_operation"]

_REGISTERED = (general, memory, merging, models, network, sums, training, validation)
