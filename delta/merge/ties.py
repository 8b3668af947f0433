"""TIES (Yadav et al. 2023): trim small changes, elect a sign, take the mean of those that agree with it.

For adapters and other changes that interfere: heads that learned different things. Trimming looks at a head's
changes over the whole model, as in the paper; only weights that changed at all are counted, so that an adapter that
touches a twentieth of the weights is trimmed like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aios_node.delta.merge.options import check_range
from aios_node.delta.merge.ranks import least_kept
from aios_node.delta.merge.strategy import Block, Combine, Combined, Floats, Meeting


@dataclass(frozen=True)
class Ties:
    """``density``: share of each head's changes that is kept, the largest; ``scale``: the paper's lambda."""

    density: float = 0.2
    scale: float = 1.0

    name: ClassVar[str] = "ties"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = False
    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("density", self.density, 0, 1, above=True)
        check_range("scale", self.scale, 0, math.inf, above=True)

    @property
    def least(self) -> int:
        """Two heads can meet."""
        return 2

    def may_leave_out(self, count: int) -> int:
        """No defence against faulty heads."""
        return 0

    def begin(self, meeting: Meeting) -> Combine:
        """Find where each head is trimmed."""
        kept = least_kept(lambda: _magnitudes(meeting), meeting.count, self.density)

        def combine(block: Block) -> Combined:
            changes = [_trimmed(head - block.base, least) for head, least in zip(block.heads, kept, strict=True)]
            return Combined(block.base + self.scale * _agreed(changes))

        return combine


def _magnitudes(meeting: Meeting) -> Iterator[list[Floats]]:
    for block in meeting.scan():
        yield [np.abs(head - block.base) for head in block.heads]


def _trimmed(change: Floats, least: float) -> Floats:
    return np.where(np.abs(change) >= least, change, 0.0)


def _agreed(changes: list[Floats]) -> Floats:
    """The mean of the changes that have the sign of their sum, float64 [m]; zero where there is none."""
    total = np.zeros_like(changes[0])
    for change in changes:
        total += change
    elected = np.sign(total)
    agreed, count = np.zeros_like(total), np.zeros_like(total)
    for change in changes:
        agrees = (np.sign(change) == elected) & (elected != 0)
        agreed += np.where(agrees, change, 0.0)
        count += agrees
    return agreed / np.maximum(count, 1.0)
