"""Tensors for tests: every dtype, quantised ones too, and pairs of versions that differ in all ways there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor, Tensor, highest_code, packed_size
from aios_node.engine.quant.dtypes import DTYPES
from aios_node.engine.quant.scales import nearest_compact
from aios_node.engine.weights.manifest import tensor_hash

Weights = dict[str, Tensor]
NAMES = ("a", "b.weight", "b.bias", "c", "é")


def random_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Every bit pattern is possible, NaN, infinities and negative zero among them."""
    kind = DTYPES[dtype]
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape)) * kind.itemsize
    return rng.integers(0, 256, count, dtype=np.uint8).view(kind).reshape(shape)


def quantized(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], axis: int = 0, group: int = 0
) -> QuantizedTensor:
    """A quantised tensor with codes and scales of any bits."""
    grouping = Grouping.of(shape, axis, group)
    count = int(np.prod(shape))
    codes = rng.integers(0, 256, packed_size(count, BITS[kind]), dtype=np.uint8)
    used = count * BITS[kind] % 8
    if used:
        codes[-1] &= (1 << used) - 1
    table = (grouping.channels, grouping.groups)
    scales, zeros = (rng.normal(size=table).astype(np.float32) for _ in range(2))
    return QuantizedTensor(codes, scales, zeros, shape, "float32", kind, axis, group)  # type: ignore[arg-type]


def compacted(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], axis: int = 0, group: int = 0
) -> QuantizedTensor:
    """A quantised tensor whose scales are compact, all of it of any bits."""
    plain = quantized(rng, kind, shape, axis, group)
    compact = nearest_compact(np.abs(plain.scales) + 1, plain.zero_points + 7, highest_code(kind))
    return QuantizedTensor.compacted(plain.codes, compact, shape, "float32", plain.quant_type, axis, group)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """One tensor of any dtype or quantisation, up to 4 dimensions, some of them empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    kind = draw(st.sampled_from([*DTYPES, *BITS]))
    if kind in DTYPES:
        return random_bits(rng, kind, shape)
    build = compacted if kind != "int8" and draw(st.booleans()) else quantized
    return build(rng, kind, shape or (5,), draw(st.sampled_from([-1, 0])), draw(st.sampled_from([0, 1, 3])))


def touched(tensor: Tensor, rng: np.random.Generator, count: int) -> Tensor:
    """The tensor with some of its bits changed."""
    if isinstance(tensor, QuantizedTensor) and tensor.compact is not None:
        steps = tensor.compact.steps.copy()
        steps[:count] *= np.float16(1.5)
        compact = replace(tensor.compact, steps=steps)
        return replace(tensor, compact=compact, scales=compact.scales())
    if isinstance(tensor, QuantizedTensor):
        scales = tensor.scales.copy()
        scales[:count] *= np.float32(1.5)
        return QuantizedTensor(
            tensor.codes,
            scales,
            tensor.zero_points,
            tensor.shape,
            tensor.dtype,
            tensor.quant_type,
            tensor.axis,
            tensor.group_size,
        )
    if tensor.dtype == bool:
        return ~tensor
    data = tensor.copy().reshape(-1).view(np.uint8)
    data[rng.integers(0, max(1, data.size), count) % max(1, data.size)] ^= np.uint8(1) if data.size else np.uint8(0)
    return data.view(tensor.dtype).reshape(tensor.shape)


@st.composite
def versions(draw: st.DrawFn) -> tuple[Weights, Weights]:
    """A base and a target: tensors kept, touched, replaced, added and removed."""
    base = draw(st.dictionaries(st.sampled_from(NAMES), tensors(), max_size=4))
    target: Weights = {}
    for name, tensor in base.items():
        change = draw(st.sampled_from(["keep", "touch", "replace", "remove"]))
        if change == "keep":
            target[name] = tensor
        elif change == "touch" and tensor.size:
            target[name] = touched(tensor, np.random.default_rng(draw(st.integers(0, 99))), 3)
        elif change != "remove":
            target[name] = draw(tensors())
    return base, target | draw(st.dictionaries(st.sampled_from(["new", "newer"]), tensors(), max_size=2))


def hashes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """What two mappings are compared by: content to the bit, dtype, shape, layout."""
    return {name: tensor_hash(tensor) for name, tensor in weights.items()}
