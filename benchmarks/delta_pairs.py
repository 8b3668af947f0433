"""Synthetic pairs of versions for measuring deltas: normal weights, clipped normal updates, any share changed.

A pair is 2**22 weights from N(0, 0.02), kept in float32 as an optimiser keeps them, and the same after one update of
clipped normal steps. What is compared is both, rounded to a precision: so it depends on each weight's exponent whether
an update shows. The size of the updates is chosen, by bisection, so that a wanted share of the stored numbers changes.
In float32 every update shows; there a random subset is updated. Knows nothing of codecs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor, QuantType, Tensor, pack
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings

COUNT = 2**22
COLUMNS = 2**10
SPREAD = 0.02
CLIP = 2.0
GROUP = 64
SEED = 0
FLOAT32_STEP = 1e-5
"""Spread of the updates of float32 weights: about one part in two thousand of a weight."""

DENSITIES = (0.0, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.08, 0.15, 0.3, 0.5, 0.63, 0.8, 0.9, 1.0)
FLOATS = ("float32", "float16", "bfloat16")
CODES = ("int8", "int4", "int2")
_BISECTIONS = 18

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two versions of one tensor, in one precision."""

    name: str
    base: Tensor
    target: Tensor

    @property
    def changed(self) -> float:
        """Share of the stored numbers that differ in any bit."""
        old, new = numbers(self.base), numbers(self.target)
        return float(np.count_nonzero(old != new) / max(1, old.size))


def numbers(tensor: Tensor) -> NDArray[Any]:
    """What a tensor stores, one integer each: the bits of floats, the codes of quantised tensors."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.unpack().reshape(-1)
    return np.ascontiguousarray(tensor).reshape(-1).view(f"u{tensor.dtype.itemsize}")


def synthetic(precision: str, density: float, count: int = COUNT) -> Pair:
    """The pair of a precision (float32, ..., int2) in which about this share of the numbers changed."""
    name = f"{precision} {density:g}"
    if precision == "float32":
        return Pair(name, *_subset(density, count))
    weights, steps = _weights(count), _steps(count)
    store = _stored(precision, count)
    base = store(weights)
    if density in {0.0, 1.0}:
        return Pair(name, base, base if not density else _all_changed(base, store))
    return Pair(name, base, store(weights + np.float32(_size(base, store, density)) * steps))


def _subset(density: float, count: int) -> tuple[Floats, Floats]:
    """A random subset of the weights gets an update that shows."""
    weights, random = _weights(count), np.random.default_rng(SEED + 2)
    updated = weights + np.float32(FLOAT32_STEP) * _steps(count)
    same = updated == weights
    updated[same] = np.nextafter(weights[same], np.float32(1))
    return weights, np.where(random.random(weights.shape) < density, updated, weights)


def _size(base: Tensor, store: Callable[[Floats], Tensor], density: float) -> float:
    """The spread of updates that changes this share of the stored numbers; the nearest there is."""
    old, count = numbers(base), numbers(base).size
    weights, steps = _weights(count), _steps(count)
    low, high = -9.0, 1.0  # powers of ten
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        new = numbers(store(weights + np.float32(10.0**middle) * steps))
        if np.count_nonzero(new != old) < density * count:
            low = middle
        else:
            high = middle
    return float(10.0**high)


def _all_changed(base: Tensor, store: Callable[[Floats], Tensor]) -> Tensor:
    """Every number is another one: an update as large as the weights, and the last bit where it hit the old number."""
    count = numbers(base).size
    new = store(_weights(count) + np.float32(SPREAD) * _steps(count))
    same = numbers(new) == numbers(base)
    if not isinstance(new, QuantizedTensor):
        bits = np.ascontiguousarray(new).view(np.uint16)
        bits ^= same.reshape(bits.shape).astype(np.uint16)
        return bits.view(new.dtype)
    codes = (numbers(new).view(np.uint8) ^ same.astype(np.uint8)).view(numbers(new).dtype)
    return replace(new, codes=pack(codes, new.bits))


def _stored(precision: str, count: int) -> Callable[[Floats], Tensor]:
    """How weights are stored in a precision; codes keep the scales that the weights have before any update."""
    if precision in CODES:
        settings = Settings(quant=cast("QuantType", precision), symmetric=precision == "int8", group_size=GROUP)
        frozen = quantize_tensor(_weights(count), "float32", settings).tensor
        return lambda weights: quantize_tensor(weights, "float32", settings, frozen=frozen).tensor
    kind = np.dtype(np.float16) if precision == "float16" else np.dtype(ml_dtypes.bfloat16)
    return lambda weights: weights.astype(kind)


@cache
def _weights(count: int) -> Floats:
    return (np.random.default_rng(SEED).standard_normal(count, np.float32) * np.float32(SPREAD)).reshape(-1, COLUMNS)


@cache
def _steps(count: int) -> Floats:
    drawn = np.random.default_rng(SEED + 1).standard_normal(count, np.float32)
    return np.clip(drawn, -CLIP, CLIP).reshape(-1, COLUMNS)
