"""Which chunks of a staged package are safely on disk: one small file with a fixed slot per chunk.

A slot holds the chunk's CRC-32 and a mark, written only after the chunk itself was synced. Slots are
eight bytes at multiples of eight, so none is ever torn by a crash. The CRC finds chunks that a disk
lost or changed; it is no proof against forgery (the package's SHA-256 is).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from aios_node.delta.disk import Observer, Step, unobserved, write_at

_SLOT = struct.Struct("<II")
_MARK = 0x44415441


def journal_bytes(chunks: int) -> int:
    """Size of the journal file in bytes."""
    return chunks * _SLOT.size


class Journal:
    """The open journal file of one transfer. Raises OSError; whoever owns the transfer names the place."""

    def __init__(self, path: Path, chunks: int, observer: Observer = unobserved) -> None:
        self._chunks = chunks
        self._observer = observer
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self) -> dict[int, int]:
        """The CRC-32 of every chunk that was marked, by chunk number."""
        data = os.pread(self._descriptor, journal_bytes(self._chunks), 0)
        whole = len(data) // _SLOT.size * _SLOT.size
        slots = enumerate(_SLOT.iter_unpack(data[:whole]))
        return {index: crc for index, (crc, mark) in slots if mark == _MARK}

    def mark(self, checksums: Mapping[int, int]) -> None:
        """Record chunks whose bytes are already synced. Durable on return."""
        self._observer(Step.WRITE_JOURNAL)
        for index, crc in checksums.items():
            write_at(self._descriptor, _SLOT.pack(crc, _MARK), index * _SLOT.size)
        self._observer(Step.SYNC_JOURNAL)
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of a chunk."""
    return zlib.crc32(data)
