"""Linear maps straight from packed codes.

A row of codes becomes floats in a buffer that stays in the nearest cache, is used, and is overwritten by the next:
the floats of a whole tensor exist at no time, and neither do its scales where these are packed themselves. Importing
this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.jit import inlined, kernel
from aios_node.engine.nets.packed_vectors import LANES, halves_dot_of, halves_of, row_dot_of, step_of

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_TOGETHER = 16
"""Rows whose scales are opened together: few enough for the nearest cache, enough that a call costs little."""

_step2, _step4, _step8 = (step_of(bits) for bits in (2, 4, 8))
_row_dot2, _row_dot4, _row_dot8 = (row_dot_of(bits) for bits in (2, 4, 8))
_halves2, _halves4 = (halves_of(bits) for bits in (2, 4))
_halves_dot2, _halves_dot4 = (halves_dot_of(bits) for bits in (2, 4))


@kernel
def open_scales(table: Any, first: Any, rows: Any, scales: Floats, offsets: Floats) -> None:
    """Scales of ``rows`` rows from ``first`` on, and ``-scale * zero point`` -> float32 [rows, groups] each.

    ``table``: scales and zero points [n, groups]; or else steps [n, supers], codes of both of 4 bits each, and what a
    step of a zero point is.
    """
    plain_scales, plain_zeros, steps, scale_codes, zero_codes, zero_step = table
    groups = scales.shape[1]
    if not steps.shape[0]:
        for r in range(rows):
            for g in range(groups):
                scales[r, g], offsets[r, g] = plain_scales[first + r, g], plain_zeros[first + r, g]
    elif groups < LANES:
        for r in range(rows):
            step, source = steps[first + r, 0], (first + r) * groups // 2
            for g in range(groups):
                shift = 4 * (g % 2)
                scales[r, g] = step * np.float32((scale_codes[source + g // 2] >> shift) & 15)
                offsets[r, g] = zero_step * np.float32((zero_codes[source + g // 2] >> shift) & 15)
    else:
        for r in range(rows):
            source, target = (first + r) * groups // 2, r * groups
            for s in range(steps.shape[1] - 1, -1, -1):  # the last first: it begins early, so that it is whole
                g = min(LANES * s, groups - LANES)
                _step4(scale_codes, source + g // 2, scales, target + g, steps[first + r, s], np.float32(0))
                _step4(zero_codes, source + g // 2, offsets, target + g, zero_step, np.float32(0))
    for r in range(rows):
        for g in range(groups):
            offsets[r, g] *= -scales[r, g]


@inlined
def fill_row(bits: Any, codes: Bytes, n: Any, scales: Floats, offsets: Floats, r: Any, size: Any, row: Floats) -> None:
    """Row ``n`` of weights from codes [n, bytes] into ``row`` [1, k].

    Its scales and offsets are row ``r`` of [rows, groups], each for ``size`` codes. (Rows are given by number: handing
    over a part of an array counts references, which costs as much as the work.)
    """
    total, chunks = row.shape[1] // LANES, size // LANES
    source, first_scale = n * codes.shape[1], r * scales.shape[1]
    if chunks == 0:
        for c in range(total):
            if bits == 2:
                _halves2(codes, source + 4 * c, row, LANES * c, scales, offsets, first_scale + 2 * c)
            else:
                _halves4(codes, source + 8 * c, row, LANES * c, scales, offsets, first_scale + 2 * c)
    for g in range(scales.shape[1] if chunks else 0):
        scale, offset = scales[r, g], offsets[r, g]
        first, last = g * chunks, min((g + 1) * chunks, total)
        if bits == 2:
            for c in range(first, last):
                _step2(codes, source + 4 * c, row, LANES * c, scale, offset)
        elif bits == 4:
            for c in range(first, last):
                _step4(codes, source + 8 * c, row, LANES * c, scale, offset)
        else:
            for c in range(first, last):
                _step8(codes, source + 16 * c, row, LANES * c, scale, offset)


@inlined
def dot_codes(bits: Any, codes: Bytes, n: Any, scales: Floats, r: Any, size: Any, x: Floats) -> Any:
    """Inner product of ``x`` [1, k] and row ``n``, without what the offsets add."""
    at = n * codes.shape[1]
    if size < LANES:
        total = _halves_dot2(codes, at, scales, r, x) if bits == 2 else _halves_dot4(codes, at, scales, r, x)
    elif bits == 2:
        total = _row_dot2(codes, at, scales, r, size // LANES, x)
    elif bits == 4:
        total = _row_dot4(codes, at, scales, r, size // LANES, x)
    else:
        total = _row_dot8(codes, at, scales, r, size // LANES, x)
    return total


@kernel
def sums_of(x: Floats, groups: Any, size: Any) -> Any:
    """Sums over groups where ``x`` [m, k] is a single row of full groups, else nothing: float32 [groups or 0]."""
    single = x.shape[0] == 1 and groups * size == x.shape[1]
    sums = np.empty(groups if single else 0, np.float32)
    for g in range(sums.shape[0]):
        total = np.float32(0)
        for i in range(g * size, (g + 1) * size):
            total += x[0, i]
        sums[g] = total
    return sums


@kernel
def multiply_one(
    bits: Any,
    codes: Bytes,
    first: Any,
    rows: Any,
    scales: Floats,
    offsets: Floats,
    size: Any,
    bias: Floats,
    x: Floats,
    sums: Floats,
    out: Floats,
) -> None:
    """Columns ``first`` to ``first + rows`` of the result for one row; ``sums`` are those of x over each group."""
    for r in range(rows):
        n, total = first + r, np.float32(0)
        for g in range(scales.shape[1]):
            total += offsets[r, g] * sums[g]
        out[0, n] = total + dot_codes(bits, codes, n, scales, r, size, x) + bias[n]


@kernel
def multiply_some(
    bits: Any,
    codes: Bytes,
    first: Any,
    rows: Any,
    scales: Floats,
    offsets: Floats,
    size: Any,
    bias: Floats,
    x: Floats,
    row: Floats,
    out: Floats,
) -> None:
    """The same for several rows; ``row`` [1, k] is room for the floats of a row of weights."""
    for r in range(rows):
        n = first + r
        fill_row(bits, codes, n, scales, offsets, r, size, row)
        for m in range(x.shape[0]):
            total = np.float32(0)
            for k in range(x.shape[1]):
                total += x[m, k] * row[0, k]
            out[m, n] = total + bias[n]


@kernel
def multiply(bits: Any, codes: Bytes, table: Any, groups: Any, size: Any, bias: Floats, x: Floats, out: Floats) -> None:
    """``x`` [m, k] times weights [n, k] from codes [n, bytes], plus bias [n] -> [m, n].

    ``table``: see ``open_scales``; ``groups`` scales per row, each for ``size`` codes: 8, or a multiple of 16.
    """
    row = np.empty((1, x.shape[1]), np.float32)
    scales, offsets = np.empty((_TOGETHER, groups), np.float32), np.empty((_TOGETHER, groups), np.float32)
    sums = sums_of(x, groups, size)
    for first in range(0, codes.shape[0], _TOGETHER):
        rows = min(_TOGETHER, codes.shape[0] - first)
        open_scales(table, first, rows, scales, offsets)
        if sums.shape[0]:
            multiply_one(bits, codes, first, rows, scales, offsets, size, bias, x, sums, out)
        else:
            multiply_some(bits, codes, first, rows, scales, offsets, size, bias, x, row, out)
