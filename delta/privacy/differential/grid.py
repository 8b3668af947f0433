"""Where clipping and noise happen: on whole numbers, so that the guarantee holds to the last bit.

An update is measured in steps of a grid. Clipping bounds the exact L2 norm of the whole numbers; the noise is a
discrete Gaussian of ``2**bits`` steps. What leaves is whole numbers times the step: everything after that, rounding
to the dtype of the weights included, is done to data that is already private.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.privacy.differential.noise import LEAST_BITS, MOST_BITS
from aios_node.engine.errors import BadConfig, BadWeights

MOST_STEPS: Final = 1 << 31
"""Bound of a norm in steps: squares and their sums then fit 64 bits."""
LEAST_NOISE: Final = 1e-6
MOST_NOISE: Final = 1e4
_DEVIATIONS = 16
_SMALLER = 1 - 2.0**-40


@dataclass(frozen=True)
class Grid:
    """``step``: the grid's width; ``norm``: the most steps a clipped update may be long; ``bits``: the noise's size.

    The noise has standard deviation ``2**bits * step``, the clip norm is ``norm * step``.
    """

    step: float
    norm: int
    bits: int

    @classmethod
    def of(cls, clip_norm: float, noise_multiplier: float, most_steps: int = MOST_STEPS) -> Grid:
        """The finest grid for this clip norm and noise. Raises BadConfig for values that no grid fits.

        ``most_steps`` bounds every number that comes out, the noise up to 16 of its deviations included. Without
        noise (multiplier 0, no privacy) the grid is only there to clip.
        """
        if not 0 < clip_norm < math.inf:
            raise BadConfig(f"clip_norm is {clip_norm}: it must be above 0")
        if noise_multiplier == 0:
            return cls(clip_norm / most_steps, most_steps, 0)
        if not LEAST_NOISE <= noise_multiplier <= MOST_NOISE:
            raise BadConfig(
                f"noise_multiplier is {noise_multiplier}: it must be 0 or from {LEAST_NOISE:g} to {MOST_NOISE:g}"
            )
        bits = min(MOST_BITS, math.floor(math.log2(most_steps / (1 / noise_multiplier + _DEVIATIONS))))
        if bits < LEAST_BITS:
            raise BadConfig(f"noise_multiplier is {noise_multiplier}: it must be larger for numbers up to {most_steps}")
        norm = math.floor(2**bits / noise_multiplier)  # rounded down: the noise is never less than asked for
        return cls(clip_norm / norm, norm, bits)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clip norm; at least what was asked for. 0 without noise."""
        return 2**self.bits / self.norm if self.bits else 0.0


def clip(update: NDArray[np.floating], grid: Grid) -> NDArray[np.int64]:
    """An update in steps of the grid, shortened to the clip norm where it is longer. Any shape; int64 of that shape.

    Rounds towards zero, which never makes it longer, and checks the exact sum of squares of what came out. Raises
    BadWeights for NaN and infinity: they have no norm.
    """
    from aios_node.delta.privacy.differential.kernels import largest, squared_length, to_steps

    values = np.ascontiguousarray(update, np.float64).reshape(-1)
    unit = largest(values)  # so that no square overflows or vanishes
    if not math.isfinite(unit):
        raise BadWeights("an update with NaN or infinity cannot be clipped: it has no length")
    steps = np.zeros(values.shape, np.int64)
    if unit:
        factor = min(unit / grid.step, grid.norm / math.sqrt(squared_length(values, unit)))
        while _too_long(to_steps(values, unit, factor, steps), grid.norm):
            factor *= _SMALLER
    return steps.reshape(update.shape)


def _too_long(squares: tuple[np.uint64, np.uint64], norm: int) -> bool:
    high, low = (int(part) for part in squares)
    return (high << 32) + low > norm**2
