"""DiLoCo's outer optimiser (Douillard et al. 2023): SGD with Nesterov momentum over the mean change of the heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aios_node.delta.merge.averaging import WEIGHTINGS, shares, weighted_mean
from aios_node.delta.merge.options import check_choice, check_range
from aios_node.delta.merge.strategy import Block, Combine, Combined, Meeting

MOMENTUM = "momentum"


@dataclass(frozen=True)
class DiLoCo:
    """``g = base - mean; b = momentum * b + g; x = base - learning_rate * (g + momentum * b)``, b from zero.

    The paper's defaults; heads count the same there, whatever they learned from.
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    weighting: str = "equal"

    name: ClassVar[str] = "diloco"
    state: ClassVar[tuple[str, ...]] = (MOMENTUM,)
    keeps_agreement: ClassVar[bool] = False
    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, 0, math.inf, above=True)
        check_range("momentum", self.momentum, 0, 1 - 2**-53)
        check_choice("weighting", self.weighting, WEIGHTINGS)

    @property
    def least(self) -> int:
        """Two heads can meet."""
        return 2

    def may_leave_out(self, count: int) -> int:
        """A mean has no defence."""
        return 0

    def begin(self, meeting: Meeting) -> Combine:
        """One outer step."""
        parts = shares(meeting, self.weighting)

        def combine(block: Block) -> Combined:
            gradient = block.base - weighted_mean(block.heads, parts)
            buffer = self.momentum * block.state.get(MOMENTUM, np.zeros_like(gradient))
            buffer += gradient
            step = gradient + self.momentum * buffer
            return Combined(block.base - self.learning_rate * step, {MOMENTUM: buffer})

        return combine
