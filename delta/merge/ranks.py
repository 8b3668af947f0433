"""The k-th largest of many numbers that are seen block by block: exact, and in little memory.

Magnitudes are ordered as their bits are, so four rounds of counting, 16 bits each, find the number (a radix
selection). Every round goes over all blocks once, for all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.strategy import Floats

_BITS = 16
_ROUNDS = 64 // _BITS

Magnitudes = Callable[[], Iterator[Sequence[Floats]]]
"""Goes over all blocks: a list with the magnitudes of each head, float64 [m], none negative."""


def least_kept(blocks: Magnitudes, heads: int, density: float) -> list[float]:
    """For each head the smallest magnitude among the ``ceil(density * changed)`` largest; infinite if none changed.

    ``changed`` is the number of magnitudes above zero. As many as equal the result are all kept.
    """
    searches = [_Search() for _ in range(heads)]
    for number in range(_ROUNDS):
        for magnitudes in blocks():
            for search, values in zip(searches, magnitudes, strict=True):
                search.count(values, number)
        for search in searches:
            search.narrow(density, number)
    return [search.found for search in searches]


@dataclass
class _Search:
    """One head: the leading bits that are known, and how many numbers still have to be passed."""

    prefix: int = 0
    left: int = 0
    changed: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << _BITS, np.int64))

    def count(self, values: Floats, number: int) -> None:
        shift = np.uint64(64 - _BITS * (number + 1))
        bits = np.ascontiguousarray(values).view(np.uint64)
        if number == 0:
            bits = bits[bits != 0]
            self.changed += len(bits)
        else:
            bits = bits[(bits >> (shift + np.uint64(_BITS))) == np.uint64(self.prefix)]
        buckets = (bits >> shift) & np.uint64((1 << _BITS) - 1)
        self.counts += np.bincount(buckets.astype(np.int64), minlength=1 << _BITS)

    def narrow(self, density: float, number: int) -> None:
        """From the largest bucket down to the one that holds the wanted number."""
        if number == 0:
            self.left = math.ceil(density * self.changed)
        passed = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(passed, self.left))
        bucket = max(0, (1 << _BITS) - 1 - place)
        self.left -= int(passed[place - 1]) if place else 0
        self.prefix = self.prefix << _BITS | bucket
        self.counts[:] = 0

    @property
    def found(self) -> float:
        return float(np.array([self.prefix], np.uint64).view(np.float64)[0]) if self.changed else math.inf
