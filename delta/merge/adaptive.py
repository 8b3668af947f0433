"""Server-side adaptive optimisers (Reddi et al. 2021, algorithm 2): FedAdam and FedYogi.

The mean change of the heads is taken for a gradient. First and second moments belong to the version: the next
merge begins with them, wherever it is made. A tensor's optimiser begins with the first merge in which a head
changed the tensor. Square roots and divisions are exact to the last bit by IEEE 754, so nothing depends on the
processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aios_node.delta.merge.averaging import WEIGHTINGS, shares, weighted_mean
from aios_node.delta.merge.options import check_choice, check_range
from aios_node.delta.merge.strategy import Block, Combine, Combined, Floats, Meeting

FIRST, SECOND = "first_moment", "second_moment"


@dataclass(frozen=True)
class _Adaptive:
    """``x + learning_rate * m / (sqrt(v) + tau)``; v begins at ``initial``, m at zero."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    initial: float = 1e-6
    """The paper asks for tau squared or more."""
    weighting: str = "samples"

    state: ClassVar[tuple[str, ...]] = (FIRST, SECOND)
    keeps_agreement: ClassVar[bool] = False
    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, 0, math.inf, above=True)
        check_range("beta1", self.beta1, 0, 1 - 2**-53)
        check_range("beta2", self.beta2, 0, 1 - 2**-53)
        check_range("tau", self.tau, 0, math.inf, above=True)
        check_range("initial", self.initial, 0, math.inf)
        check_choice("weighting", self.weighting, WEIGHTINGS)

    @property
    def least(self) -> int:
        """Two heads can meet."""
        return 2

    def may_leave_out(self, count: int) -> int:
        """A mean has no defence."""
        return 0

    def begin(self, meeting: Meeting) -> Combine:
        """One step of the optimiser."""
        parts = shares(meeting, self.weighting)

        def combine(block: Block) -> Combined:
            change = weighted_mean(block.heads, parts) - block.base
            zeros = np.zeros_like(block.base)
            first = self.beta1 * block.state.get(FIRST, zeros)
            first += (1 - self.beta1) * change
            second = self._second(block.state.get(SECOND, zeros + self.initial), change * change)
            step = first / (np.sqrt(second) + self.tau)
            return Combined(block.base + self.learning_rate * step, {FIRST: first, SECOND: second})

        return combine

    def _second(self, old: Floats, square: Floats) -> Floats:
        raise TypeError(f"{type(self).__name__} is only what FedAdam and FedYogi share")


@dataclass(frozen=True)
class FedAdam(_Adaptive):
    """``v = beta2 * v + (1 - beta2) * change ** 2``."""

    name: ClassVar[str] = "fedadam"

    def _second(self, old: Floats, square: Floats) -> Floats:
        second = self.beta2 * old
        second += (1 - self.beta2) * square
        return second


@dataclass(frozen=True)
class FedYogi(_Adaptive):
    """``v = v - (1 - beta2) * change ** 2 * sign(v - change ** 2)``: v falls no faster than the changes do."""

    name: ClassVar[str] = "fedyogi"

    def _second(self, old: Floats, square: Floats) -> Floats:
        return old - (1 - self.beta2) * square * np.sign(old - square)
