"""Vectors of 16 packed codes, in LLVM's own language: for parts of compiled loops.

The compiler makes no vectors of shifts that differ from code to code, so the steps that turn 16 codes into 16 floats
are written here by hand; LLVM knows vectors on every processor. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
"""Codes that are turned into floats together: rows must be multiples of it, and groups, or just half of it."""

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


def step_of(bits: int) -> Any:
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


def halves_of(bits: int) -> Any:
    """``halves(codes, at, out, place, scales, offsets, group)``: as ``step``, for two groups of 8 from ``group`` on."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def halves(context: Any, codes: Any, at: Any, out: Any, place: Any, scales: Any, offsets: Any, group: Any) -> Any:
        signature = types.void(codes, types.intp, out, types.intp, scales, offsets, types.intp)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            source, target, scales, offsets = (
                context.make_array(signature.args[n])(context, builder, given[n]).data for n in (0, 2, 4, 5)
            )
            numbers = builder.sitofp(_codes(builder, builder.gep(source, [given[1]]), bits), _FLOATS)
            scaled = builder.fmul(numbers, _two(builder, scales, given[6]), flags=("contract",))
            moved = builder.fadd(scaled, _two(builder, offsets, given[6]), flags=("contract",))
            place = builder.bitcast(builder.gep(target, [given[3]]), _FLOATS.as_pointer())
            builder.store(moved, place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return halves


def _two(builder: Any, floats: Any, first: Any) -> Any:
    """IR for one float in the lower half of all lanes, and the next one in the upper half."""
    pair = _load(builder, builder.gep(floats, [first]), ir.VectorType(_FLOAT, 2))
    return builder.shuffle_vector(pair, pair, _constant([0] * 8 + [1] * 8))


def row_dot_of(bits: int) -> Any:
    """``row_dot(codes, at, scales, row, chunks, x)``: scales times the sums of codes times x, over a row's groups."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def row_dot(context: Any, codes: Any, at: Any, scales: Any, row: Any, chunks: Any, x: Any) -> Any:
        signature = types.float32(codes, types.intp, scales, types.intp, types.intp, x)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            codes, scales, x = (context.make_array(signature.args[n])(context, builder, given[n]) for n in (0, 2, 5))
            total, part = (cgutils.alloca_once(builder, _FLOATS) for _ in range(2))
            builder.store(ir.Constant(_FLOATS, None), total)
            source = builder.gep(codes.data, [given[1]])
            groups, first_scale = _scales_of_row(builder, scales, given[3])
            with cgutils.for_range(builder, groups) as group:
                builder.store(ir.Constant(_FLOATS, None), part)
                first = builder.mul(group.index, given[4])
                with cgutils.for_range(builder, given[4]) as chunk:
                    here = builder.add(first, chunk.index)
                    _accumulate(builder, part, *_both(builder, source, x.data, here, bits))
                scale = _same(builder, builder.load(builder.gep(first_scale, [group.index])))
                _accumulate(builder, total, builder.load(part), scale)
            return _sum(builder, builder.load(total))

        return signature, generate

    return row_dot


def halves_dot_of(bits: int) -> Any:
    """``halves_dot(codes, at, scales, row, x)``: as ``row_dot``, for an even number of groups of 8."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def halves_dot(context: Any, codes: Any, at: Any, scales: Any, row: Any, x: Any) -> Any:
        signature = types.float32(codes, types.intp, scales, types.intp, x)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            codes, scales, x = (context.make_array(signature.args[n])(context, builder, given[n]) for n in (0, 2, 4))
            total = cgutils.alloca_once(builder, _FLOATS)
            builder.store(ir.Constant(_FLOATS, None), total)
            source = builder.gep(codes.data, [given[1]])
            groups, first_scale = _scales_of_row(builder, scales, given[3])
            with cgutils.for_range(builder, builder.udiv(groups, groups.type(2))) as pair:
                numbers, others = _both(builder, source, x.data, pair.index, bits)
                product = builder.fmul(numbers, others)
                first = builder.mul(pair.index, pair.index.type(2))
                _accumulate(builder, total, product, _two(builder, first_scale, first))
            return _sum(builder, builder.load(total))

        return signature, generate

    return halves_dot


def _scales_of_row(builder: Any, scales: Any, row: Any) -> tuple[Any, Any]:
    """IR for how many scales a row of [rows, groups] has, and for where they begin."""
    groups = cgutils.unpack_tuple(builder, scales.shape)[1]
    return groups, builder.gep(scales.data, [builder.mul(row, groups)])


def _both(builder: Any, codes: Any, x: Any, chunk: Any, bits: int) -> tuple[Any, Any]:
    """IR for 16 codes of a row as floats, and for the 16 floats that they are multiplied by."""
    address = builder.gep(codes, [builder.mul(chunk, chunk.type(LANES * bits // 8))])
    others = _load(builder, builder.gep(x, [builder.mul(chunk, chunk.type(LANES))]), _FLOATS)
    return builder.sitofp(_codes(builder, address, bits), _FLOATS), others


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
