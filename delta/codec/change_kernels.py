"""Compiled loops of the codec ``changes``: how far it is to the next element that changed, and what it became.

Elements are cut into segments. In each, elements belong to one of 16 contexts by the exponent of their base: large
floats change seldom and by one unit in the last place, small ones often and by many. Packed codes are one class as
to their gaps, and three as to their steps. Importing this module imports numba. Knows words and bits, not tensors.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from aios_node.delta.codec.rans import (
    NUMBER_TABLES,
    OVERFLOW,
    Model,
    finished,
    flush,
    fresh_tables,
    get_bits,
    get_number,
    put_bits,
    put_number,
)
from aios_node.engine.jit import bare_kernel

CONTEXTS: Final = 16
SEGMENT: Final = 1 << 20
"""Elements whose gaps are counted together."""

_GAPS: Final = 0
_STEPS: Final = CONTEXTS * NUMBER_TABLES
_TABLES: Final = 2 * _STEPS

_FIRST_STEPS: Final = (16384, 16384, 6144, 6144, 3072, 3072, 2048, 2048, 1536, 1536, 1024, 1024, 2048, 1024, 1024, 1024)
"""Frequencies that tables of steps begin with: small steps are likelier wherever weights are trained."""


def fresh_model() -> Model:
    """Tables of gaps by context, then of steps by context, as they are at the beginning of a block."""
    model = fresh_tables(_TABLES)
    model[0][_STEPS::NUMBER_TABLES] = np.cumsum((0, *_FIRST_STEPS[:-1]))
    return model


@bare_kernel
def _put_gap(symbols: Any, place: Any, out: Any, model: Any, context: Any, gap: Any) -> None:
    put_number(symbols, place, out, model, _GAPS + context * NUMBER_TABLES, np.uint64(gap))


@bare_kernel
def _get_gap(reader: Any, data: Any, model: Any, context: Any) -> Any:
    number = get_number(reader, data, model, _GAPS + context * NUMBER_TABLES)
    return np.int64(number & np.uint64(0x7FFFFFFFFFFFFFFF))


@bare_kernel
def _context(word: Any, mantissa: Any, mask: Any, top: Any) -> Any:
    """How far an exponent lies below ``top``, from 0 to 15; 0 without exponents."""
    below = top - ((np.int64(word) >> mantissa) & mask)
    return max(0, min(CONTEXTS - 1, below))


@bare_kernel
def _ordered(word: Any, sign: Any, full: Any) -> Any:
    """Bits of a float as an integer in the order of the floats; with ``sign`` 0 an integer as it is."""
    return word ^ (full if word & sign else sign)


@bare_kernel
def _step(target: Any, base: Any, sign: Any, full: Any) -> Any:
    """target - base, not 0, modulo the words' range: -1, 1, -2, 2, ... as 0, 1, 2, 3, ..."""
    difference = (_ordered(target, sign, full) - _ordered(base, sign, full)) & full
    half = full ^ (full >> np.uint64(1))
    doubled = (difference << np.uint64(1)) & full
    return (doubled ^ (full if difference & half else np.uint64(0))) - np.uint64(1)


@bare_kernel
def _stepped(number: Any, base: Any, sign: Any, full: Any) -> Any:
    """The inverse of ``_step``: the target."""
    folded = (number + np.uint64(1)) & full
    difference = (folded >> np.uint64(1)) ^ (full if folded & np.uint64(1) else np.uint64(0))
    place = (_ordered(base, sign, full) + difference) & full
    return place ^ (sign if not sign or place & sign else full)


@bare_kernel
def encode_words(target: Any, base: Any, layout: Any, model: Any, buffers: Any, out: Any) -> Any:
    """Code words [n], uint8 to uint64, against a base into ``out``; the bytes used, or OVERFLOW.

    ``layout``: int64 [4]: bits of a word, of a mantissa, mask of an exponent (0: integers), highest exponent.
    ``buffers``: uint32 [RUN], uint32 [SEGMENT] twice, int64 [2] of zeros, int64 [CONTEXTS].
    """
    symbols, where, gaps, place, following = buffers
    mantissa, mask, top = layout[1], layout[2], layout[3]
    full = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - layout[0])
    sign = full ^ (full >> np.uint64(1)) if mask else np.uint64(0)
    for begin in range(0, target.size, SEGMENT):
        end = min(target.size, begin + SEGMENT)
        following[:] = 0
        changes, used = 0, 0
        for index in range(begin, end):
            context = _context(base[index], mantissa, mask, top)
            if base[index] != target[index]:
                where[changes] = index - begin
                gaps[changes] = following[context]
                changes += 1
                used |= 1 << context
            following[context] += 1
        for change in range(changes - 1, -1, -1):
            context = _context(base[begin + where[change]], mantissa, mask, top)
            rank = np.int64(gaps[change])
            gaps[change] = following[context] - rank - 1
            following[context] = rank
        put_bits(symbols, place, out, np.uint64(used), CONTEXTS)
        for context in range(CONTEXTS):
            if (used >> context) & 1:
                _put_gap(symbols, place, out, model, context, following[context])
        for change in range(changes):
            index = begin + where[change]
            context = _context(base[index], mantissa, mask, top)
            step = _step(np.uint64(target[index]), np.uint64(base[index]), sign, full)
            put_number(symbols, place, out, model, _STEPS + context * NUMBER_TABLES, step)
            _put_gap(symbols, place, out, model, context, gaps[change])
            if place[1] < 0:
                return OVERFLOW
    if place[0]:
        flush(symbols, place, out)
    return place[1]


