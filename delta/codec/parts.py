"""A tensor as what a codec sees: plain parts of bytes, each with the kind of number it holds.

An array is one part; a quantised tensor is three (codes, scales, zero points) or, where its scales are compact, four
(codes, steps, scale codes, zero codes), because each has statistics of its own.
Knows how tensors are laid out, not how they are coded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from aios_node.delta.codec.planes import Bytes, Element
from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor, QuantType, Tensor, packed_size
from aios_node.engine.quant.dtypes import count_of, dtype_of, from_bytes, mantissa_bits
from aios_node.engine.quant.scales import CompactScales, CompactSizes, supers_of
from aios_node.engine.weights.manifest import TensorEntry
from aios_node.engine.weights.stored import stored_parts

_SCALE = Element(4, mantissa=23)
_STEP = Element(2, mantissa=10)
_SCALE_CODE = Element(1, code=4)


@dataclass(frozen=True)
class Part:
    """Size in bytes and kind of number."""

    size: int
    element: Element


def layout(entry: TensorEntry) -> tuple[Part, ...]:
    """The parts of the tensor that an entry describes, in the order in which they are coded."""
    if entry.quant_type == "none":
        kind = dtype_of(entry.dtype)
        return (Part(entry.nbytes, Element(kind.itemsize, mantissa_bits(entry.dtype))),)
    grouping = Grouping.of(entry.shape, entry.quant_axis, entry.group_size)
    bits = BITS[entry.quant_type]
    codes = Part(packed_size(count_of(entry.shape), bits), Element(1, code=bits))
    if entry.scale_codec == "double4":
        sizes = CompactSizes.of(grouping.channels, grouping.groups)
        small = Part(sizes.scale_codes, _SCALE_CODE), Part(sizes.zero_codes, _SCALE_CODE)
        return codes, Part(sizes.steps, _STEP), *small
    scales = Part(4 * grouping.channels * grouping.groups, _SCALE)
    return codes, scales, scales


def parts(tensor: Tensor) -> tuple[Bytes, ...]:
    """The bytes of every part; views where the tensor is contiguous."""
    return stored_parts(tensor)


def assemble(entry: TensorEntry, data: Sequence[Bytes]) -> Tensor:
    """The tensor that these parts mean, without copying. Raises BadWeights or Corrupt where they mean none."""
    if entry.quant_type == "none":
        return from_bytes(data[0], entry.dtype, entry.shape)
    grouping = Grouping.of(entry.shape, entry.quant_axis, entry.group_size)
    quant_type = cast("QuantType", entry.quant_type)
    shaped = (entry.shape, entry.dtype, quant_type, entry.quant_axis, entry.group_size)
    if entry.scale_codec == "double4":
        codes, steps, scale_codes, zero_codes = data
        table = steps.view(np.float16).reshape(grouping.channels, supers_of(grouping.groups))
        compact = CompactScales(table, scale_codes, zero_codes, grouping.groups)
        return QuantizedTensor.compacted(codes, compact, *shaped)
    codes, scales, zero_points = (data[0], *(part.view(np.float32) for part in data[1:]))
    groups = grouping.channels, grouping.groups
    return QuantizedTensor(codes, scales.reshape(groups), zero_points.reshape(groups), *shaped)
