"""Linear maps in 16-bit floats inside a network that is float32 otherwise.

Sums over many terms (the residual stream, layer norms, pooling) stay float32, which is where 16 bits lose most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS
from aios_node.engine.nets.linear import Linear, Projection

_INSIDE = ("self.query", "self.key", "self.value", "intermediate.dense")
"""Maps whose result is used by another 16-bit computation; all others go back to float32."""


@dataclass(frozen=True, eq=False)
class HalfLinear:
    """``activation(x @ weight.T + bias)`` computed in the dtype of weight [out, in] and bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor
    activation: Activation | None
    result: torch.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return ACTIVATIONS[self.activation](out).to(self.result)


@dataclass(frozen=True)
class Halving:
    """A factory for Encoder.build: every linear map in this dtype."""

    dtype: torch.dtype

    def __call__(self, name: str, linear: Linear) -> Projection:
        """The map in 16 bits; ``name`` says what its result is for."""
        result = self.dtype if name.endswith(_INSIDE) else torch.float32
        weight, bias = linear.weight.to(self.dtype), linear.bias.to(self.dtype)
        return HalfLinear(weight, bias, linear.activation, result)