@bare_kernel
def decode_words(words: Any, layout: Any, model: Any, buffers: Any, data: Any) -> Any:
    """Turn a base [n], in place, into the target; False where ``data`` is not what ``encode_words`` wrote.

    ``buffers``: uint64 [4] of zeros, int64 [CONTEXTS].
    """
    reader, left = buffers
    mantissa, mask, top = layout[1], layout[2], layout[3]
    full = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - layout[0])
    sign = full ^ (full >> np.uint64(1)) if mask else np.uint64(0)
    for begin in range(0, words.size, SEGMENT):
        end = min(words.size, begin + SEGMENT)
        used = np.int64(get_bits(reader, data, CONTEXTS))
        for context in range(CONTEXTS):
            left[context] = SEGMENT
            if (used >> context) & 1:
                left[context] = _get_gap(reader, data, model, context)
        for index in range(begin, end):
            word = words[index]
            context = _context(word, mantissa, mask, top)
            left[context] -= 1
            if left[context] < 0:
                step = get_number(reader, data, model, _STEPS + context * NUMBER_TABLES)
                words[index] = _stepped(step, np.uint64(word), sign, full)
                left[context] = _get_gap(reader, data, model, context)
                if reader[3]:
                    return False
    return finished(reader, data)


@bare_kernel
def encode_codes(target: Any, base: Any, bits: Any, model: Any, buffers: Any, out: Any) -> Any:
    """Code bytes [n] that hold codes of 1, 2, 4 or 8 bits, low bits first; otherwise as ``encode_words``."""
    symbols, _, _, place, _ = buffers
    mask = (1 << bits) - 1
    gap = 0
    for index in range(target.size):
        new, old = np.int64(target[index]), np.int64(base[index])
        if new == old:
            gap += 8 // bits
            continue
        for shift in range(0, 8, bits):
            code, before = (new >> shift) & mask, (old >> shift) & mask
            if code == before:
                gap += 1
                continue
            _put_gap(symbols, place, out, model, 0, gap)
            step = _step(np.uint64(code), np.uint64(before), np.uint64(0), np.uint64(mask))
            table = _STEPS + _code_context(before, mask) * NUMBER_TABLES
            put_number(symbols, place, out, model, table, step)
            gap = 0
        if place[1] < 0:
            return OVERFLOW
    _put_gap(symbols, place, out, model, 0, gap)
    flush(symbols, place, out)
    return place[1]


@bare_kernel
def _code_context(before: Any, mask: Any) -> Any:
    """The lowest code can only rise, the highest only fall; the others are one class."""
    return 0 if before == 0 else (1 if before == mask else 2)


@bare_kernel
def decode_codes(codes: Any, bits: Any, model: Any, buffers: Any, data: Any) -> Any:
    """The inverse of ``encode_codes``, otherwise as ``decode_words``."""
    reader, _ = buffers
    mask = (1 << bits) - 1
    total = codes.size * (8 // bits)
    place = np.int64(0)
    while True:
        gap = _get_gap(reader, data, model, 0)
        if reader[3] or gap > total - place:
            return False
        place += gap
        if place == total:
            return finished(reader, data)
        index, shift = place * bits >> 3, (place * bits) & 7
        before = (np.int64(codes[index]) >> shift) & mask
        step = get_number(reader, data, model, _STEPS + _code_context(before, mask) * NUMBER_TABLES)
        code = np.int64(_stepped(step, np.uint64(before), np.uint64(0), np.uint64(mask)))
        codes[index] ^= np.uint8((before ^ code) << shift)
        place += 1
