"""Low-rank adapters (LoRA, Hu et al. 2021): a few trainable numbers beside frozen weights, merged at the end.

Knows linear maps and names; does not know what is learned or how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest
from aios_node.engine.evolve.proximal import low_rank_square
from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS
from aios_node.engine.nets.linear import Linear, Projection
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.weights.lowrank import Factors
from aios_node.engine.weights.prediction import predicts


@dataclass(frozen=True, eq=False)
class LowRank:
    """``activation(linear(x) + scale * x @ down.T @ up.T)`` around a frozen linear map [out, in]."""

    base: Linear  # without activation
    down: torch.Tensor  # [rank, in], small random numbers at first
    up: torch.Tensor  # [out, rank], zeros at first: training starts from the base's own output
    scale: float
    activation: Activation | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        adapted = self.base(x) + F.linear(F.linear(x, self.down), self.up) * self.scale
        return ACTIVATIONS[self.activation](adapted)

    def factors(self) -> Factors:
        """What merging adds to the weight, as two matrices; the scale is in the first."""
        up, down = (part.detach().cpu().numpy() for part in (self.up, self.down))
        return Factors.of(up * np.float32(self.scale), down)


class Adapters:
    """The adapters of one network: wraps its linear maps while it is built, and merges them later."""

    def __init__(self, targets: tuple[str, ...], first_layer: int, rank: int, alpha: float, seed: int) -> None:
        self._targets = frozenset(targets)
        self._first_layer = first_layer
        self._rank = rank
        self._scale = alpha / rank
        self._random = torch.Generator().manual_seed(seed)
        self._adapters: dict[str, LowRank] = {}

    def wrap(self, name: str, linear: Linear) -> Projection:
        """Put an adapter around a linear map that is a target; a factory for Encoder.build.

        Targets are named by the last part of ``encoder.layer.3.attention.self.query``.
        """
        layer = next(int(part) for part in name.split(".") if part.isdecimal())
        if name.rpartition(".")[2] not in self._targets or layer < self._first_layer:
            return linear
        self._adapters[name] = adapter = self._new(linear)
        return adapter

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that is trained. Raises BadConfig if no linear map was a target."""
        if not self._adapters:
            targets = ", ".join(sorted(self._targets))
            raise BadConfig(f"no linear map from layer {self._first_layer} on is named {targets}: nothing to train")
        return [part for adapter in self._adapters.values() for part in (adapter.down, adapter.up)]

    @property
    def squares(self) -> list[torch.Tensor]:
        """For each adapter the squared distance of its weight from where it began, a scalar."""
        return [low_rank_square(one.up, one.down, one.scale) for one in self._adapters.values()]

    def check(self, weights: Mapping[str, Tensor], prefix: str = "") -> None:
        """Raise BadRequest if what would be merged into is quantised: codes cannot take small changes."""
        for name in self._adapters:
            _plain(f"{prefix}{name}.weight", weights)

    def merge(self, weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Weights with every adapter added to its own tensor; all other tensors are the same objects.

        The adapters are rounded to 8 bits first and kept beside the tensors, in place of what lay there:
        whoever has ``weights`` can then make the result from them (see weights.lowrank). Raises BadRequest as ``check``
        does.
        """
        merged = {name: tensor for name, tensor in weights.items() if not predicts(name)}
        for name, adapter in self._adapters.items():
            key = f"{prefix}{name}.weight"
            tensor = np.ascontiguousarray(_plain(key, weights))
            factors = adapter.factors()
            merged |= {key: factors.add(tensor.ravel()).reshape(tensor.shape), **factors.stored(key)}
        return merged

    def _new(self, linear: Linear) -> LowRank:
        out, inputs = linear.weight.shape
        if self._rank > min(out, inputs):
            raise BadConfig(f"rank is {self._rank}: at most {min(out, inputs)} for a map of {out} x {inputs}")
        down = torch.randn(self._rank, inputs, generator=self._random) / math.sqrt(inputs)
        device = linear.weight.device
        return LowRank(
            base=replace(linear, activation=None),
            down=down.to(device).requires_grad_(),
            up=torch.zeros(out, self._rank, device=device, requires_grad=True),
            scale=self._scale,
            activation=linear.activation,
        )


def _plain(name: str, weights: Mapping[str, Tensor]) -> NDArray[Any]:
    tensor = weights[name]
    if isinstance(tensor, QuantizedTensor):
        raise BadRequest(f"tensor {name!r} is quantised: adapt the model it was made from, then quantise again")
    return tensor
