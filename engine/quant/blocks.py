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

QuantType: TypeAlias = Literal["int8", "int4", "int2"]
BITS: dict[str, int] = {"int8": 8, "int4": 4, "int2": 2}

_ROWS_AT_ONCE = 2**18
"""Values that are dequantised together: about 1 MiB of float32, so that the passes stay in cache."""


def _codes_of_byte(bits: int) -> NDArray[np.uint8]:
    """All codes of every byte, low bits first: uint8 [256, 8 // bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1)


# One lookup gives all codes of a byte: [256] of uint16 (int4) or uint32 (int2), viewed as bytes later.
_UNPACKED: dict[int, NDArray[Any]] = {
    4: _codes_of_byte(4).view(np.uint16).reshape(256),
    2: _codes_of_byte(2).view(np.uint32).reshape(256),
}


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack codes into canonical bytes.

    ``codes``: integers of any shape, read in C order; -128..127 for 8 bits, else 0..2**bits - 1 (higher bits
    are cut off). Returns uint8 [ceil(n * bits / 8)]: low bits first, the last byte padded with zero bits.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat.astype(np.int8, copy=False).view(np.uint8)
    per_byte = 8 // bits
    full = np.zeros(packed_size(flat.size, bits) * per_byte, np.uint8)
    np.bitwise_and(flat.astype(np.uint8, copy=False), np.uint8(2**bits - 1), out=full[: flat.size])
    packed = full[0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= full[place::per_byte] << np.uint8(place * bits)
    return packed


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[Any]:
    """The inverse of pack: int8 [count] for 8 bits (a view), uint8 [count] else.

    Raises Corrupt when ``data`` is not exactly the bytes that ``count`` codes take.
    """
    if data.size != packed_size(count, bits):
        raise Corrupt(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {data.size}")
    if bits == 8:
        return data.view(np.int8)
    return _UNPACKED[bits][data].view(np.uint8)[:count]


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
    ``dtype`` names the dequantised tensor. Raises Corrupt or BadWeights when the parts contradict each other.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.float32]
    shape: tuple[int, ...]
    dtype: str
    quant_type: QuantType
    axis: int
    group_size: int

    def __post_init__(self) -> None:
        if self.quant_type not in BITS:
            raise BadWeights(f"quantisation {self.quant_type!r:.40} is not one of {', '.join(BITS)}")
        if not is_float(self.dtype):
            raise BadWeights(f"a quantised tensor cannot be of dtype {self.dtype!r:.40}; it must be a float")
        _check_codes(self.codes, self.count, self.bits)
        _check_scales(self)

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
        """Bytes of codes, scales and zero points together."""
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


def _check_codes(codes: NDArray[np.uint8], count: int, bits: int) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 1:
        raise BadWeights(f"codes must be a flat uint8 array, not {codes.dtype} of {codes.ndim} dimensions")
    if codes.size != packed_size(count, bits):
        raise Corrupt(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {codes.size}")
    used = count * bits % 8
    if used and int(codes[-1]) >> used:
        raise Corrupt("the padding bits after the last code are not zero")


def _check_scales(tensor: QuantizedTensor) -> None:
    grouping = tensor.grouping
    expected = (grouping.channels, grouping.groups)
    for name, part in (("scales", tensor.scales), ("zero points", tensor.zero_points)):
        if part.dtype != np.float32:
            raise BadWeights(f"{name} must be float32, not {part.dtype}")
        if part.shape != expected:
            raise Corrupt(f"{name} have shape {part.shape}; shape {tensor.shape} needs {expected}")
