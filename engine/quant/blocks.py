"""Quantised tensors as plain parts: codes, scales, zero points and their layout.

``w = scale * (code - zero_point)`` in float32. Codes lie in the tensor's C order: INT8 as one two's
complement byte per value, INT4 and INT2 as unsigned codes packed low bits first, the last byte padded
with zeros. Knows nothing about files, networks or how codes are chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import Corrupt

QuantType = Literal["int8", "int4", "int2"]
BITS: dict[str, int] = {"int8": 8, "int4": 4, "int2": 2}
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 40


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A quantised tensor.

    codes        uint8 [ceil(elements * bits / 8)], packed as the module says
    scales       float32 [channels, groups] (whole tensor: [1, groups])
    zero_points  float32, same shape
    axis         channel axis; -1: the whole tensor is one channel
    group_size   values per group along the flattened rest of a channel; 0: one group per channel

    Raises Corrupt when the parts contradict each other.
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
            raise Corrupt(f"quant type {self.quant_type!r} is not known: int8, int4 or int2")
        count = element_count(self.shape)
        expected = packed_size(count, self.bits)
        if self.codes.dtype != np.uint8 or self.codes.shape != (expected,):
            raise Corrupt(f"{count} {self.quant_type} codes need {expected} bytes, not {self.codes.size}")
        grid = scale_grid(self.shape, self.axis, self.group_size)
        for name, part in (("scales", self.scales), ("zero points", self.zero_points)):
            if part.dtype != np.float32 or part.shape != grid:
                raise Corrupt(f"{name} must be float32 {grid}, not {part.dtype} {part.shape}")

    @property
    def bits(self) -> int:
        """Bits per code."""
        return BITS[self.quant_type]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return int(self.codes.nbytes + self.scales.nbytes + self.zero_points.nbytes)

    def unpack(self) -> NDArray[np.int8] | NDArray[np.uint8]:
        """Codes in the tensor's shape: int8, or uint8 for INT4 and INT2."""
        flat = unpack(self.codes, self.bits, element_count(self.shape))
        return (flat.view(np.int8) if self.bits == 8 else flat).reshape(self.shape)

    def dequantize(self) -> NDArray[np.generic]:
        """The tensor's values in its dtype."""
        codes = to_channels(self.unpack(), self.axis).astype(np.float32)
        group = self.group_size or max(codes.shape[1], 1)
        values = np.empty_like(codes)
        for index in range(self.scales.shape[1]):
            part = slice(index * group, (index + 1) * group)
            np.subtract(codes[:, part], self.zero_points[:, index : index + 1], out=values[:, part])
            values[:, part] *= self.scales[:, index : index + 1]
        return from_channels(values, self.shape, self.axis).astype(numpy_dtype(self.dtype), copy=False)


Tensor: TypeAlias = NDArray[np.generic] | QuantizedTensor


def pack(codes: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Pack integer codes (any shape, C order, values below ``2**bits``) into bytes, low bits first."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    flat = flat.view(np.uint8) if flat.itemsize == 1 else flat.astype(np.uint8)
    if bits == 8:
        return flat
    per_byte = 8 // bits
    padded = np.zeros(packed_size(flat.size, bits) * per_byte, np.uint8)
    padded[: flat.size] = flat
    lanes = padded.reshape(-1, per_byte)
    packed = lanes[:, 0].copy()
    for lane in range(1, per_byte):
        packed |= lanes[:, lane] << np.uint8(lane * bits)
    return packed


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of ``pack``: ``count`` codes as uint8 [count]."""
    if bits == 8:
        return data[:count]
    per_byte = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    lanes = np.empty((data.size, per_byte), np.uint8)
    for lane in range(per_byte):
        lanes[:, lane] = (data >> np.uint8(lane * bits)) & mask
    return lanes.reshape(-1)[:count]


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes need."""
    return (count * bits + 7) // 8


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements. Raises Corrupt for negative, overflowing or absurd shapes."""
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise Corrupt(f"shape {shape[:MAX_DIMENSIONS]} is impossible: sizes are 0 or more, at most 16 dimensions")
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise Corrupt(f"shape {shape} has {count} elements, more than any tensor may have")
    return count


def scale_grid(shape: tuple[int, ...], axis: int, group_size: int) -> tuple[int, int]:
    """Shape [channels, groups] of scales and zero points. Raises Corrupt for an impossible layout."""
    if not -1 <= axis < len(shape) or group_size < 0:
        raise Corrupt(f"axis {axis} with group size {group_size} does not fit shape {shape}")
    channels = 1 if axis == -1 else shape[axis]
    rest = element_count(shape) // channels if channels else 0
    return channels, (-(-rest // group_size) if group_size else min(rest, 1))


def to_channels(values: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """[channels, rest]: the channel axis first, the rest flattened in C order."""
    if axis == -1:
        return values.reshape(1, -1)
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))


def from_channels(values: NDArray[np.generic], shape: tuple[int, ...], axis: int) -> NDArray[np.generic]:
    """The inverse of ``to_channels``: back to the tensor's shape."""
    if axis == -1:
        return values.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(values.reshape(moved), 0, axis))


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of this NumPy name, ml_dtypes' included. Raises Corrupt for anything else."""
    try:
        dtype: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        raise Corrupt(f"dtype {name[:40]!r} is not known") from None
    if dtype.kind not in "fiubV" or dtype.name != name:
        raise Corrupt(f"dtype {name[:40]!r} cannot hold weights")
    return dtype
