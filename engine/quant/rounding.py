"""float64 to a tensor's dtype, rounded once to the nearest value, ties to even, the same on every processor.

Casts to float16 and bfloat16 go by way of float32 in some libraries and processors, which rounds twice: a number just
above the middle between two bfloat16 values first becomes the middle, then the wrong neighbour. Here the way over
float32 keeps a sticky last bit (rounding to odd, Boldo and Melquiond 2008), after which the second rounding is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.dtypes import dtype_of


def rounded(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """The nearest values of a float dtype; infinite (NaN where it has no infinity) where a number is too large."""
    if dtype == "float64":
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32) if dtype == "float32" else to_odd(values).astype(dtype_of(dtype))


def to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 next to each number towards zero, with its last bit set where that is not the number itself."""
    near = values.astype(np.float32)
    exact = near.astype(np.float64)
    bits = near.view(np.uint32)
    away = np.abs(exact) > np.abs(values)
    odd = (bits - away.astype(np.uint32)) | np.uint32(1)
    return np.where(exact == values, bits, odd).astype(np.uint32).view(np.float32)
