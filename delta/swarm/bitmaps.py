"""Sets of chunk numbers as whole numbers: bit i stands for chunk i. Set algebra over 64 chunks is one machine word.

``Counts`` adds bitmaps up bit by bit (a bit-sliced counter: plane k holds bit k of every chunk's count), so that the
rarest of many chunks are found with a handful of operations. Knows nothing about peers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aios_node.delta.chunks import as_ranges

Bitmap = int


def full(count: int) -> Bitmap:
    """Chunks 0 to ``count`` - 1."""
    return (1 << count) - 1


def from_ranges(ranges: Iterable[tuple[int, int]], count: int) -> Bitmap:
    """Half-open ranges as a bitmap; what lies beyond ``count`` is left out."""
    bits = 0
    for first, end in ranges:
        last = min(end, count)
        if first < last:
            bits |= ((1 << (last - first)) - 1) << first
    return bits


def indices(bits: Bitmap) -> Iterator[int]:
    """Chunk numbers in ascending order."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def to_ranges(bits: Bitmap) -> tuple[tuple[int, int], ...]:
    """The inverse of ``from_ranges``."""
    return as_ranges(indices(bits))


def first_from(bits: Bitmap, start: int) -> int:
    """The first chunk at or after ``start``, else the first of all. ``bits`` must not be empty."""
    above = bits >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1


class Counts:
    """How many holders every chunk has."""

    def __init__(self) -> None:
        self._planes: list[Bitmap] = []

    def add(self, bits: Bitmap) -> None:
        """One more holder for each of these chunks."""
        for place, plane in enumerate(self._planes):
            self._planes[place], bits = plane ^ bits, plane & bits
        if bits:
            self._planes.append(bits)

    def remove(self, bits: Bitmap) -> None:
        """One holder less; they must have been added."""
        for place, plane in enumerate(self._planes):
            self._planes[place], bits = plane ^ bits, ~plane & bits

    def any(self) -> Bitmap:
        """Chunks with at least one holder."""
        found = 0
        for plane in self._planes:
            found |= plane
        return found

    def rarest(self, bits: Bitmap) -> Bitmap:
        """Those of the chunks that have the fewest holders."""
        for plane in reversed(self._planes):
            bits = bits & ~plane or bits
        return bits
