"""Compiled parts of an entropy coder: symbols out of 16 whose probabilities are learned, whole numbers, plain bits.

A symbol's probability comes from a table of 16 cumulative frequencies that moves with every symbol, the same way on
both sides. Integers only: every processor gets the same bytes. Range asymmetric numeral systems (rANS; Duda 2013,
arXiv 1311.2540) with a state of 64 bits and words of 32; tables that mix as AV1's do. docs/delta.md has every bit.

Importing this module imports numba. Everything here is for other compiled code.

Writers have ``symbols`` uint32 [RUN] (start << 16 | frequency - 1, waiting to be coded), ``place`` int64 [2] (symbols
that wait, bytes written or OVERFLOW) and ``out`` uint8 [room]. Readers have ``reader`` uint64 [4] (state, next byte,
symbols left in the run, whether something was wrong) and ``data`` uint8 [size].
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.jit import bare_kernel

RUN: Final = 1 << 18
"""Symbols that share one state of the coder."""

TOTAL: Final = 1 << 16
"""Sum of a table's frequencies."""

OVERFLOW: Final = -1
"""What a writer's place says when there was no room."""

RATES: Final = np.array([1] + [2] * 2 + [3] * 4 + [4] * 9 + [5] * 20 + [6] * 40 + [7], np.int32)
"""A table moves by 1 / 2^rate towards the symbol it has seen, from one rate to the next: fast at first."""

DIRECT: Final = 12
"""Numbers below are one symbol."""

NUMBER_TABLES: Final = 1 + 4 + 16
"""Tables that numbers of one kind need: one for the first symbol, 4 for the second, 16 (12 in use) for the third."""

_SECOND: Final = 1
_THIRD: Final = 5

_LOWEST: Final = np.uint64(1 << 31)

