"""Encoders in the two later formats of PULSE (patches ``PULSEPT1`` of the basilica SDK, versions 1 and 3).

Version 1: changed places as one row of numbers, the first in 4 bytes, each step to the next in 2 (or the mark 0xFFFF
and 4 more), then the new values. Version 3, for bfloat16 only: places are cut into classes by the exponent that the
old value has; a class lists the ranks of its changed places (of its unchanged ones where those are fewer) in a
Golomb-Rice code; values are the zigzag difference of the bits in 1 byte (or 0xFF and 2 more). All of it in one frame
of zstd level 1. Written from the public description; their digests are left out, which makes these smaller than theirs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 1
_ESCAPE = 32
_LARGEST_K = 31

Words = NDArray[Any]
Streams = tuple[bytes, bytes]


def encode_flat(base: Mapping[str, Words], target: Mapping[str, Words]) -> bytes:
    """Version 1: any width."""
    return _encode(base, target, lambda old, new, places: (_steps(places), new[places].tobytes()))


def decode_flat(base: Mapping[str, Words], data: bytes) -> dict[str, Words]:
    """The target of version 1."""

    def apply(old: Words, places: bytes, values: bytes) -> None:
        old[_from_steps(places)] = np.frombuffer(values, old.dtype)

    return _decode(base, data, apply)


def encode_classes(base: Mapping[str, Words], target: Mapping[str, Words]) -> bytes:
    """Version 3: bfloat16."""
    return _encode(base, target, lambda old, new, places: (_classes(places, old), _zigzag(old[places], new[places])))


def decode_classes(base: Mapping[str, Words], data: bytes) -> dict[str, Words]:
    """The target of version 3."""

    def apply(old: Words, places: bytes, values: bytes) -> None:
        changed = _from_classes(places, old)
        old[changed] = _from_zigzag(old[changed], values)

    return _decode(base, data, apply)


def _encode(
    base: Mapping[str, Words], target: Mapping[str, Words], streams: Callable[[Words, Words, Words], Streams]
) -> bytes:
    told, body = [], []
    for name in sorted(target):
        old, new = base[name].reshape(-1), target[name].reshape(-1)
        places = np.flatnonzero(old != new)
        if places.size:
            pair = streams(old, new, places)
            told.append({"name": name, "shape": list(base[name].shape), "bytes": [len(stream) for stream in pair]})
            body += pair
    header = json.dumps({"tensors": told}, separators=(",", ":")).encode()
    coded = zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(body))
    return b"".join([b"PULSEPT1", struct.pack("<I", len(header)), header, coded])


def _decode(base: Mapping[str, Words], data: bytes, apply: Callable[[Words, bytes, bytes], None]) -> dict[str, Words]:
    (length,) = struct.unpack_from("<I", data, 8)
    body = zstandard.ZstdDecompressor().decompress(data[12 + length :])
    result, at = dict(base), 0
    for told in json.loads(data[12 : 12 + length])["tensors"]:
        places, values = told["bytes"]
        changed = base[told["name"]].copy()
        apply(changed.reshape(-1), body[at : at + places], body[at + places : at + places + values])
        result[told["name"]] = changed
        at += places + values
    return result


def _steps(places: Words) -> bytes:
    gaps = np.diff(places)
    large = gaps >= 0xFFFF
    cells = np.zeros((gaps.size, 3), np.uint16)
    cells[:, 0] = np.where(large, 0xFFFF, gaps)
    cells[:, 1:] = gaps.astype(np.uint32).view(np.uint16).reshape(-1, 2)
    kept = np.repeat(large[:, None], 3, axis=1)
    kept[:, 0] = True
    return struct.pack("<I", places[0]) + cells[kept].tobytes()


def _from_steps(data: bytes) -> Words:
    (first,) = struct.unpack_from("<I", data)
    cells = np.frombuffer(data, np.uint16, offset=4).astype(np.int64)
    gaps: list[Words] = []
    start = 0
    for mark in np.flatnonzero(cells == 0xFFFF).tolist():
        if mark >= start:
            gaps += [cells[start:mark], cells[mark + 1 : mark + 2] + (cells[mark + 2 : mark + 3] << 16)]
            start = mark + 3
    return np.cumsum(np.concatenate([[first], *gaps, cells[start:]])).astype(np.int64)


def _classes(places: Words, old: Words) -> bytes:
    kinds, changed = _exponents(old), np.zeros(old.size, bool)
    changed[places] = True
    records, blocks = [], []
    for kind in np.unique(kinds[places]).tolist():
        flags = changed[kinds == kind]
        rest = bool(2 * np.count_nonzero(flags) > flags.size)
        ranks = np.flatnonzero(flags ^ rest)
        block = rice(ranks)
        records.append(struct.pack("<BBII", kind, rest, ranks.size, len(block)))
        blocks.append(block)
    return b"".join([struct.pack("<H", len(records)), *records, *blocks])


def _from_classes(data: bytes, old: Words) -> Words:
    (count,) = struct.unpack_from("<H", data)
    kinds, changed, at = _exponents(old), np.zeros(old.size, bool), 2 + 10 * count
    for record in range(count):
        kind, rest, ranks, length = struct.unpack_from("<BBII", data, 2 + 10 * record)
        members = np.flatnonzero(kinds == kind)
        flags = np.full(members.size, bool(rest))
        flags[from_rice(data[at : at + length], ranks)] ^= True
        changed[members[flags]] = True
        at += length
    return np.flatnonzero(changed)


def _exponents(old: Words) -> Words:
    return (old >> 7) & 0xFF


def rice(ranks: Words) -> bytes:
    """Rising numbers: k | bytes of the unary part | quotients in unary | k low bits each | quotients of 32 or more."""
    if not ranks.size:
        return b""
    values = np.diff(ranks, prepend=-1) - 1
    k = min(_candidates(values), key=lambda each: _cost(values, each))
    quotients = values >> k
    bits = np.ones(_up_to_bytes(int((np.minimum(quotients, _ESCAPE) + 1).sum())), np.uint8)
    bits[np.cumsum(np.minimum(quotients, _ESCAPE) + 1) - 1] = 0
    unary = np.packbits(bits).tobytes()
    low = ((values[:, None] >> np.arange(k - 1, -1, -1)) & 1).astype(np.uint8)
    escapes = quotients[quotients >= _ESCAPE].astype(np.uint32)
    return b"".join([struct.pack("<BI", k, len(unary)), unary, np.packbits(low).tobytes(), escapes.tobytes()])


def from_rice(data: bytes, count: int) -> Words:
    """The inverse of ``rice``."""
    if not count:
        return np.empty(0, np.int64)
    k, length = struct.unpack_from("<BI", data)
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8, length, 5)) == 0)[:count]
    quotients = np.diff(ends, prepend=-1) - 1
    size = -(-count * k // 8)
    low = np.unpackbits(np.frombuffer(data, np.uint8, size, 5 + length), count=count * k).reshape(count, k)
    quotients[quotients == _ESCAPE] = np.frombuffer(data, np.uint32, offset=5 + length + size)
    values = (quotients << k) + low.astype(np.int64) @ (1 << np.arange(k - 1, -1, -1))
    return np.cumsum(values + 1) - 1


def _candidates(values: Words) -> range:
    best = math.log2(max(1.0, float(values.mean()) * math.log(2)))
    return range(max(0, int(best) - 1), min(_LARGEST_K, int(best) + 2) + 1)


def _cost(values: Words, k: int) -> int:
    quotients = values >> k
    return int(np.minimum(quotients, _ESCAPE).sum()) + values.size * (1 + k) + 32 * int((quotients >= _ESCAPE).sum())


def _up_to_bytes(bits: int) -> int:
    return -(-bits // 8) * 8


def _zigzag(old: Words, new: Words) -> bytes:
    step = (new - old).view(np.int16)
    folded = ((step << 1) ^ (step >> 15)).view(np.uint16)
    large = folded >= 0xFF
    return np.where(large, 0xFF, folded).astype(np.uint8).tobytes() + folded[large].tobytes()


def _from_zigzag(old: Words, data: bytes) -> Words:
    folded = np.frombuffer(data, np.uint8, old.size).astype(np.uint16)
    folded[folded == 0xFF] = np.frombuffer(data, np.uint16, offset=old.size)
    return ((folded >> 1) ^ (0 - (folded & 1))).astype(np.uint16) + old
