"""A tensor as what a codec sees: plain parts of bytes, each with the kind of number it holds.

An array is one part; a quantised tensor is three (codes, scales, zero points), because each has statistics of its
own. Knows how tensors are laid out, not how they are coded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from aios_node.delta.codec.planes import Bytes, Element
from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor, QuantType, Tensor, packed_size
from aios_node.engine.quant.dtypes import count_of, dtype_of, from_bytes, is_float, raw_bytes
from aios_node.engine.weights.manifest import TensorEntry

_CODE = Element(1)
_SCALE = Element(4, is_float=True)


@dataclass(frozen=True)
class Part:
    """Size in bytes and kind of number."""

    size: int
    element: Element


def layout(entry: TensorEntry) -> tuple[Part, ...]:
    """The parts of the tensor that an entry describes, in the order in which they are coded."""
    if entry.quant_type == "none":
        kind = dtype_of(entry.dtype)
        return (Part(entry.nbytes, Element(kind.itemsize, is_float(entry.dtype))),)
    grouping = Grouping.of(entry.shape, entry.quant_axis, entry.group_size)
    scales = Part(4 * grouping.channels * grouping.groups, _SCALE)
    return Part(packed_size(count_of(entry.shape), BITS[entry.quant_type]), _CODE), scales, scales


def parts(tensor: Tensor) -> tuple[Bytes, ...]:
    """The bytes of every part; views where the tensor is contiguous."""
    if isinstance(tensor, QuantizedTensor):
        return raw_bytes(tensor.codes), raw_bytes(tensor.scales), raw_bytes(tensor.zero_points)
    return (raw_bytes(tensor),)


def assemble(entry: TensorEntry, data: Sequence[Bytes]) -> Tensor:
    """The tensor that these parts mean, without copying. Raises BadWeights or Corrupt where they mean none."""
    if entry.quant_type == "none":
        return from_bytes(data[0], entry.dtype, entry.shape)
    grouping = Grouping.of(entry.shape, entry.quant_axis, entry.group_size)
    codes, scales, zero_points = data
    table = grouping.channels, grouping.groups
    return QuantizedTensor(
        codes=codes,
        scales=scales.view(np.float32).reshape(table),
        zero_points=zero_points.view(np.float32).reshape(table),
        shape=entry.shape,
        dtype=entry.dtype,
        quant_type=cast("QuantType", entry.quant_type),
        axis=entry.quant_axis,
        group_size=entry.group_size,
    )
