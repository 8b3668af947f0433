"""Affine maps: the smallest part of every network. Knows nothing of what they are used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import affine

Projection = Callable[[torch.Tensor], torch.Tensor]
"""[..., in] -> [..., out]. A plain Linear, or one with an adapter around it."""


@dataclass(frozen=True, eq=False)
class Linear:
    """``activation(x @ weight.T + bias)`` with weight [out, in] and bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor
    activation: Activation | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return affine(x, self.weight, self.bias, self.activation)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Layer normalisation over the last axis (Ba, Kiros, Hinton 2016), weight and bias [d]."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
