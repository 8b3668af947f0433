"""What identifies a package that is gathered from many: its size, its hash, and the hash of every chunk.

The root binds all of it. Two packages with different roots are never mixed, so that a peer that announces wrong
hashes for the right package harms nobody who gathers it under another root. Knows no peers and no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

from aios_node.delta.chunks import chunk_count
from aios_node.delta.offers import PackageInfo
from aios_node.engine.errors import ProtocolError
from aios_node.engine.weights.names import canonical_json

HASH_BYTES: Final = 32


@dataclass(frozen=True)
class Description:
    """``hashes``: the SHA-256 of every chunk, 32 bytes each, in order. Raises ProtocolError for another number."""

    package: PackageInfo
    hashes: bytes

    def __post_init__(self) -> None:
        if len(self.hashes) != HASH_BYTES * self.count:
            raise ProtocolError(f"{len(self.hashes)} bytes of hashes for a package of {self.count} chunks")

    @property
    def count(self) -> int:
        """Number of chunks."""
        return chunk_count(self.package.bytes)

    @cached_property
    def root(self) -> str:
        """SHA-256 of the package's canonical JSON followed by all hashes, in hexadecimal digits."""
        return hashlib.sha256(canonical_json(asdict(self.package)) + self.hashes).hexdigest()

    def holds(self, index: int, data: bytes | memoryview) -> bool:
        """Whether these bytes are chunk ``index``."""
        place = index * HASH_BYTES
        return hashlib.sha256(data).digest() == self.hashes[place : place + HASH_BYTES]


def chunk_hashes(chunks: Iterable[bytes | memoryview]) -> bytes:
    """The hashes of chunks, in order."""
    return b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)


def spread(turn: int, count: int) -> int:
    """Where the ``turn``-th receiver of a package begins, so that receivers begin far apart.

    The van der Corput sequence in base 2: 0, 1/2, 1/4, 3/4, 1/8, ... of ``count``.
    """
    bits = max(1, turn.bit_length())
    reversed_turn = int(f"{turn:0{bits}b}"[::-1], 2)
    return reversed_turn * count >> bits
