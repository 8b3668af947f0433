"""Numbers per group as numbers per value, for some columns of a weight at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor

Floats = NDArray[np.float32]


def per_column(table: Floats, tensor: QuantizedTensor, columns: NDArray[np.int64]) -> Floats:
    """A table [channels, groups] of a matrix [out, in] as one number per value: [columns, out], contiguous."""
    outs, ins = tensor.shape
    rows = np.arange(outs)
    size = tensor.grouping.size or max(1, tensor.grouping.rest)
    if tensor.axis == 0:
        spread = table[:, columns // size].T
    elif tensor.axis == 1:
        spread = table[columns][:, rows // size]
    else:
        spread = table[0, (rows * ins + columns[:, None]) // size]
    return np.ascontiguousarray(spread)
