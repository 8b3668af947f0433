"""Rényi differential privacy of the Gaussian mechanism, with and without Poisson sampling. Pure arithmetic.

A curve gives, for an order alpha > 1, the Rényi divergence that one use of a mechanism allows between neighbouring
inputs. Curves of uses that follow each other add up. Sources: Mironov, "Rényi Differential Privacy" (2017); Mironov,
Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (2019), section 3.3; conversion:
Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), proposition 12 (also Balle et
al., "Hypothesis Testing Interpretations and Rényi Differential Privacy", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

ORDERS: Final = (
    *(1 + step / 100 for step in range(1, 10)),
    *(1 + step / 10 for step in range(1, 100)),
    *range(11, 64),
    *(64, 72, 80, 96, 128, 192, 256, 384, 512, 1024, 4096),
)
_SMALLEST_TERM = -30.0  # e**-30 of what has been summed is below the precision of a float
_MOST_TERMS = 1000
_SERIES_FROM = 20.0


def gaussian(order: float, noise_multiplier: float) -> float:
    """Divergence of the Gaussian mechanism: noise of ``noise_multiplier`` times the sensitivity. 0 noise: infinite.

    The discrete Gaussian on a grid has the same bound (Canonne, Kamath and Steinke 2020, theorem 14).
    """
    return order / (2 * noise_multiplier**2) if noise_multiplier > 0 else math.inf


def sampled_gaussian(order: float, noise_multiplier: float, rate: float) -> float:
    """Divergence where each input takes part with probability ``rate``, independently (Poisson sampling).

    Neighbours differ by one input's presence. Orders of 4096 and noise below 0.1 still give finite floats or infinity.
    """
    if rate == 0:
        return 0.0
    if rate == 1 or noise_multiplier == 0:
        return gaussian(order, noise_multiplier)
    log_a = _log_whole if float(order).is_integer() else _log_fraction
    divergence = log_a(order, noise_multiplier, rate) / (order - 1)
    return min(max(0.0, divergence), gaussian(order, noise_multiplier))


def epsilon_of(curve: Mapping[float, float], delta: float) -> float:
    """The smallest epsilon that the curve (order -> divergence) proves for this delta."""
    return max(0.0, min((_epsilon_at(order, value, delta) for order, value in curve.items()), default=0.0))


def delta_of(curve: Mapping[float, float], epsilon: float) -> float:
    """The smallest delta that the curve proves for this epsilon, at most 1."""
    return min((_delta_at(order, value, epsilon) for order, value in curve.items()), default=0.0)


def _epsilon_at(order: float, divergence: float, delta: float) -> float:
    return divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _delta_at(order: float, divergence: float, epsilon: float) -> float:
    log = (order - 1) * (divergence - epsilon + math.log1p(-1 / order)) - math.log(order)
    return math.exp(min(0.0, log))


def _log_whole(order: float, noise: float, rate: float) -> float:
    """log A of a whole order: a binomial sum."""
    count = int(order)
    return _log_sum(
        _log_binomial(count, index)
        + index * math.log(rate)
        + (count - index) * math.log1p(-rate)
        + (index * index - index) / (2 * noise**2)
        for index in range(count + 1)
    )


def _log_fraction(order: float, noise: float, rate: float) -> float:
    """log A of any order: two infinite series, each cut where its terms vanish. Their signs alternate in the end.

    Where they vanish too slowly (rates near a half), the bound by the whole orders on both sides.
    """
    middle = noise**2 * math.log(1 / rate - 1) + 0.5
    low, high = math.log(rate), math.log1p(-rate)
    binomial = 1.0  # generalised binomial coefficient (order over index)
    total = _SignedSum()
    for index in range(_MOST_TERMS):
        rest = order - index
        log_size = math.log(abs(binomial))
        first = _tail((index - middle) / (math.sqrt(2) * noise)) + (index * index - index) / (2 * noise**2)
        second = _tail((middle - rest) / (math.sqrt(2) * noise)) + (rest * rest - rest) / (2 * noise**2)
        terms = (log_size + rest * high + index * low + first, log_size + rest * low + index * high + second)
        for term in terms:
            total.add(term, binomial > 0)
        if index > order and max(terms) < total.log + _SMALLEST_TERM:
            return total.log
        binomial *= (order - index) / (index + 1)
    return _log_between(order, noise, rate)


def _log_between(order: float, noise: float, rate: float) -> float:
    """An upper bound of log A, which is convex in the order and 0 at order 1: the chord between whole orders."""
    below = math.floor(order)
    share = order - below
    low = _log_whole(below, noise, rate) if below > 1 else 0.0
    return (1 - share) * low + share * _log_whole(below + 1, noise, rate)


class _SignedSum:
    """Sum of terms given by sign and logarithm, scaled so that no exponential overflows."""

    def __init__(self) -> None:
        self._scale, self._value = -math.inf, 0.0

    def add(self, log: float, positive: bool) -> None:
        if log > self._scale:
            self._value *= math.exp(self._scale - log)
            self._scale = log
        if log > -math.inf:
            self._value += math.exp(log - self._scale) * (1 if positive else -1)

    @property
    def log(self) -> float:
        return self._scale + math.log(self._value) if self._value > 0 else -math.inf


def _tail(x: float) -> float:
    """log(erfc(x) / 2); for large x, where erfc is no float any more, by its asymptotic series."""
    if x < _SERIES_FROM:
        return math.log(math.erfc(x) / 2)
    square = x * x
    series = 1 - 1 / (2 * square) + 3 / (4 * square**2) - 15 / (8 * square**3)
    return -square - math.log(2 * x * math.sqrt(math.pi)) + math.log(series)


def _log_sum(logs: Iterable[float]) -> float:
    found = list(logs)
    most = max(found)
    return most if math.isinf(most) else most + math.log(math.fsum(math.exp(log - most) for log in found))


def _log_binomial(count: int, index: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(index + 1) - math.lgamma(count - index + 1)
