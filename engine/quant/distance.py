"""How far two sets of numbers are apart, summed up piece by piece in float64.

Serves weights and what networks compute from them; knows neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**20
"""Values compared at once, in float64."""


class Distance:
    """Distance of "after" from "before" over everything that was added so far."""

    def __init__(self) -> None:
        self._before = self._after = self._difference = 0.0  # sums of squares
        self.largest = 0.0
        """The largest single difference."""

    def add(self, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Add two arrays of the same shape and any float dtypes."""
        flat, other = before.reshape(-1), after.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            b = flat[start : start + _CHUNK].astype(np.float64)
            a = other[start : start + _CHUNK].astype(np.float64)
            difference = a - b
            self._before += float(b @ b)
            self._after += float(a @ a)
            self._difference += float(difference @ difference)
            self.largest = max(self.largest, float(np.abs(difference).max()))

    def include(self, other: Distance) -> None:
        """Add what another one has seen."""
        self._before += other._before
        self._after += other._after
        self._difference += other._difference
        self.largest = max(self.largest, other.largest)

    @property
    def cosine(self) -> float:
        """Cosine of everything as two long vectors: 1 when both are zero, 0 when one is."""
        largest = max(self._before, self._after)
        if not largest:
            return 1.0
        b, a, difference = (each / largest for each in (self._before, self._after, self._difference))
        return float((b + a - difference) / 2 / (b * a) ** 0.5) if b * a else 0.0

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of "before": 1 when only the latter is zero."""
        if not self._before:  # nothing to be relative to
            return 1.0 if self._after else 0.0
        return float((self._difference / self._before) ** 0.5)
