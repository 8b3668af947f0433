"""Squared distances between heads over all their numbers, added up in one fixed order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.strategy import Block
from aios_node.engine.jit import exact_kernel


def squared_distances(blocks: Iterable[Block], count: int) -> NDArray[np.float64]:
    """The squared Euclidean distance of every two heads, float64 [count, count]; infinite where it overflows."""
    found = np.zeros((count, count))
    for block in blocks:
        _add_squares(np.stack(block.heads), found)
    return found


@exact_kernel
def _add_squares(heads: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """``heads`` [n, m]: every two rows' squared differences onto ``found`` [n, n], one number after the other."""
    for first in range(len(heads)):
        for second in range(first + 1, len(heads)):
            total = found[first, second]
            for place in range(heads.shape[1]):
                difference = heads[first, place] - heads[second, place]
                total += difference * difference
            found[first, second] = total
            found[second, first] = total
