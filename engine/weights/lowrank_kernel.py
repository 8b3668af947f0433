"""The compiled sum behind lowrank. Importing this module imports numba."""

from __future__ import annotations

from typing import Any

from aios_node.engine.jit import bare_kernel


@bare_kernel
def add_products(sums: Any, start: Any, up: Any, down: Any) -> None:
    """Add ``up @ down`` to sums, float64 [n]: elements from ``start`` on of a matrix in C order.

    ``up``: float64 [out, rank]; ``down``: float64 [rank, in]. Products are added one after the other, by rank.
    """
    columns = down.shape[1]
    for index in range(sums.size):
        row, column = (start + index) // columns, (start + index) % columns
        for rank in range(down.shape[0]):
            sums[index] += up[row, rank] * down[rank, column]
