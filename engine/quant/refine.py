"""Coordinate descent on a quantised weight: first every group's scale and zero point, then every code.

Each step takes the value that is best for the layer's output while all others stay, so the error that the Hessian
measures never grows (up to rounding). For codes: QuantEase (Behdin et al. 2023, arXiv 2309.01885); for scales the
least squares of one group. Knows one weight and its Hessian; not how the first codes came about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor, pack
from aios_node.engine.quant.columns import Floats, per_column
from aios_node.engine.quant.fit import LEVELS
from aios_node.engine.quant.hessian import Matrix
from aios_node.engine.quant.scales import MOST, CompactScales, by_group, zero_levels

Values: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[Values, Values]

_COLUMNS_AT_ONCE = 128
_SINGULAR = 1e-5
"""Below this part of their product, a group's codes are too alike to tell scale and zero point apart."""

_SMALLEST = 1e-30

_ZEROS_BEYOND = 4.0
"""A zero point stays within this many ranges of codes around their middle."""


def refine(
    weight: Floats, tensor: QuantizedTensor, hessian: Matrix, sweeps: int, *, symmetric: bool
) -> QuantizedTensor:
    """``tensor`` with better codes, scales and zero points for ``weight`` float32 [out, in].

    ``hessian``: float64 [in, in], damped, its largest value about 1. Scales move where channels are outputs (axis 0),
    as far as their codec allows; zero points stay when ``symmetric``. Returns the tensor itself when numbers overflow.
    """
    with np.errstate(all="ignore"):
        return _Refinement(weight, tensor, hessian, symmetric).after(sweeps)


class _Refinement:
    """Everything is held as [in, out], divided by a power of two so that float32 suffices for all weights."""

    def __init__(self, weight: Values, tensor: QuantizedTensor, hessian: Matrix, symmetric: bool) -> None:
        self._unit = np.float64(2.0 ** np.floor(np.log2(max(np.abs(weight).max(initial=0.0), 1e-37))))
        self._weight = np.ascontiguousarray((weight.T / self._unit).astype(np.float32))
        self._hessian = hessian.astype(np.float32)
        self._codes = np.ascontiguousarray(tensor.unpack().T.astype(np.float32))
        self._scales = (tensor.scales / self._unit).astype(np.float32)
        self._zeros = tensor.zero_points.copy()
        self._tensor = tensor
        self._symmetric = symmetric
        self._levels = LEVELS[tensor.quant_type]
        self._middle = np.float32((self._levels.low + self._levels.high) / 2)
        compact = tensor.compact
        steps = np.zeros_like(tensor.scales) if compact is None else by_group(compact.steps, compact.groups)
        self._steps = (steps / self._unit).astype(np.float32)

    def after(self, sweeps: int) -> QuantizedTensor:
        for _ in range(sweeps):
            self._sweep_scales()
            self._sweep_codes()
        self._sweep_scales()
        return self._result() if self._is_finite() else self._tensor

    def _is_finite(self) -> bool:
        """Whether everything is a number that a file may hold, and means a finite weight."""
        scales = (self._scales * self._unit).astype(np.float32)
        if not all(np.isfinite(each).all() for each in (scales, self._zeros, self._codes)):
            return False
        reach = max(abs(self._levels.low), self._levels.high) + np.abs(self._zeros)
        return bool((scales >= np.finfo(np.float32).tiny).all() and (scales * reach < np.inf).all())

    def _result(self) -> QuantizedTensor:
        codes = self._codes.T.astype(np.int8 if self._levels.low < 0 else np.uint8)
        scales, compact = (self._scales * self._unit).astype(np.float32), self._tensor.compact
        if compact is not None:
            steps = by_group(compact.steps.astype(np.float32), compact.groups)
            zero_codes = np.rint(self._zeros * MOST / self._levels.high).astype(np.uint8)
            compact = CompactScales.of(compact.steps, np.rint(scales / steps).astype(np.uint8), zero_codes)
            scales = compact.scales()
        packed = pack(codes, self._tensor.bits)
        return replace(self._tensor, codes=packed, scales=scales, zero_points=self._zeros, compact=compact)

    def _sweep_codes(self) -> None:
        """The best code of each value, column by column."""
        columns = np.arange(len(self._weight))
        scales = per_column(self._scales, self._tensor, columns)
        zeros = per_column(self._zeros, self._tensor, columns)
        changes = self._weight - scales * (self._codes - zeros)
        for start in range(0, len(columns), _COLUMNS_AT_ONCE):
            block = slice(start, min(start + _COLUMNS_AT_ONCE, len(columns)))
            slopes = self._hessian[block] @ changes
            self._column_codes(block, scales[block], zeros[block], changes[block], slopes)

    def _column_codes(self, block: slice, scales: Values, zeros: Values, changes: Values, slopes: Values) -> None:
        weight, codes, hessian = self._weight[block], self._codes[block], self._hessian[block, block]
        moved = np.zeros_like(slopes)
        for k in range(len(slopes)):
            code, before = codes[k], changes[k].copy()
            # The slope of the error along this column, and where along it the error would be least.
            slope = slopes[k] + hessian[k, :k] @ moved[:k] if k else slopes[k]
            np.divide(weight[k] - (before - slope / hessian[k, k]), scales[k], out=code)
            np.rint(code + zeros[k], out=code)
            np.maximum(code, self._levels.low, out=code)
            np.minimum(code, self._levels.high, out=code)
            np.subtract(weight[k], scales[k] * (code - zeros[k]), out=changes[k])
            np.subtract(changes[k], before, out=moved[k])

    def _sweep_scales(self) -> None:
        """The best scale and zero point of each group, group by group; channels must be outputs."""
        if self._tensor.axis != 0:
            return
        size = self._tensor.grouping.size or max(1, len(self._weight))
        columns = np.arange(len(self._weight))
        spread = [per_column(table, self._tensor, columns) for table in (self._scales, self._zeros)]
        changes = self._weight - spread[0] * (self._codes - spread[1])
        slopes = self._hessian @ changes
        for group in range(self._scales.shape[1]):
            rows = slice(group * size, min((group + 1) * size, len(columns)))
            self._scales[:, group], self._zeros[:, group] = self._best_scale(group, rows, slopes[rows])
            now = self._weight[rows] - self._scales[:, group] * (self._codes[rows] - self._zeros[:, group])
            slopes[rows.stop :] += self._hessian[rows.stop :, rows] @ (now - changes[rows])

    def _best_scale(self, group: int, rows: slice, slopes: Values) -> Pair:
        scale, zero = self._scales[:, group], self._zeros[:, group]
        bowl = _Bowl.of(self._codes[rows] - self._middle, self._hessian[rows, rows], slopes)
        start = (scale, scale * (self._middle - zero))  # a value is scale * (code - middle) + offset
        if self._tensor.compact is not None:
            found = self._listed(bowl, start, self._steps[:, group])
        elif self._symmetric:
            found = bowl.along_scale(start, self._middle - zero)
        else:
            found = bowl.lowest(start)
        zeros = zero if self._symmetric else self._snapped(self._middle - found[1] / found[0])
        reach = _ZEROS_BEYOND * (self._levels.high - self._levels.low)
        good = (found[0] > 0) & (np.abs(zeros - self._middle) <= reach)
        return np.where(good, found[0], scale), np.where(good, zeros, zero)

    def _listed(self, bowl: _Bowl, start: Pair, steps: Values) -> Pair:
        """The lowest of all scales that the codec has, [15, out], each with its best zero point; else the start."""
        scales = steps * np.arange(1, MOST + 1, dtype=np.float32)[:, None]
        wanted = start[1] + bowl.best_offset(scales - start[0])
        kept = self._middle - start[1] / start[0]
        zeros = kept if self._symmetric else self._snapped(self._middle - wanted / scales)
        offsets = scales * (self._middle - zeros)
        heights = bowl.height(scales - start[0], offsets - start[1])
        best = heights.argmin(axis=0)[None]
        found, offset = (np.take_along_axis(each, best, axis=0)[0] for each in (scales, offsets))
        lower = np.take_along_axis(heights, best, axis=0)[0] < 0
        return np.where(lower, found, start[0]), np.where(lower, offset, start[1])

    def _snapped(self, zeros: Values) -> Values:
        """Zero points as the codec has them."""
        if self._tensor.compact is None:
            return zeros
        codes = np.nan_to_num(np.rint(zeros * MOST / self._levels.high)).clip(0, MOST).astype(np.int64)
        return zero_levels(self._levels.high)[codes]


