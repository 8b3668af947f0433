"""How a package is cut into chunks, and what names one transfer. Pure arithmetic, no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios_node.delta.names import check_model, check_version

MIN_CHUNK = 16 * 1024
MAX_CHUNK = 256 * 1024
_PARTS = 64


@dataclass(frozen=True, order=True)
class TransferKey:
    """What is carried: a version of a model, as a delta from ``base`` or in full (no base)."""

    model: str
    version: str
    base: str | None = None

    def __post_init__(self) -> None:
        check_model(self.model)
        check_version(self.version)
        if self.base is not None:
            check_version(self.base)


def chunk_size(package_bytes: int) -> int:
    """Bytes per chunk: a 64th of the package, but at least 16 KiB and at most 256 KiB."""
    return min(MAX_CHUNK, max(MIN_CHUNK, -(-package_bytes // _PARTS)))


def chunk_count(package_bytes: int) -> int:
    """Number of chunks; the last one may be short. An empty package has none."""
    return -(-package_bytes // chunk_size(package_bytes))


def chunk_span(package_bytes: int, index: int) -> tuple[int, int]:
    """(offset, length) in bytes of one chunk. Raises IndexError outside of the package."""
    size = chunk_size(package_bytes)
    offset = index * size
    if not 0 <= offset < package_bytes:
        raise IndexError(index)
    return offset, min(size, package_bytes - offset)


def as_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending chunk numbers as half-open ranges: 0, 1, 2, 7 -> (0, 3), (7, 8)."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)