Model = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""Where each symbol of each table begins, int32 [tables, 16]; how often each was used, int32 [tables]; RATES."""


def fresh_tables(tables: int) -> Model:
    """Tables in which every symbol is as likely."""
    return np.tile(np.arange(16, dtype=np.int32) * (TOTAL // 16), (tables, 1)), np.zeros(tables, np.int32), RATES


@bare_kernel
def _learn(model: Any, table: Any, symbol: Any) -> None:
    starts, seen, rates = model
    count = seen[table]
    rate = rates[count]
    if count < rates.size - 1:
        seen[table] = count + 1
    for other in range(starts.shape[1]):  # a loop of unknown length is the one that gets vector instructions
        wanted = other if other <= symbol else TOTAL - 16 + other  # so that each frequency stays at least 1
        starts[table, other] += (wanted - starts[table, other]) >> rate


@bare_kernel
def log2(value: Any) -> Any:
    """The place of the highest bit that is set in a uint64 above 0."""
    place = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> np.uint64(step):
            value >>= np.uint64(step)
            place += step
    return place


@bare_kernel
def flush(symbols: Any, place: Any, out: Any) -> None:
    """Code what waits behind what is written: the state, then the words, as the reader needs them."""
    state = _LOWEST
    written, room, begin = place[1], (out.size - place[1] - 8) // 4, out.size
    if written < 0 or room < 0:
        place[1] = OVERFLOW
        return
    for index in range(place[0] - 1, -1, -1):
        start = np.uint64(symbols[index] >> np.uint32(16))
        frequency = np.uint64(symbols[index] & np.uint32(0xFFFF)) + np.uint64(1)
        if state >= frequency << np.uint64(47):
            if room == 0:
                place[1] = OVERFLOW
                return
            room -= 1
            begin -= 4  # from the end of the room backwards: the word written last is read first
            _store(out, begin, state, 4)
            state >>= np.uint64(32)
        state = ((state // frequency) << np.uint64(16)) + state % frequency + start
    _store(out, written, state, 8)
    length = out.size - begin
    for byte in range(length):
        out[written + 8 + byte] = out[begin + byte]
    place[0], place[1] = 0, written + 8 + length


@bare_kernel
def _store(out: Any, at: Any, value: Any, count: Any) -> None:
    for byte in range(count):
        out[at + byte] = np.uint8((value >> np.uint64(8 * byte)) & np.uint64(0xFF))


@bare_kernel
def _put(symbols: Any, place: Any, out: Any, start: Any, frequency: Any) -> None:
    symbols[place[0]] = np.uint32((start << 16) | (frequency - 1))
    place[0] += 1
    if place[0] == symbols.size:
        flush(symbols, place, out)
        place[0] = 0


@bare_kernel
def put_symbol(symbols: Any, place: Any, out: Any, model: Any, table: Any, symbol: Any) -> None:
    """One symbol, 0 to 15, by what its table has learned."""
    start = model[0][table, symbol]
    end = TOTAL if symbol == 15 else model[0][table, symbol + 1]
    _put(symbols, place, out, start, end - start)
    _learn(model, table, symbol)


@bare_kernel
def put_bits(symbols: Any, place: Any, out: Any, value: Any, count: Any) -> None:
    """The lowest ``count`` bits of a uint64, the lowest first, at most 15 at a time."""
    while count > 0:
        part = min(count, 15)
        low = np.int64(value & np.uint64((1 << part) - 1))
        _put(symbols, place, out, low << (16 - part), 1 << (16 - part))
        value >>= np.uint64(part)
        count -= part


@bare_kernel
def put_number(symbols: Any, place: Any, out: Any, model: Any, table: Any, number: Any) -> None:
    """A uint64 below 2^64 - 4. ``table``: the first of its NUMBER_TABLES."""
    if number < np.uint64(DIRECT):
        put_symbol(symbols, place, out, model, table, np.int64(number))
        return
    shifted = number + np.uint64(4)
    size = log2(shifted)
    octave = size - 4
    leading = (octave & 3) * 4 + np.int64((shifted >> np.uint64(size - 2)) & np.uint64(3))
    group = octave >> 2
    if group < 3:
        put_symbol(symbols, place, out, model, table, DIRECT + group)
        put_symbol(symbols, place, out, model, table + _SECOND + group, leading)
    else:
        put_symbol(symbols, place, out, model, table, 15)
        put_symbol(symbols, place, out, model, table + _SECOND + 3, group - 3)
        put_symbol(symbols, place, out, model, table + _THIRD + group - 3, leading)
    put_bits(symbols, place, out, shifted, size - 2)


@bare_kernel
def _begin_run(reader: Any, data: Any) -> None:
    at = np.int64(reader[1])
    if at + 8 > data.size:
        reader[3] = np.uint64(1)
        reader[0] = _LOWEST
    else:
        reader[0] = _load(data, at, 8)
        reader[1] = np.uint64(at + 8)
    reader[2] = np.uint64(RUN)


@bare_kernel
def _load(data: Any, at: Any, count: Any) -> Any:
    value = np.uint64(0)
    for byte in range(count):
        value |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return value


@bare_kernel
def _advance(reader: Any, data: Any, start: Any, frequency: Any) -> None:
    state = reader[0]
    state = frequency * (state >> np.uint64(16)) + (state & np.uint64(0xFFFF)) - start
    if state < _LOWEST:
        at = np.int64(reader[1])
        if at + 4 > data.size:
            reader[3] = np.uint64(1)
            state = _LOWEST
        else:
            state = (state << np.uint64(32)) | _load(data, at, 4)
            reader[1] = np.uint64(at + 4)
    reader[0] = state
    reader[2] -= np.uint64(1)
    if reader[2] == np.uint64(0) and state != _LOWEST:
        reader[3] = np.uint64(1)


@bare_kernel
def get_symbol(reader: Any, data: Any, model: Any, table: Any) -> Any:
    """The next symbol of a table."""
    if reader[2] == np.uint64(0):
        _begin_run(reader, data)
    low = np.int32(reader[0] & np.uint64(0xFFFF))
    symbol = -1
    for other in range(model[0].shape[1]):
        symbol += 1 if model[0][table, other] <= low else 0
    start = model[0][table, symbol]
    end = TOTAL if symbol == 15 else model[0][table, symbol + 1]
    _advance(reader, data, np.uint64(start), np.uint64(end - start))
    _learn(model, table, symbol)
    return symbol


@bare_kernel
def get_bits(reader: Any, data: Any, count: Any) -> Any:
    """So many bits as a uint64."""
    value, have = np.uint64(0), 0
    while count > 0:
        if reader[2] == np.uint64(0):
            _begin_run(reader, data)
        part = min(count, 15)
        low = (reader[0] & np.uint64(0xFFFF)) >> np.uint64(16 - part)
        _advance(reader, data, low << np.uint64(16 - part), np.uint64(1 << (16 - part)))
        value |= low << np.uint64(have)
        have += part
        count -= part
    return value


@bare_kernel
def get_number(reader: Any, data: Any, model: Any, table: Any) -> Any:
    """The next whole number, uint64. ``table`` as in put_number."""
    symbol = get_symbol(reader, data, model, table)
    if symbol < DIRECT:
        return np.uint64(symbol)
    group = symbol - DIRECT
    if group < 3:
        leading = get_symbol(reader, data, model, table + _SECOND + group)
    else:
        group = 3 + get_symbol(reader, data, model, table + _SECOND + 3)
        if group > 14:  # 2^64 and more
            reader[3] = np.uint64(1)
            group = 14
        leading = get_symbol(reader, data, model, table + _THIRD + group - 3)
    size = group * 4 + (leading >> 2) + 4
    rest = get_bits(reader, data, size - 2)
    high = np.uint64(4 | (leading & 3)) << np.uint64(size - 2)
    return (high | rest) - np.uint64(4)


@bare_kernel
def finished(reader: Any, data: Any) -> Any:
    """Whether everything was read, the coder is back where it began, and nothing was wrong."""
    at_start = reader[2] == np.uint64(0) or reader[0] == _LOWEST
    return at_start and reader[3] == np.uint64(0) and np.int64(reader[1]) == data.size
