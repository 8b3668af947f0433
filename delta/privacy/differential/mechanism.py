"""The Gaussian mechanism on versions of weights: base and target in, a private target out.

Noise cannot be repeated on another node: one node makes it and publishes the result, which then is a version like
any other. Knows tensors and the grid; does not know what was spent before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.privacy.differential.grid import Grid, clip
from aios_node.delta.privacy.differential.noise import discrete_gaussian
from aios_node.delta.privacy.layout import Layout
from aios_node.delta.privacy.random import Random, os_random
from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.dtypes import is_float

Update = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Private:
    """A private target and two lengths. ``length`` is not private: show it to the owner of the data only.

    ``length``: L2 norm of the update before clipping. ``grid``: what was used; its noise multiplier counts.
    """

    weights: dict[str, Tensor]
    grid: Grid
    length: float

    @property
    def clipped(self) -> bool:
        """Whether the update was longer than the clip norm. Not private either."""
        return self.length > self.grid.norm * self.grid.step


def make_private(
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    names: Collection[str],
    grid: Grid,
    random: Random = os_random,
) -> Private:
    """Clip ``target - base`` over all tensors of ``names`` together, add noise to every number, and put it on the base.

    ``names`` must not depend on the data: they tell which tensors could have changed. Others come from the base,
    and must be equal in the target: BadRequest otherwise, since they would carry data past the noise. Raises
    BadRequest for tensors that are not floating point or not laid out as the base's, BadWeights for NaN and infinity.
    """
    update = difference(base, target, names)
    layout = Layout.of(update)
    flat = layout.flat(update)
    private = with_noise(clip(flat, grid), grid, random)
    weights = _on_base(base, layout.parts(private), grid)
    return Private(weights, grid, float(np.sqrt(np.dot(flat, flat))))


def private_sum(updates: Iterable[Update], layout: Layout, grid: Grid, random: Random = os_random) -> Update:
    """The sum of many nodes' updates, each clipped, with noise added once: float64 by name.

    For an aggregator that may see each update. Neighbours: one update is there or not. Divide by a number that was
    fixed before, not by how many came: that one is not private. Raises BadRequest for another layout, BadWeights for
    NaN and infinity.
    """
    total = np.zeros(layout.length, np.int64)
    for update in updates:
        total += clip(layout.flat(update), grid)
    return layout.parts(np.multiply(with_noise(total, grid, random), grid.step, dtype=np.float64))


def with_noise(steps: NDArray[np.int64], grid: Grid, random: Random = os_random) -> NDArray[np.int64]:
    """Whole numbers with the grid's noise added to each, int64 of the same shape."""
    if not grid.bits:
        return steps
    return steps + discrete_gaussian(steps.size, grid.bits, random).reshape(steps.shape)


def difference(base: Mapping[str, Tensor], target: Mapping[str, Tensor], names: Collection[str]) -> Update:
    """``target - base`` in float64 for the tensors of ``names``, by name. Raises as ``make_private``."""
    if set(base) != set(target) or not set(names) <= set(base):
        raise BadRequest("base and target hold different tensors, or not those that are to be made private")
    for name in sorted(set(base) - set(names)):
        if base[name] is not target[name] and not _same(base[name], target[name]):
            raise BadRequest(f"tensor {name!r} changed, but is not among those that get noise: nothing was published")
    update = {name: _floats(target, name) - _floats(base, name, target[name].shape) for name in sorted(names)}
    for name, part in update.items():
        if not np.isfinite(part).all():
            raise BadWeights(f"the update of tensor {name!r} holds NaN or infinity")
    return update


def _on_base(base: Mapping[str, Tensor], steps: Mapping[str, NDArray[np.int64]], grid: Grid) -> dict[str, Tensor]:
    weights = dict(base)
    for name, part in steps.items():
        with np.errstate(over="ignore"):  # checked below
            private = (_floats(base, name) + part * grid.step).astype(np.dtype(base[name].dtype))
        if not np.isfinite(private.astype(np.float64)).all():
            raise BadWeights(f"the noise is too large for {private.dtype} of tensor {name!r}: take a smaller clip_norm")
        weights[name] = private
    return weights


def _floats(weights: Mapping[str, Tensor], name: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    tensor = weights[name]
    if isinstance(tensor, QuantizedTensor) or not is_float(str(tensor.dtype)):
        raise BadRequest(f"tensor {name!r} is {tensor.dtype}: noise is added before quantising, to floating point only")
    if shape is not None and tensor.shape != shape:
        raise BadRequest(f"tensor {name!r} changed its shape from {tensor.shape} to {shape}")
    return tensor.astype(np.float64)


def _same(old: Tensor, new: Tensor) -> bool:
    from aios_node.engine.weights.manifest import tensor_hash

    return tensor_hash(old) == tensor_hash(new)
