"""Choosing scales, zero points and codes for blocks of values.

A block is float32 [length, groups]: one column per group, so that every operation runs over all groups at
once. Everything here is elementwise IEEE arithmetic in a fixed order: the same values give the same codes on
every machine. Knows nothing about tensors' names and layouts (see ptq).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.recipe import Settings

Floats = NDArray[np.float32]

ROUNDING = 2.0**-20
"""Beyond half a scale, a value comes back off by at most this part of its group's largest magnitude:
float32 rounding of scale and zero point (8 units in the last place, room included)."""

_LARGEST = float(np.finfo(np.float32).max) * (1 - ROUNDING)
_SMALLEST = float(np.finfo(np.float32).tiny)
# Parts of the full range that the clip search tries, largest first: on a tie, the larger stays.
_SHRINKS = tuple(round(1.0 - 0.05 * step, 2) for step in range(1, 15))


@dataclass(frozen=True)
class Levels:
    """The codes of a quantisation: lowest and highest, and the zero point and reach of symmetric ranges.

    A symmetric range reaches from ``-reach`` to ``reach`` scales around ``zero``: 127 for int8, 7 for int4.
    int2 has four levels, at -1.5, -0.5, 0.5 and 1.5.
    """

    low: int
    high: int
    zero: float
    reach: float


LEVELS = {"int8": Levels(-128, 127, 0.0, 127.0), "int4": Levels(0, 15, 8.0, 7.0), "int2": Levels(0, 3, 1.5, 1.5)}


@dataclass(frozen=True, eq=False)
class Fit:
    """Scales and zero points of a block's groups: float32 [groups] each."""

    scales: Floats
    zero_points: Floats


def fit_block(block: Floats, settings: Settings, importance: Floats | None = None) -> Fit:
    """Choose scale and zero point for every group (column) of a block of finite values.

    ``importance``: float32 of the block's shape, 0 to 1, what the squared error of each value counts; None: all the
    same.
    """
    low, high = extremes(block)
    return _exact_constants(fit_range(block, low, high, settings, importance), low, high)


def extremes(block: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest value of every group, a little within what float32 can hold: float64 [groups]."""
    low = block.min(axis=0).astype(np.float64).clip(-_LARGEST, _LARGEST)
    high = block.max(axis=0).astype(np.float64).clip(-_LARGEST, _LARGEST)
    return low, high


def fit_range(
    block: Floats,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    settings: Settings,
    importance: Floats | None = None,
) -> Fit:
    """Scales and zero points that map ``low`` to ``high`` (float64 [groups]) onto all codes.

    With the clip ``mse``: that map the shrunk range with the smallest squared error. ``importance`` as in fit_block.
    """
    ranges = _symmetric if settings.symmetric else _asymmetric
    best = ranges(low, high, 1.0, LEVELS[settings.quant])
    return _search(block, low, high, settings, best, importance) if settings.clip == "mse" else best


def codes_of(block: Floats, fit: Fit, quant: str) -> Floats:
    """The nearest code of every value, as float32 [length, groups]."""
    levels = LEVELS[quant]
    with np.errstate(over="ignore"):  # a frozen scale may be tiny for a value: the clip below takes care
        codes = block / fit.scales
        codes += fit.zero_points
    np.rint(codes, out=codes)
    return np.clip(codes, levels.low, levels.high, out=codes)


def squared_errors(block: Floats, codes: Floats, fit: Fit, importance: Floats | None = None) -> NDArray[np.float64]:
    """Sum of squared differences between values and what their codes mean, times importance: float64 [groups]."""
    # In place and in the order of QuantizedTensor.dequantize.
    errors = codes - fit.zero_points
    with np.errstate(over="ignore"):  # infinite error: a range that cannot be used
        errors *= fit.scales
    errors -= block
    wide = errors.astype(np.float64)
    wide *= wide
    if importance is not None:
        wide *= importance
    return ordered_sum(wide)


def ordered_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over axis 0 by halves: elementwise additions only, so that no library chooses another order.

    [length, groups] -> [groups]. The input is used up.
    """
    length = len(values)
    while length > 1:
        half = length // 2
        values[:half] += values[half : 2 * half]
        if length % 2:
            values[0] += values[length - 1]
        length = half
    return values[0] if length else np.zeros(values.shape[1])


def _symmetric(low: NDArray[np.float64], high: NDArray[np.float64], shrink: float, levels: Levels) -> Fit:
    scales = _scales(np.maximum(-low, high) * shrink / levels.reach)
    return Fit(scales, np.full_like(scales, levels.zero))


def _asymmetric(low: NDArray[np.float64], high: NDArray[np.float64], shrink: float, levels: Levels) -> Fit:
    """The range shrinks towards its middle; the zero point is what maps its lower end to the lowest code."""
    middle, half = low / 2 + high / 2, (high / 2 - low / 2) * shrink
    # Below the resolution of float32 at this magnitude, a scale means nothing and the zero point overflows.
    least = np.maximum(-low, high) * 2.0**-24
    scales = _scales(np.maximum(2 * half / (levels.high - levels.low), least))
    zero_points = levels.low - (middle - half) / scales
    return Fit(scales, zero_points.astype(np.float32))


def _scales(wanted: NDArray[np.float64]) -> Floats:
    """As normal float32 numbers: subnormal ones differ between machines that flush them to zero."""
    scales: Floats = np.maximum(wanted, _SMALLEST).astype(np.float32)
    return scales


def _search(
    block: Floats,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    settings: Settings,
    start: Fit,
    importance: Floats | None,
) -> Fit:
    """The range with the smallest squared error, per group, out of a fixed list of shrunk ones."""
    ranges = _symmetric if settings.symmetric else _asymmetric
    scales, zero_points = start.scales, start.zero_points
    least = squared_errors(block, codes_of(block, start, settings.quant), start, importance)
    for shrink in _SHRINKS:
        fit = ranges(low, high, shrink, LEVELS[settings.quant])
        errors = squared_errors(block, codes_of(block, fit, settings.quant), fit, importance)
        better = errors < least
        least = np.where(better, errors, least)
        scales = np.where(better, fit.scales, scales)
        zero_points = np.where(better, fit.zero_points, zero_points)
    return Fit(scales, zero_points)


def _exact_constants(fit: Fit, low: NDArray[np.float64], high: NDArray[np.float64]) -> Fit:
    """Groups of one value come back exactly: scale |value|, zero point one beside the code; zeros: scale 1."""
    constant = low == high
    magnitude = np.abs(low)
    exact = constant & ((magnitude >= _SMALLEST) | (magnitude == 0))
    scales = np.where(exact, np.where(magnitude == 0, 1.0, magnitude), fit.scales)
    zero_points = np.where(exact, 0.0 - np.sign(low), fit.zero_points)  # 0.0 - 0.0 is no negative zero
    return Fit(scales.astype(np.float32), zero_points.astype(np.float32))
