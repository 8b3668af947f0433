"""What releases cost: (epsilon, delta) of any number of them, and the noise that a budget asks for.

Knows noise multipliers and counts; does not know what was released, or when.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from aios_node.delta.privacy.differential.rdp import ORDERS, epsilon_of, sampled_gaussian
from aios_node.engine.errors import BadConfig

MOST_NOISE: Final = 1e6
MOST_STEPS: Final = 10**9
_PRECISION = 1e-6


class Neighbours(Enum):
    """Which two worlds an observer must not tell apart; the value is the sensitivity in clip norms."""

    ADD_REMOVE = 1
    """One update is there, or it is not (zero). The usual one for a sum over many nodes."""
    REPLACE = 2
    """One update is another one: two updates of clip norm C may lie 2 C apart. The one for a single node's update."""


@dataclass(frozen=True)
class Release:
    """``steps`` publications with the same noise. Raises BadConfig for values that cannot be.

    ``noise_multiplier``: standard deviation of the noise over the clip norm. ``rate``: the probability with which
    an input takes part in a step (Poisson sampling); only for ADD_REMOVE can it be below 1.
    """

    noise_multiplier: float
    neighbours: Neighbours = Neighbours.ADD_REMOVE
    rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        _require("noise_multiplier", self.noise_multiplier, 0 <= self.noise_multiplier <= MOST_NOISE, "0 to a million")
        _require("rate", self.rate, 0 < self.rate <= 1, "above 0 and at most 1")
        _require("steps", self.steps, 1 <= self.steps <= MOST_STEPS, "from 1 to a billion")
        sampled = self.rate < 1 and self.neighbours is not Neighbours.ADD_REMOVE
        _require("rate", self.rate, not sampled, "1 where neighbours replace each other")

    def divergence(self, order: float) -> float:
        """Rényi divergence of this order between neighbouring inputs, over all steps."""
        noise = self.noise_multiplier / self.neighbours.value
        return self.steps * sampled_gaussian(order, noise, self.rate)


def spent(releases: Iterable[Release], delta: float) -> float:
    """Epsilon, at this delta, of releases that each saw the same data. Infinite where one has no noise; none: 0.

    Later releases may depend on what earlier ones showed (adaptive composition). Raises BadConfig for a delta
    outside (0, 1).
    """
    check_delta(delta)
    kinds = list(releases)
    if not kinds:
        return 0.0
    return epsilon_of({order: sum(release.divergence(order) for release in kinds) for order in ORDERS}, delta)


def noise_for(
    epsilon: float, delta: float, *, neighbours: Neighbours = Neighbours.ADD_REMOVE, rate: float = 1.0, steps: int = 1
) -> float:
    """The least noise multiplier (to a millionth) whose releases stay within (epsilon, delta).

    Raises BadConfig for a budget that no noise up to a million meets.
    """
    _require("epsilon", epsilon, epsilon > 0, "above 0")
    check_delta(delta)

    def costs(noise: float) -> float:
        return spent([Release(noise, neighbours, rate, steps)], delta)

    _require("epsilon", epsilon, costs(MOST_NOISE) <= epsilon, "larger: no noise up to a million is enough")
    low, high = 0.0, 1.0
    while costs(high) > epsilon:
        low, high = high, min(2 * high, MOST_NOISE)
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if costs(middle) <= epsilon else (middle, high)
    return high


def check_delta(delta: float) -> float:
    """Return the delta, or raise BadConfig: it is a probability between 0 and 1, both excluded."""
    _require("delta", delta, 0 < delta < 1, "between 0 and 1")
    return delta


def _require(name: str, value: float, holds: bool, allowed: str) -> None:
    if not holds or math.isnan(value):
        raise BadConfig(f"{name} is {value}: it must be {allowed}")
