"""Number by number robust means (Yin et al. 2018): coordinate median and trimmed mean.

The bound, for at most f faulty heads among n >= 2f + 1, whatever these hold: every number of the result lies
between the smallest and the largest that a faultless head has at that place. Heads with NaN or Inf are left out and
count as faulty, which leaves the bound as it is: n - d heads with f - d faulty ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.options import check_range
from aios_node.delta.merge.strategy import Block, Combine, Combined, Floats, Meeting


def ordered(heads: Sequence[Floats]) -> NDArray[np.float64]:
    """The heads' numbers, smallest first, float64 [n, m]. No zero is negative: which came first would be chance."""
    stack = np.stack(heads)
    stack += 0.0
    stack.sort(axis=0, kind="stable")
    return stack


def mean_of_ordered(rows: NDArray[np.float64]) -> Floats:
    """The mean of ordered rows, float64 [k, m] -> [m]; never outside of them, however it is rounded."""
    low, high = rows[0], rows[-1]
    moved = low - low
    for row in rows[1:]:
        moved += (row - low) / len(rows)
    mean: Floats = np.clip(low + moved, low, high)
    return mean


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of what is left without the ``faulty`` smallest and largest numbers, place by place."""

    faulty: int = 1

    name: ClassVar[str] = "trimmed_mean"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("faulty", self.faulty, 0, 31)

    @property
    def least(self) -> int:
        """More than half of the heads must be faultless."""
        return max(2, 2 * self.faulty + 1)

    def may_leave_out(self, count: int) -> int:
        """As many as may be faulty."""
        return self.faulty

    def begin(self, meeting: Meeting) -> Combine:
        """Trim what is still to be feared."""
        trim = self.faulty - meeting.left_out

        def combine(block: Block) -> Combined:
            rows = ordered(block.heads)
            return Combined(mean_of_ordered(rows[trim : len(rows) - trim]))

        return combine


@dataclass(frozen=True)
class Median:
    """The number in the middle, place by place; the mean of both where there are two. Any minority may be faulty."""

    name: ClassVar[str] = "median"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    @property
    def least(self) -> int:
        """Two heads can meet (and neither may be faulty)."""
        return 2

    def may_leave_out(self, count: int) -> int:
        """A minority."""
        return (count - 1) // 2

    def begin(self, meeting: Meeting) -> Combine:
        """The middle of every block."""

        def combine(block: Block) -> Combined:
            rows = ordered(block.heads)
            return Combined(mean_of_ordered(rows[(len(rows) - 1) // 2 : len(rows) // 2 + 1]))

        return combine
