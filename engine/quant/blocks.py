"""How quantised tensors are laid out: packed codes, scales and zero points, and back to floats.

``w = scale * (code - zero_point)`` in float32, one scale and zero point per group. Knows nothing about
how codes are chosen (see ptq) or stored (see weights).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, Corrupt
from aios_node.engine.quant.dtypes import count_of, dtype_of, is_float
from aios_node.engine.quant.packing import check_packed, pack, packed_size, unpack
from aios_node.engine.quant.scales import DOUBLE4_TYPES, CompactScales

__all__ = [
    "BITS",
    "CompactScales",
    "Grouping",
    "QuantType",
    "QuantizedTensor",
    "Tensor",
    "by_channel",
    "dense",
    "dtype_name",
    "from_channels",
    "highest_code",
    "pack",
    "packed_size",
    "unpack",
]

QuantType: TypeAlias = Literal["int8", "int4", "int2"]
BITS: dict[str, int] = {"int8": 8, "int4": 4, "int2": 2}
_HIGHEST = {"int8": 127, "int4": 15, "int2": 3}

_ROWS_AT_ONCE = 2**18
"""Values that are dequantised together: about 1 MiB of float32, so that the passes stay in cache."""


def highest_code(quant_type: str) -> int:
    """The highest code there is. Raises BadWeights for a quantisation that does not exist."""
    if quant_type not in _HIGHEST:
        raise BadWeights(f"quantisation {quant_type!r:.40} is not one of {', '.join(BITS)}")
    return _HIGHEST[quant_type]


@dataclass(frozen=True)
class Grouping:
    """How a tensor is cut into groups that share a scale: [channels, rest] values, runs along the rest."""

    channels: int
    rest: int
    size: int  # values per group; the last group of a channel may be shorter

    @property
    def groups(self) -> int:
        """Groups per channel; at least one, even in an empty channel."""
        return max(1, -(-self.rest // self.size)) if self.size else 1

    @property
    def tail(self) -> int:
        """Values in the shorter last group of each channel; 0 where all groups are full."""
        return self.rest % self.size if self.size else 0

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int, group_size: int) -> Grouping:
        """The grouping of a tensor; raises BadWeights when axis or group size do not fit its shape."""
        if not -1 <= axis < len(shape):
            raise BadWeights(f"quantisation axis {axis} does not exist in shape {shape}; -1 is the whole tensor")
        if group_size < 0:
            raise BadWeights(f"group size {group_size} is negative; 0 is one group per channel")
        count = count_of(shape)
        if axis == -1:
            return cls(1, count, group_size)
        others = (side for place, side in enumerate(shape) if place != axis)
        return cls(shape[axis], math.prod(others), group_size)


def by_channel(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """A tensor as [channels, rest]: channel axis first, the rest flattened (a view where that is possible)."""
    if axis == -1:
        return values.reshape(1, -1)
    front = np.moveaxis(values, axis, 0)
    return front.reshape(front.shape[0], math.prod(front.shape[1:]))


def from_channels(matrix: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    """The inverse of by_channel: [channels, rest] back to ``shape``, contiguous."""
    if axis <= 0:
        return matrix.reshape(shape)
    front = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(front), 0, axis))


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes with their scales: what a tensor is after quantisation.

    ``codes``: uint8 [bytes], packed in C order of the tensor (int8: two's complement; int4 and int2:
    unsigned, low bits first, last byte padded with zero bits). ``scales``, ``zero_points``: float32
    [channels, groups]; ``axis`` -1 is one channel, the flattened tensor; ``group_size`` 0 is one group per
    channel, else groups are runs along the flattened rest of a channel, the last one possibly shorter.
    ``dtype`` names the dequantised tensor. ``compact`` is what is stored instead of scales and zero points where
    these are quantised in their turn (see scales); they are then exactly what it says. Raises Corrupt or
    BadWeights when the parts contradict each other.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.float32]
    shape: tuple[int, ...]
    dtype: str
    quant_type: QuantType
    axis: int
    group_size: int
    compact: CompactScales | None = None

    def __post_init__(self) -> None:
        highest_code(self.quant_type)
        if not is_float(self.dtype):
            raise BadWeights(f"a quantised tensor cannot be of dtype {self.dtype!r:.40}; it must be a float")
        check_packed(self.codes, self.count, self.bits)
        _check_scales(self)
        if self.compact is not None:
            _check_compact(self, self.compact)

    @classmethod
    def compacted(
        cls,
        codes: NDArray[np.uint8],
        compact: CompactScales,
        shape: tuple[int, ...],
        dtype: str,
        quant_type: QuantType,
        axis: int,
        group_size: int,
    ) -> QuantizedTensor:
        """A tensor whose scales and zero points are what ``compact`` says. Raises as the constructor does."""
        scales, zero_points = compact.scales(), compact.zero_points(highest_code(quant_type))
        return cls(codes, scales, zero_points, shape, dtype, quant_type, axis, group_size, compact)

    @property
    def bits(self) -> int:
        """Bits per code."""
        return BITS[self.quant_type]

    @property
    def count(self) -> int:
        """Number of values."""
        return count_of(self.shape)

    @property
    def size(self) -> int:
        """Number of values, under the name NumPy gives it."""
        return self.count

    @property
    def grouping(self) -> Grouping:
        """How the values are cut into groups."""
        return Grouping.of(self.shape, self.axis, self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together, as they are stored."""
        if self.compact is not None:
            return self.codes.nbytes + self.compact.nbytes
        return self.codes.nbytes + self.scales.nbytes + self.zero_points.nbytes

    def unpack(self) -> NDArray[Any]:
        """Codes in the tensor's shape: int8 for int8, uint8 for the others."""
        return unpack(self.codes, self.bits, self.count).reshape(self.shape)

    def dequantize(self) -> NDArray[Any]:
        """The tensor in ``shape`` and ``dtype``: ``scale * (code - zero_point)`` in float32, then cast."""
        grouping = self.grouping
        codes = by_channel(self.unpack(), self.axis)
        kind = dtype_of(self.dtype)
        out = np.empty((grouping.channels, grouping.rest), kind)
        step = max(1, _ROWS_AT_ONCE // max(1, grouping.rest))
        for start in range(0, grouping.channels, step):
            rows = slice(start, start + step)
            _dequantize_rows(codes[rows], self.scales[rows], self.zero_points[rows], grouping, out[rows])
        return from_channels(out, self.shape, self.axis)


Tensor: TypeAlias = NDArray[Any] | QuantizedTensor
"""What a weights mapping holds: plain arrays and quantised tensors."""


def dtype_name(tensor: Tensor) -> str:
    """The name of a tensor's dtype; of a quantised one, what it has when dequantised."""
    return tensor.dtype if isinstance(tensor, QuantizedTensor) else tensor.dtype.name


def dense(tensor: Tensor) -> NDArray[Any]:
    """The tensor as a plain array: itself, or dequantised."""
    return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor


def _dequantize_rows(
    codes: NDArray[Any],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    grouping: Grouping,
    out: NDArray[Any],
) -> None:
    """Some channels: codes [c, rest], scales and zero points [c, groups] -> out [c, rest]."""
    values = codes.astype(np.float32)
    full = grouping.rest - grouping.tail
    whole = grouping.groups - (1 if grouping.tail else 0)
    if full:
        main = values[:, :full].reshape(len(values), whole, full // whole)
        main -= zero_points[:, :whole, None]
        main *= scales[:, :whole, None]
        out[:, :full] = main.reshape(len(values), full)
    if grouping.tail:
        out[:, full:] = (values[:, full:] - zero_points[:, whole:]) * scales[:, whole:]


def _check_scales(tensor: QuantizedTensor) -> None:
    grouping = tensor.grouping
    expected = (grouping.channels, grouping.groups)
    for name, part in (("scales", tensor.scales), ("zero points", tensor.zero_points)):
        if part.dtype != np.float32:
            raise BadWeights(f"{name} must be float32, not {part.dtype}")
        if part.shape != expected:
            raise Corrupt(f"{name} have shape {part.shape}; shape {tensor.shape} needs {expected}")


def _check_compact(tensor: QuantizedTensor, compact: CompactScales) -> None:
    if tensor.quant_type not in DOUBLE4_TYPES:
        raise BadWeights(f"{tensor.quant_type} has no scales of 4 bits; {' and '.join(DOUBLE4_TYPES)} have")
    if not _same_floats(compact.scales(), tensor.scales):
        raise Corrupt("the scales are not those that their compact form says")
    if not _same_floats(compact.zero_points(highest_code(tensor.quant_type)), tensor.zero_points):
        raise Corrupt("the zero points are not those that their compact form says")


def _same_floats(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Equal to the bit; without copies, as tables of scales are large."""
    return one.shape == other.shape and bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))
