"""The Gaussian mechanism on versions of weights: base and target in, a private target out.

Noise cannot be repeated on another node: one node makes it and publishes the result, which then is a version like
any other. Knows tensors and the grid; does not know what was spent before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.privacy.differential.grid import Grid, clip
from aios_node.delta.privacy.differential.noise import discrete_gaussian
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
    steps = clip_all(update, grid)
    if grid.bits:
        noise = discrete_gaussian(sum(part.size for part in steps.values()), grid.bits, random)
        at = 0
        for part in steps.values():
            part += noise[at : at + part.size].reshape(part.shape)
            at += part.size
    length = float(np.sqrt(sum(float(np.vdot(part, part)) for part in update.values())))
    return Private(_on_base(base, steps, grid), grid, length)


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


def clip_all(update: Update, grid: Grid) -> dict[str, NDArray[np.int64]]:
    """As ``clip``, over all tensors together."""
    flat = clip(np.concatenate([part.reshape(-1) for part in update.values()] or [np.zeros(0)]), grid)
    steps, at = {}, 0
    for name, part in update.items():
        steps[name] = flat[at : at + part.size].reshape(part.shape)
        at += part.size
    return steps


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
