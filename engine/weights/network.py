"""The tensors of a version that belong to its network: all but what merging and training keep beside them.

Knows the reserved names; does not know what such tensors are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.names import FACTORS, OPTIMIZER, UPDATES


def is_beside_network(name: str) -> bool:
    """Whether a tensor of this name is part of a version, but of no network."""
    return name.startswith((OPTIMIZER, FACTORS, UPDATES))


class NetworkWeights(Mapping[str, Tensor]):
    """A view of weights without what lies beside the network; as lazy as what it looks at."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._names = tuple(name for name in weights if not is_beside_network(name))

    def __getitem__(self, name: str) -> Tensor:
        if is_beside_network(name):
            raise KeyError(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
