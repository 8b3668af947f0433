"""Codes of 8, 4 or 2 bits as bytes, and back.

Low bits first; the last byte is padded with zero bits. Knows nothing about what codes mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, Corrupt


def _codes_of_byte(bits: int) -> NDArray[np.uint8]:
    """All codes of every byte, low bits first: uint8 [256, 8 // bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1)


# One lookup gives all codes of a byte: [256] of uint16 (int4) or uint32 (int2), viewed as bytes later.
_UNPACKED: dict[int, NDArray[Any]] = {
    4: _codes_of_byte(4).view(np.uint16).reshape(256),
    2: _codes_of_byte(2).view(np.uint32).reshape(256),
}


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack codes into canonical bytes.

    ``codes``: integers of any shape, read in C order; -128..127 for 8 bits, else 0..2**bits - 1 (higher bits
    are cut off). Returns uint8 [ceil(n * bits / 8)]: low bits first, the last byte padded with zero bits.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat.astype(np.int8, copy=False).view(np.uint8)
    per_byte = 8 // bits
    full = np.zeros(packed_size(flat.size, bits) * per_byte, np.uint8)
    np.bitwise_and(flat.astype(np.uint8, copy=False), np.uint8(2**bits - 1), out=full[: flat.size])
    packed = full[0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= full[place::per_byte] << np.uint8(place * bits)
    return packed


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[Any]:
    """The inverse of pack: int8 [count] for 8 bits (a view), uint8 [count] else.

    Raises Corrupt when ``data`` is not exactly the bytes that ``count`` codes take.
    """
    if data.size != packed_size(count, bits):
        raise Corrupt(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {data.size}")
    if bits == 8:
        return data.view(np.int8)
    return _UNPACKED[bits][data].view(np.uint8)[:count]


def check_packed(data: NDArray[np.uint8], count: int, bits: int, what: str = "codes") -> None:
    """Raises BadWeights or Corrupt unless these are the canonical bytes of ``count`` codes."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise BadWeights(f"{what} must be a flat uint8 array, not {data.dtype} of {data.ndim} dimensions")
    if data.size != packed_size(count, bits):
        raise Corrupt(f"{count} {what} of {bits} bits take {packed_size(count, bits)} bytes, not {data.size}")
    used = count * bits % 8
    if used and int(data[-1]) >> used:
        raise Corrupt(f"the padding bits after the last of the {what} are not zero")
