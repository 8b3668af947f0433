"""The weighted mean of all heads: FedAvg, and the middle that the server-side optimisers start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aios_node.delta.merge.options import check_choice
from aios_node.delta.merge.strategy import Block, Combine, Combined, Floats, Meeting

WEIGHTINGS = ("samples", "equal")


def shares(meeting: Meeting, weighting: str) -> tuple[float, ...]:
    """What part of the mean each head is: by its samples, or the same for all."""
    counts = meeting.samples if weighting == "samples" else (1,) * meeting.count
    total = sum(counts)
    return tuple(count / total for count in counts)


def weighted_mean(heads: Sequence[Floats], parts: Sequence[float]) -> Floats:
    """``x_0 + sum of p_i * (x_i - x_0)``, float64 [m]: what all agree on comes out to the bit."""
    first = heads[0]
    moved = first - first
    for head, part in zip(heads[1:], parts[1:], strict=True):
        moved += part * (head - first)
    moved += first
    return moved


@dataclass(frozen=True)
class FedAvg:
    """FedAvg (McMahan et al. 2017): the mean of the heads, each by the samples that it learned from.

    FedProx (Li et al. 2020) merges in the same way; its proximal term belongs to local training.
    """

    weighting: str = "samples"

    name: ClassVar[str] = "fedavg"
    state: ClassVar[tuple[str, ...]] = ()
    keeps_agreement: ClassVar[bool] = True
    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, WEIGHTINGS)

    @property
    def least(self) -> int:
        """Two heads can meet."""
        return 2

    def may_leave_out(self, count: int) -> int:
        """A mean has no defence."""
        return 0

    def begin(self, meeting: Meeting) -> Combine:
        """The mean of every block."""
        parts = shares(meeting, self.weighting)

        def combine(block: Block) -> Combined:
            return Combined(weighted_mean(block.heads, parts))

        return combine
