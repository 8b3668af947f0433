"""One package on its way in: its folder, its chunks, and the proof that they are the promised bytes.

The order is what makes it safe: chunk bytes, fdatasync, journal slots, fdatasync. Syncs are shared by
about 1 MiB of chunks. Space for the whole package is taken when the folder is made. The module does not
know which other transfers exist (``staging`` does), nor what a package means.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from aios_node.delta.chunks import TransferKey, as_ranges, chunk_count, chunk_size, chunk_span
from aios_node.delta.disk import Observer, Step, disk_errors, write_at, write_durably
from aios_node.delta.names import check_version, short
from aios_node.delta.staging.journal import Journal, checksum, journal_bytes
from aios_node.engine.errors import BadRequest, HashMismatch, ProtocolError, TransferAborted

FLUSH_BYTES = 1 << 20
DATA, _JOURNAL, _FACTS, _TOUCHED = "data", "journal", "transfer.json", "touched"
_FACTS_LIMIT = 4096

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Staged:
    """One transfer in the staging folder; ``bytes`` and ``sha256`` are the whole package's.

    ``touched`` is higher the later the transfer was last opened.
    """

    key: TransferKey
    bytes: int
    sha256: str
    touched: int = 0


class Leave(Protocol):
    """How a transfer tells the staging folder that it was closed."""

    def __call__(self, key: TransferKey, *, discard: bool) -> None: ...


class Transfer:
    """An open transfer. One thread at a time; close it, discard it, or use it in a ``with`` block."""

    def __init__(self, folder: Path, staged: Staged, *, leave: Leave, observer: Observer) -> None:
        self._folder, self._staged = folder, staged
        self._leave, self._observer = leave, observer
        self._pending: dict[int, int] = {}
        self._pending_bytes = 0
        self._closed = False
        self._data = os.open(folder / DATA, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._journal = Journal(folder / _JOURNAL, self.chunks, observer)
            self._durable = {index for index, crc in self._journal.read().items() if self._holds(index, crc)}
        except BaseException:
            os.close(self._data)
            raise

    @property
    def key(self) -> TransferKey:
        return self._staged.key

    @property
    def bytes(self) -> int:
        """Size of the whole package."""
        return self._staged.bytes

    @property
    def sha256(self) -> str:
        """Promised hash of the whole package."""
        return self._staged.sha256

    @property
    def chunks(self) -> int:
        """Number of chunks of the whole package."""
        return chunk_count(self._staged.bytes)

    @property
    def chunk_size(self) -> int:
        """Bytes of every chunk but the last."""
        return chunk_size(self._staged.bytes)

    @property
    def durable(self) -> int:
        """Number of chunks that would survive kill -9 now."""
        return len(self._durable)

    @property
    def complete(self) -> bool:
        return len(self._durable) + len(self._pending) == self.chunks

    def keep(self, right: Callable[[int, Bytes], bool]) -> None:
        """Ask about every chunk that is here; those that are not right count as missing."""
        for index in sorted(self._durable):
            offset, length = chunk_span(self.bytes, index)
            if not right(index, os.pread(self._data, length, offset)):
                self._durable.discard(index)

    def missing(self) -> tuple[tuple[int, int], ...]:
        """Chunks not yet received, as ascending half-open ranges."""
        return as_ranges(
            index for index in range(self.chunks) if index not in self._durable and index not in self._pending
        )

    def write(self, index: int, data: Bytes) -> bool:
        """Take one chunk; False if it was already here. Durable after the next ``flush``, which comes by
        itself with every MiB.

        Raises ProtocolError for a chunk that the package does not have or of another length, StorageFull
        and StorageError when the disk refuses: the chunk is then missing still, the others are kept.
        """
        try:
            offset, length = chunk_span(self.bytes, index)
        except IndexError:
            raise ProtocolError(f"chunk {index} of a package of {self.chunks} chunks") from None
        if len(data) != length:
            raise ProtocolError(f"chunk {index} has {len(data)} bytes instead of {length}")
        if index in self._durable or index in self._pending:
            return False
        self._check_open()
        with disk_errors(self._folder, "stage a chunk"):
            self._observer(Step.WRITE_CHUNK)
            write_at(self._data, data, offset)
        self._pending[index] = checksum(data)
        self._pending_bytes += length
        if self._pending_bytes >= FLUSH_BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """Make every received chunk durable. If the disk refuses, chunks since the last flush are missing again."""
        if not self._pending:
            return
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        with disk_errors(self._folder, "stage chunks"):
            self._observer(Step.SYNC_CHUNKS)
            os.fdatasync(self._data)
            self._journal.mark(pending)
        self._durable.update(pending)

    def assemble(self) -> Path:
        """The whole package as a file, once all chunks are here and have the promised hash.

        The file stays until ``discard``, so that what follows may be tried again after a crash. Raises
        ProtocolError while chunks are missing; HashMismatch discards everything staged, so that the next
        attempt begins afresh and can succeed.
        """
        self._check_open()
        self.flush()
        if not self.complete:
            raise ProtocolError(f"package committed with {self.chunks - len(self._durable)} chunks missing")
        path = self._folder / DATA
        with disk_errors(path, "read a package"):
            self._observer(Step.ASSEMBLE)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            self.discard()
            raise HashMismatch(
                f"the package of {self.key.model} {short(self.key.version)} has the hash {short(found)} "
                f"instead of {short(self.sha256)}: it was thrown away, the next sync asks for it again"
            )
        return path

    def discard(self) -> None:
        """Close the transfer and forget all that was staged. Does nothing once it is closed."""
        if not self._closed:
            self._close()
            self._leave(self.key, discard=True)

    def close(self) -> None:
        """Flush and close; what is staged waits for the next attempt. A second call does nothing."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._close()
            self._leave(self.key, discard=False)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _holds(self, index: int, crc: int) -> bool:
        offset, length = chunk_span(self.bytes, index)
        return checksum(os.pread(self._data, length, offset)) == crc

    def _check_open(self) -> None:
        """A closed descriptor's number may belong to another file by now."""
        if self._closed:
            raise TransferAborted(f"the transfer of {self.key.model} {short(self.key.version)} was closed")

    def _close(self) -> None:
        self._closed = True
        os.close(self._data)
        self._journal.close()


