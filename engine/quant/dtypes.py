"""The dtypes a tensor may have, by the names that files, manifests and deltas use.

The names are NumPy's; bfloat16 and the float8 kinds come from ``ml_dtypes``. Nothing else is accepted,
so that a name out of a file never reaches ``numpy.dtype`` (which would build objects and records).
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, TooLarge

MAX_DIMENSIONS = 32
"""NumPy 1 and most other readers go no further; no known model has more than 6."""

MAX_TENSOR_BYTES = 2**40
"""A shape that claims more than this is a lie or a mistake; it is refused before any product overflows."""

_FLOATS = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_OTHERS = {
    name: np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
DTYPES: dict[str, np.dtype[Any]] = {**_FLOATS, **_OTHERS}
"""Name -> NumPy dtype (native order, which is little endian on every platform this runs on)."""


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of this name. Raises BadWeights for names that are not in the table."""
    try:
        return DTYPES[name]
    except (KeyError, TypeError):
        raise BadWeights(f"dtype {name!r:.60} is not supported; supported are: {', '.join(DTYPES)}") from None


def is_float(name: str) -> bool:
    """Whether this dtype name is a floating point kind."""
    return name in _FLOATS


def mantissa_bits(name: str) -> int:
    """Bits of the mantissa of a dtype, 0 for what is no floating point kind."""
    return int(ml_dtypes.finfo(_FLOATS[name]).nmant) if name in _FLOATS else 0  # type: ignore[no-untyped-call]  # its own


def shown(shape: tuple[int, ...]) -> str:
    """A shape for a message, however long it claims to be."""
    return str(shape)[:120]


def count_of(shape: tuple[int, ...], itemsize: int = 1) -> int:
    """Number of values in a tensor of this shape.

    Raises BadWeights for negative or too many dimensions, TooLarge when the values, ``itemsize`` bytes
    each, would need more than MAX_TENSOR_BYTES. Python integers: nothing can wrap around.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise BadWeights(f"a shape of {len(shape)} dimensions is not supported; at most {MAX_DIMENSIONS}")
    if any(side < 0 for side in shape):
        raise BadWeights(f"shape {shown(shape)} has a negative side")
    # A zero side does not excuse the others: [2**60, 0] would overflow strides elsewhere.
    if math.prod(max(side, 1) for side in shape) * itemsize > MAX_TENSOR_BYTES:
        raise TooLarge(f"a tensor of shape {shown(shape)} would need more than {MAX_TENSOR_BYTES} bytes")
    return math.prod(shape)


def raw_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array in C order as uint8 [nbytes]; a view where the array is contiguous."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(native).reshape(-1).view(np.uint8)


def from_bytes(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that these bytes mean, as a view. Raises BadWeights when length or content cannot be."""
    kind = dtype_of(dtype)
    if count_of(shape, kind.itemsize) * kind.itemsize != data.nbytes:
        raise BadWeights(f"{data.nbytes} bytes cannot be a {dtype} tensor of shape {shape}")
    if kind == np.bool_ and data.size and int(data.max()) > 1:
        raise BadWeights("a bool tensor holds bytes other than 0 and 1")
    return data.view(kind).reshape(shape)
