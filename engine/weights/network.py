"""The tensors of a version that belong to its network: all but the optimiser state that merges keep beside them.

Knows the reserved names; does not know what merging does with such tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.names import OPTIMIZER


def is_optimizer_state(name: str) -> bool:
    """Whether a tensor of this name is optimiser state."""
    return name.startswith(OPTIMIZER)


class NetworkWeights(Mapping[str, Tensor]):
    """A view of weights without optimiser state; as lazy as what it looks at."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._names = tuple(name for name in weights if not is_optimizer_state(name))

    def __getitem__(self, name: str) -> Tensor:
        if is_optimizer_state(name):
            raise KeyError(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
