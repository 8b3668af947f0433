"""Reading and writing the pieces of a delta or package: exact counts, sections with a length before them."""

from __future__ import annotations

import struct
from typing import Protocol

from aios_node.delta.limits import check_size
from aios_node.engine.errors import Corrupt

_LENGTH = struct.Struct("<I")
_PIECE = 1 << 22


class Reader(Protocol):
    """What is read from: any binary file, or a pipe."""

    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    """What is written to."""

    def write(self, data: bytes | memoryview, /) -> object: ...


def read_exactly(source: Reader, size: int) -> bytes:
    """So many bytes, read in pieces so that a lie about the size costs no memory. Raises Corrupt at an early end."""
    pieces: list[bytes] = []
    left = size
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise Corrupt(f"the data ends {left} bytes too early")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]


def expect_end(source: Reader) -> None:
    """Raises Corrupt if anything follows."""
    if source.read(1):
        raise Corrupt("there are bytes after the end of the data")


def write_section(out: Writer, data: bytes) -> None:
    """A section: its length as four bytes, little endian, then the bytes."""
    out.write(_LENGTH.pack(len(data)))
    out.write(data)


def read_section(source: Reader, what: str, most: int) -> bytes:
    """The next section. Raises TooLarge beyond ``most`` bytes, Corrupt at an early end."""
    (size,) = _LENGTH.unpack(read_exactly(source, _LENGTH.size))
    return read_exactly(source, check_size(what, size, most))