@dataclass(frozen=True, eq=False)
class _Bowl:
    """The error as a function of a step in scale and offset, one per output: float32 [out] each.

    ``a ds^2 + 2 b ds dm + d dm^2 - 2 p ds - 2 q dm``.
    """

    a: Values
    b: Values
    d: Values
    p: Values
    q: Values

    @classmethod
    def of(cls, codes: Values, hessian: Values, slopes: Values) -> _Bowl:
        """For a group's codes [length, out], its part of the Hessian, and Hessian times changes [length, out]."""
        turned = hessian @ codes
        total = np.full(codes.shape[1], max(float(hessian.sum()), _SMALLEST), np.float32)
        return cls(
            (codes * turned).sum(axis=0), turned.sum(axis=0), total, (slopes * codes).sum(axis=0), slopes.sum(axis=0)
        )

    def height(self, ds: Values, dm: Values) -> Values:
        height: Values = ds * (self.a * ds + 2 * self.b * dm - 2 * self.p) + dm * (self.d * dm - 2 * self.q)
        return height

    def best_offset(self, ds: Values) -> Values:
        offset: Values = (self.q - self.b * ds) / self.d
        return offset

    def along_scale(self, start: Pair, middle: Values) -> Pair:
        """The lowest scale while the zero point, ``middle`` from the middle of the codes, stays."""
        bend = self.a + middle * (2 * self.b + middle * self.d)
        step = np.where(bend > _SMALLEST, (self.p + middle * self.q) / bend, 0)
        return start[0] + step, start[1] + step * middle

    def lowest(self, start: Pair) -> Pair:
        """The lowest point, or the start where scale and offset cannot be told apart."""
        apart = self.a * self.d - self.b * self.b
        clear = apart > _SINGULAR * self.a * self.d
        ds = (self.p * self.d - self.q * self.b) / np.where(clear, apart, 1)
        dm = (self.q * self.a - self.p * self.b) / np.where(clear, apart, 1)
        return start[0] + np.where(clear, ds, 0), start[1] + np.where(clear, dm, 0)
