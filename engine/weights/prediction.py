"""What tensors beside a network say about its tensors: how each follows from the version before, exact to the bit.

Knows that there are factors (see lowrank) and updates (see update), not where either comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.lowrank import read_factors
from aios_node.engine.weights.names import FACTORS, UPDATES
from aios_node.engine.weights.update import read_update


class Prediction(Protocol):
    """A tensor of the version before -> the tensor of this version, as far as is known."""

    def fit(self, shape: tuple[int, ...]) -> bool:
        """Whether it is about tensors of this shape."""
        ...

    def add(self, base: NDArray[Any], start: int = 0) -> NDArray[Any]:
        """Elements ``start`` to ``start + n`` (C order) of the tensor, from those of the one before, [n] of a float."""
        ...


def predicts(name: str) -> bool:
    """Whether a tensor of this name says something about others: those need it to be decoded."""
    return name.startswith((FACTORS, UPDATES))


def read_prediction(weights: Mapping[str, Tensor], tensor: str) -> Prediction | None:
    """What lies beside a tensor: its update, else its factors, else None."""
    update = read_update(weights, tensor)
    return read_factors(weights, tensor) if update is None else update
