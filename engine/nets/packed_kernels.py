"""Linear maps and table rows straight from packed codes.

A row of codes becomes floats in a buffer that stays in the nearest cache, is used, and is overwritten by the next:
the floats of a whole tensor exist at no time. The compiler makes no vectors of shifts that differ from code to code,
so the step that turns 16 codes into 16 floats is written in LLVM's own language, which knows vectors on every
processor. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from aios_node.engine.jit import inlined, kernel

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LANES = 16
"""Codes that are turned into floats together: rows and groups must be multiples of it to be used here."""

_INT, _FLOAT = ir.IntType(32), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)


def _codes(builder: Any, address: Any, bits: int) -> Any:
    """IR for 16 codes from this address on, as <16 x i32>."""
    if bits == 8:
        narrow = ir.VectorType(ir.IntType(8), LANES)
        return builder.sext(_load(builder, address, narrow), _INTS)
    per_word = 32 // bits
    words = _load(builder, address, ir.VectorType(_INT, LANES // per_word))
    spread = builder.shuffle_vector(words, words, _constant([lane // per_word for lane in range(LANES)]))
    shifted = builder.lshr(spread, _constant([lane % per_word * bits for lane in range(LANES)]))
    return builder.and_(shifted, _constant([2**bits - 1] * LANES))


def _constant(values: list[int]) -> Any:
    return ir.Constant(_INTS, values)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=1)


def _same(builder: Any, value: Any) -> Any:
    """IR for a float in all lanes."""
    single = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, _INT(0))
    return builder.shuffle_vector(single, single, _constant([0] * LANES))


def _step(bits: int) -> Any:
    """``step(codes, at, out, place, scale, offset)``: out[place : place + 16] = scale * code + offset."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def step(context: Any, codes: Any, at: Any, out: Any, place: Any, scale: Any, offset: Any) -> Any:
        signature = types.void(codes, types.intp, out, types.intp, types.float32, types.float32)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            source, target = (context.make_array(signature.args[n])(context, builder, given[n]).data for n in (0, 2))
            numbers = builder.sitofp(_codes(builder, builder.gep(source, [given[1]]), bits), _FLOATS)
            scaled = builder.fmul(numbers, _same(builder, given[4]), flags=("contract",))
            moved = builder.fadd(scaled, _same(builder, given[5]), flags=("contract",))
            place = builder.bitcast(builder.gep(target, [given[3]]), _FLOATS.as_pointer())
            builder.store(moved, place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return step


def _row_dot(bits: int) -> Any:
    """``row_dot(codes, at, scales, row, chunks, x)``: scale times the sum of codes times x, over a row's groups."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def row_dot(context: Any, codes: Any, at: Any, scales: Any, row: Any, chunks: Any, x: Any) -> Any:
        signature = types.float32(codes, types.intp, scales, types.intp, types.intp, x)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            codes, scales, x = (context.make_array(signature.args[n])(context, builder, given[n]) for n in (0, 2, 5))
            total, part = (cgutils.alloca_once(builder, _FLOATS) for _ in range(2))
            builder.store(ir.Constant(_FLOATS, None), total)
            groups = cgutils.unpack_tuple(builder, scales.shape)[1]
            source = builder.gep(codes.data, [given[1]])
            first_scale = builder.gep(scales.data, [builder.mul(given[3], groups)])
            with cgutils.for_range(builder, groups) as group:
                builder.store(ir.Constant(_FLOATS, None), part)
                first = builder.mul(group.index, given[4])
                with cgutils.for_range(builder, given[4]) as chunk:
                    here = builder.add(first, chunk.index)
                    address = builder.gep(source, [builder.mul(here, here.type(LANES * bits // 8))])
                    numbers = builder.sitofp(_codes(builder, address, bits), _FLOATS)
                    others = _load(builder, builder.gep(x.data, [builder.mul(here, here.type(LANES))]), _FLOATS)
                    _accumulate(builder, part, numbers, others)
                scale = _same(builder, builder.load(builder.gep(first_scale, [group.index])))
                _accumulate(builder, total, builder.load(part), scale)
            return _sum(builder, builder.load(total))

        return signature, generate

    return row_dot


def _accumulate(builder: Any, place: Any, left: Any, right: Any) -> None:
    """IR for ``place += left * right``."""
    product = builder.fmul(left, right, flags=("contract",))
    builder.store(builder.fadd(builder.load(place), product, flags=("contract",)), place)


def _sum(builder: Any, lanes: Any) -> Any:
    """IR for the sum over all lanes."""
    for step in (8, 4, 2, 1):
        moved = builder.shuffle_vector(lanes, lanes, _constant([(lane + step) % LANES for lane in range(LANES)]))
        lanes = builder.fadd(lanes, moved)
    return builder.extract_element(lanes, _INT(0))


_step2, _step4, _step8 = (_step(bits) for bits in (2, 4, 8))
_row_dot2, _row_dot4, _row_dot8 = (_row_dot(bits) for bits in (2, 4, 8))


@inlined
def fill_row(bits: Any, codes: Bytes, n: Any, scales: Floats, zeros: Floats, chunks: Any, out: Floats, r: Any) -> None:
    """Row ``n`` of weights from codes [n, bytes] into row ``r`` of ``out`` [rows, k].

    Its scales and zero points are row ``n`` of [n, groups], each for ``chunks`` times 16 codes. (Rows are given by
    number: handing over a part of an array counts references, which costs as much as the work.)
    """
    total = out.shape[1] // LANES
    source, target = n * codes.shape[1], r * out.shape[1]
    for g in range(scales.shape[1]):
        scale, offset = scales[n, g], -scales[n, g] * zeros[n, g]
        first, last = g * chunks, min((g + 1) * chunks, total)
        if bits == 2:
            for c in range(first, last):
                _step2(codes, source + 4 * c, out, target + LANES * c, scale, offset)
        elif bits == 4:
            for c in range(first, last):
                _step4(codes, source + 8 * c, out, target + LANES * c, scale, offset)
        else:
            for c in range(first, last):
                _step8(codes, source + 16 * c, out, target + LANES * c, scale, offset)


@inlined
def group_sums(x: Floats, size: Any, sums: Floats) -> None:
    """Sums of runs of ``size`` values of ``x`` [1, k] -> float32 [groups]."""
    for g in range(sums.shape[0]):
        total = np.float32(0)
        for i in range(g * size, (g + 1) * size):
            total += x[0, i]
        sums[g] = total


@inlined
def dot_codes(
    bits: Any, codes: Bytes, n: Any, scales: Floats, zeros: Floats, chunks: Any, x: Floats, sums: Floats
) -> Any:
    """Inner product of ``x`` [1, k] and row ``n``; ``sums`` [groups] are those of x over each group, all full."""
    total = np.float32(0)
    for g in range(scales.shape[1]):
        total -= scales[n, g] * zeros[n, g] * sums[g]
    if bits == 2:
        total += _row_dot2(codes, n * codes.shape[1], scales, n, chunks, x)
    elif bits == 4:
        total += _row_dot4(codes, n * codes.shape[1], scales, n, chunks, x)
    else:
        total += _row_dot8(codes, n * codes.shape[1], scales, n, chunks, x)
    return total


@inlined
def multiply_row(
    bits: Any,
    codes: Bytes,
    n: Any,
    scales: Floats,
    zeros: Floats,
    chunks: Any,
    bias: Floats,
    x: Floats,
    sums: Floats,
    row: Floats,
    out: Floats,
) -> None:
    """Column ``n`` of the result [m, n]; ``row`` [1, k] is room for the floats of one row."""
    if sums.shape[0]:
        out[0, n] = dot_codes(bits, codes, n, scales, zeros, chunks, x, sums) + bias[n]
    else:
        fill_row(bits, codes, n, scales, zeros, chunks, row, 0)
        for m in range(x.shape[0]):
            total = np.float32(0)
            for k in range(x.shape[1]):
                total += x[m, k] * row[0, k]
            out[m, n] = total + bias[n]


@kernel
def sums_of(x: Floats, groups: Any, size: Any) -> Any:
    """Sums over groups where ``x`` [m, k] is a single row of full groups, else nothing: float32 [groups or 0]."""
    single = x.shape[0] == 1 and groups * size == x.shape[1]
    sums = np.empty(groups if single else 0, np.float32)
    if single:
        group_sums(x, size, sums)
    return sums


@kernel
def multiply(
    bits: Any, codes: Bytes, scales: Floats, zeros: Floats, chunks: Any, bias: Floats, x: Floats, out: Floats
) -> None:
    """``x`` [m, k] times weights [n, k] from codes [n, bytes], plus bias [n] -> [m, n]; scales, zeros [n, groups]."""
    row = np.empty((1, x.shape[1]), np.float32)
    sums = sums_of(x, scales.shape[1], chunks * LANES)
    for n in range(codes.shape[0]):
        multiply_row(bits, codes, n, scales, zeros, chunks, bias, x, sums, row, out)


@kernel
def fill_rows(bits: Any, codes: Bytes, scales: Floats, zeros: Floats, chunks: Any, chosen: Any, out: Floats) -> None:
    """Rows ``chosen`` int64 [r] of a table [n, k] -> float32 [r, k]; the rest as in ``multiply``."""
    for r in range(chosen.shape[0]):
        fill_row(bits, codes, chosen[r], scales, zeros, chunks, out, r)
