"""Places of linear maps in a network: to be listened to, replaced, or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS
from aios_node.engine.nets.linear import Linear, Projection
from aios_node.engine.nets.tensors import as_torch
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.tuning.fakequant import TrainableTensor


@dataclass(frozen=True, eq=False)
class TrainableLinear:
    """``activation(x @ weight.T + bias)`` with a weight that is rounded to codes in every pass."""

    tensor: TrainableTensor
    bias: torch.Tensor
    activation: Activation | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.activation](F.linear(x, self.tensor.weight(), self.bias))


@dataclass(eq=False)
class Slot:
    """A linear map of a network under its name (without ``.weight``)."""

    name: str
    linear: Linear  # as it was at first
    current: Projection
    listener: Callable[[torch.Tensor], None] | None = None

    @classmethod
    def of(cls, name: str, linear: Linear) -> Slot:
        """A slot that holds this map."""
        return cls(name, linear, linear)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.listener is not None:
            self.listener(x)
        return self.current(x)

    def use(self, tensor: Tensor) -> None:
        """Compute with this weight from now on."""
        self.current = Linear(as_torch(tensor), self.linear.bias, self.linear.activation)

    def train(self, tensor: TrainableTensor) -> None:
        """Compute with what this tensor stands for, so that it can learn."""
        self.current = TrainableLinear(tensor, self.linear.bias, self.linear.activation)
