"""Choosing scales and zero points of 4 bits each (see scales) for a tensor's groups.

``minmax`` covers every value. ``mse`` starts from the best scale and zero point that float32 could say, rounds them,
then tries the neighbouring codes on the values themselves and fits the steps by least squares, in turn (as the
scale searches of llama.cpp's K-quants do). Elementwise IEEE arithmetic in a fixed order, as in fit: the same values
give the same codes on every machine. Knows nothing about names and files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import Grouping, highest_code
from aios_node.engine.quant.cuts import Block, blocks_of
from aios_node.engine.quant.fit import LEVELS, Fit, Floats, codes_of, extremes, fit_range, ordered_sum, squared_errors
from aios_node.engine.quant.recipe import Settings
from aios_node.engine.quant.scales import (
    LARGEST_STEP,
    LEAST_STEP,
    MOST,
    SUPER_BLOCK,
    CompactScales,
    by_group,
    nearest_compact,
    steps_for,
    supers_of,
    zero_levels,
)

Table: TypeAlias = NDArray[np.float64]
"""One number per group, [channels, groups], or per super-block, [channels, supers]."""

_LEAST_SCALE = LEAST_STEP / 2**10
"""What groups of zeros ask for: less than any step, so that they decide about none."""

_NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Steps of scale code and zero code, the nearest first: on a tie, the nearer stays."""

_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class _Groups:
    """What is fitted: values and what each counts, float32 [channels, rest], and how they are cut and quantised."""

    matrix: Floats
    grouping: Grouping
    settings: Settings
    importance: Floats | None

    def blocks(self) -> Iterator[tuple[Block, Floats, Floats | None]]:
        """All blocks with their values and what these count: [length, groups]."""
        for block in blocks_of(self.grouping):
            counted = None if self.importance is None else block.columns(self.importance)
            yield block, block.columns(self.matrix), counted

    def table(self) -> Table:
        """Zeros for every group."""
        return np.zeros((self.grouping.channels, self.grouping.groups))


def fit_compact(
    matrix: Floats, grouping: Grouping, settings: Settings, importance: Floats | None = None
) -> CompactScales:
    """Scales and zero points for all groups of finite values, float32 [channels, rest].

    With ``minmax`` a group's range, zero included, is covered: every value comes back off by at most half the
    group's scale, plus ``fit.ROUNDING`` times the scale and the largest magnitude together. With ``mse`` the squared
    error of a super-block is at most that of ``minmax``. ``importance``: float32 [channels, rest], 0 to 1, what the
    squared error of each value counts; None: all the same. Raises BadWeights for values that no step can reach.
    """
    groups = _Groups(matrix, grouping, settings, importance)
    found = [_covering(groups)]
    if settings.clip == "mse" and matrix.size:
        start = nearest_compact(*_best_floats(groups), highest_code(settings.quant))
        found.append(_refined(groups, start))
        for _ in range(_ROUNDS - 1):
            found.append(_refined(groups, _least_squares(groups, found[-1])))
    return _best(found, [_super_errors(groups, each) for each in found])


def _ranges(groups: _Groups) -> tuple[Table, Table]:
    """The lower and upper end of every group's range, which reaches to zero at least: [channels, groups]."""
    low, high = groups.table(), groups.table()
    for block, part, _ in groups.blocks():
        least, most = extremes(part)
        block.put(low, np.minimum(least, 0))
        block.put(high, np.maximum(most, 0))
    return low, high


def _covering(groups: _Groups) -> CompactScales:
    """The smallest scales whose codes reach over the groups' ranges."""
    low, high = _ranges(groups)
    if groups.settings.symmetric:
        levels = LEVELS[groups.settings.quant]
        zero_codes, wanted = np.full(low.shape, levels.zero), np.maximum(-low, high) / levels.reach
    else:
        zero_codes, reach = _zero_codes(low, high)
        wanted = reach * MOST / highest_code(groups.settings.quant)
    wanted = np.maximum(wanted, _LEAST_SCALE)
    steps = steps_for(wanted, cover=True)
    scale_codes = np.ceil(wanted / by_group(steps.astype(np.float64), wanted.shape[1])).clip(1, MOST)
    return CompactScales.of(steps, scale_codes.astype(np.uint8), zero_codes.astype(np.uint8))


def _zero_codes(low: Table, high: Table) -> tuple[Table, Table]:
    """The zero codes whose 15ths of a range are smallest, and how long these then are: [channels, groups]."""
    span = high - low
    exact = np.divide(-low * MOST, span, out=np.zeros_like(span), where=span > 0)
    below = np.floor(exact).clip(0, MOST - 1)  # both ends: where one is tiny, the quotient is no less than 15
    choices = [below, below + 1]
    reaches = [np.maximum(_parts(-low, code), _parts(high, MOST - code)) for code in choices]
    first = reaches[0] <= reaches[1]
    return np.where(first, *choices), np.where(first, *reaches)


def _parts(length: Table, count: Table) -> Table:
    """``length`` divided into ``count`` parts; endless where there is something to divide into none."""
    nothing = np.where(length > 0, np.inf, 0.0)
    return np.divide(length, count, out=nothing, where=count > 0)


