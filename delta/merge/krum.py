"""Krum and Multi-Krum (Blanchard et al. 2017): trust heads that have many others near them.

A head's score is the sum of its squared distances to its n - f - 2 nearest others, over the whole model. Ties go to
the smaller version id.

The bound, for at most f faulty heads among n >= 2f + 3, D being the largest distance between two faultless heads: the
result lies within c * D of the convex hull of the faultless heads, c = sqrt((n - f - 2) / (n - 2f - 1)). For Krum that
means: within c * D of one of them. Why: the n - f best scores are each at most (n - f - 2) * D**2, since a faultless
head has n - f - 2 faultless others within D. A faulty head with such a score has at least n - 2f - 1 faultless ones
among its nearest, so one of them lies within c * D. Heads with NaN or Inf are left out and count as faulty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.averaging import weighted_mean
from aios_node.delta.merge.options import check_range
from aios_node.delta.merge.strategy import Block, Combine, Combined, Meeting


def scores(distances: NDArray[np.float64], faulty: int) -> list[float]:
    """The score of every head by squared distances [n, n]; the smaller, the more trustworthy."""
    count = len(distances)
    found = []
    for head in range(count):
        others = sorted(float(distances[head, other]) for other in range(count) if other != head)
        total = 0.0
        for distance in others[: count - faulty - 2]:
            total += distance
        found.append(total)
    return found


def best(meeting: Meeting, faulty: int, count: int) -> tuple[int, ...]:
    """The ``count`` heads with the smallest scores, in the order of their ids."""
    from aios_node.delta.merge.distances import squared_distances

    found = scores(squared_distances(meeting.scan(), meeting.count), faulty - meeting.left_out)
    order = sorted(range(len(found)), key=lambda head: (found[head], head))
    return tuple(sorted(order[:count]))


@dataclass(frozen=True)
class Krum:
    """The one head that is nearest to the others, as it is."""

    faulty: int = 1

    name: ClassVar[str] = "krum"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("faulty", self.faulty, 0, 30)

    @property
    def least(self) -> int:
        """The paper's condition."""
        return 2 * self.faulty + 3

    def may_leave_out(self, count: int) -> int:
        """As many as may be faulty."""
        return self.faulty

    def begin(self, meeting: Meeting) -> Combine:
        """Choose by distances over the whole model."""
        (chosen,) = best(meeting, self.faulty, 1)

        def combine(block: Block) -> Combined:
            return Combined(block.heads[chosen])

        return combine


@dataclass(frozen=True)
class MultiKrum:
    """The plain mean of the ``keep`` best heads; 0: of all that cannot be faulty, n - f."""

    faulty: int = 1
    keep: int = 0

    name: ClassVar[str] = "multi_krum"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("faulty", self.faulty, 0, 30)
        check_range("keep", self.keep, 0, 64)

    @property
    def least(self) -> int:
        """The paper's condition, and enough faultless heads to keep."""
        return max(2 * self.faulty + 3, self.keep + self.faulty)

    def may_leave_out(self, count: int) -> int:
        """As many as may be faulty."""
        return self.faulty

    def begin(self, meeting: Meeting) -> Combine:
        """Choose by distances over the whole model."""
        faultless = meeting.count + meeting.left_out - self.faulty
        chosen = best(meeting, self.faulty, self.keep or faultless)
        parts = (1 / len(chosen),) * len(chosen)

        def combine(block: Block) -> Combined:
            return Combined(weighted_mean([block.heads[head] for head in chosen], parts))

        return combine