def create_transfer(folder: Path, staged: Staged) -> None:
    """Fill an empty folder for a transfer of which nothing has arrived yet. Raises OSError."""
    _allocate(folder / DATA, staged.bytes)
    _allocate(folder / _JOURNAL, journal_bytes(chunk_count(staged.bytes)))
    key = staged.key
    facts = {
        "format": 1,
        "model": key.model,
        "version": key.version,
        "base": key.base,
        "bytes": staged.bytes,
        "sha256": staged.sha256,
    }
    write_durably(folder / _FACTS, json.dumps(facts).encode())


def read_transfer(folder: Path) -> Staged | None:
    """What a transfer's folder holds, or None if it is not whole (half-made, half-removed or damaged)."""
    try:
        with (folder / _FACTS).open("rb") as file:
            facts = json.loads(file.read(_FACTS_LIMIT))
        if facts["format"] != 1 or type(facts["bytes"]) is not int:
            return None
        key = TransferKey(facts["model"], facts["version"], facts["base"])
        staged = Staged(key, facts["bytes"], check_version(facts["sha256"]), _read_touched(folder))
        sizes = (folder / DATA).stat().st_size, (folder / _JOURNAL).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, BadRequest):
        return None
    expected = staged.bytes, journal_bytes(chunk_count(staged.bytes))
    return staged if staged.bytes > 0 and sizes == expected else None


def write_touched(folder: Path, touched: int) -> None:
    """Remember how recently a transfer was used. Losing it in a crash costs nothing but the order."""
    (folder / _TOUCHED).write_text(str(touched))


def _read_touched(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / _TOUCHED).read_text()[:20])
    return 0


def _allocate(path: Path, size: int) -> None:
    """Make a file of zeros whose space is really taken: a full disk shows now, not in the middle."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