def _best_floats(groups: _Groups) -> tuple[Table, Table]:
    """Scales and zero points with a small squared error, were float32 to keep them: [channels, groups]."""
    scales, zero_points = groups.table(), groups.table()
    for block, part, counted in groups.blocks():
        low, high = extremes(part)
        fit = fit_range(part, np.minimum(low, 0), np.maximum(high, 0), groups.settings, counted)
        block.put(scales, np.maximum(fit.scales, _LEAST_SCALE))
        block.put(zero_points, fit.zero_points)
    return scales, zero_points


@dataclass(frozen=True, eq=False)
class _Codes:
    """Some groups' steps, scale codes and zero codes: [groups] each."""

    steps: Floats
    scale_codes: NDArray[Any]
    zero_codes: NDArray[Any]

    def moved(self, scale: int, zero: int) -> _Codes:
        """With the neighbouring codes, as far as there are such."""
        moved = (self.scale_codes + scale).clip(1, MOST), (self.zero_codes + zero).clip(0, MOST)
        return _Codes(self.steps, *moved)

    def fit(self, quant: str) -> Fit:
        """What the codes mean."""
        scales: Floats = self.steps * self.scale_codes.astype(np.float32)
        return Fit(scales, zero_levels(highest_code(quant))[self.zero_codes])


def _codes_in(block: Block, compact: CompactScales) -> _Codes:
    steps = by_group(compact.steps.astype(np.float32), compact.groups)
    tables = (steps, compact.scale_table().astype(np.int8), compact.zero_table().astype(np.int8))
    return _Codes(*(block.of_groups(table) for table in tables))


def _refined(groups: _Groups, start: CompactScales) -> CompactScales:
    """The same steps with the codes, out of the neighbours of every group's, that have the smallest error."""
    scale_codes, zero_codes = start.scale_table().copy(), start.zero_table().copy()
    for block, part, counted in groups.blocks():
        best = _nearby(part, counted, _codes_in(block, start), groups.settings)
        block.put(scale_codes, best.scale_codes)
        block.put(zero_codes, best.zero_codes)
    return CompactScales.of(start.steps, scale_codes, zero_codes)


def _nearby(part: Floats, counted: Floats | None, start: _Codes, settings: Settings) -> _Codes:
    best, least = start, np.full(part.shape[1], np.inf)
    for scale, zero in _NEIGHBOURS:
        if settings.symmetric and zero:
            continue
        tried = start.moved(scale, zero)
        errors = _errors(part, counted, tried, settings.quant)
        better = errors < least
        least = np.where(better, errors, least)
        best = _Codes(
            start.steps,
            np.where(better, tried.scale_codes, best.scale_codes),
            np.where(better, tried.zero_codes, best.zero_codes),
        )
    return best


def _errors(part: Floats, counted: Floats | None, codes: _Codes, quant: str) -> NDArray[np.float64]:
    fit = codes.fit(quant)
    return squared_errors(part, codes_of(part, fit, quant), fit, counted)


def _least_squares(groups: _Groups, found: CompactScales) -> CompactScales:
    """The same codes with the steps that then have the smallest squared error."""
    along, square = groups.table(), groups.table()
    for block, part, counted in groups.blocks():
        codes = _codes_in(block, found)
        fit = codes.fit(groups.settings.quant)
        places = (codes_of(part, fit, groups.settings.quant) - fit.zero_points).astype(np.float64) * codes.scale_codes
        wide = places if counted is None else places * counted
        block.put(along, ordered_sum(wide * part))
        block.put(square, ordered_sum(wide * places))
    along, square = _by_super(along), _by_super(square)
    steps = np.divide(along, square, out=np.zeros_like(along), where=square > 0)
    kept = np.where(steps > 0, steps, found.steps.astype(np.float64)).clip(LEAST_STEP, LARGEST_STEP)
    return CompactScales(kept.astype(np.float16), found.scale_codes, found.zero_codes, found.groups)


def _super_errors(groups: _Groups, compact: CompactScales) -> Table:
    """Squared errors: [channels, supers]."""
    errors = groups.table()
    for block, part, counted in groups.blocks():
        block.put(errors, _errors(part, counted, _codes_in(block, compact), groups.settings.quant))
    return _by_super(errors)


def _by_super(table: Table) -> Table:
    """Sums over the groups of every super-block: [channels, groups] -> [channels, supers]."""
    channels, groups = table.shape
    supers = supers_of(groups)
    padded = np.zeros((channels, supers * SUPER_BLOCK))
    padded[:, :groups] = table
    return ordered_sum(padded.reshape(channels * supers, SUPER_BLOCK).T.copy()).reshape(channels, supers)


def _best(found: Sequence[CompactScales], errors: Sequence[Table]) -> CompactScales:
    """Out of several, for every super-block the one with the smallest error; the first wins a tie."""
    best, least = found[0], errors[0]
    for each, error in zip(found[1:], errors[1:], strict=True):
        better = error < least
        groups = by_group(better, best.groups)
        least = np.where(better, error, least)
        best = CompactScales.of(
            np.where(better, each.steps, best.steps),
            np.where(groups, each.scale_table(), best.scale_table()),
            np.where(groups, each.zero_table(), best.zero_table()),
        )
    return best
