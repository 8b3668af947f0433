"""Numbers as their bit lengths and the bits below the highest one, packed: what FM-Delta sends of a difference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def bit_lengths(values: NDArray[np.uint64]) -> Bytes:
    """Bits that each value needs, 0 for 0."""
    lengths = np.zeros(values.size, np.uint8)
    left = values.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = left >= np.uint64(1 << step)
        lengths[high] += np.uint8(step)
        left[high] >>= np.uint64(step)
    return lengths + (left > 0)


def low_bits(values: NDArray[np.uint64], lengths: Bytes) -> Bytes:
    """All bits below the highest one of each value, packed: bit planes, lowest first."""
    flags = [
        ((values[lengths > bit + 1] >> np.uint64(bit)) & np.uint64(1)).astype(np.uint8)
        for bit in range(int(lengths.max(initial=0)) - 1)
    ]
    return np.packbits(np.concatenate(flags)) if flags else np.empty(0, np.uint8)


def from_low_bits(packed: Bytes, lengths: Bytes) -> NDArray[np.uint64]:
    values = np.where(
        lengths > 0, np.uint64(1) << np.maximum(lengths, 1).astype(np.uint64) - np.uint64(1), np.uint64(0)
    )
    bits, at = np.unpackbits(packed), 0
    for bit in range(int(lengths.max(initial=0)) - 1):
        mine = np.flatnonzero(lengths > bit + 1)
        values[mine] |= bits[at : at + mine.size].astype(np.uint64) << np.uint64(bit)
        at += mine.size
    return values
