"""The disk's refusals as clear errors, and files that are whole or absent.

Knows SQLite's error codes and the operating system's; nothing about memories.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aios_node.engine.errors import AiosError, Busy, Corrupt, StorageError, StorageFull, TooLarge

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


def storage_error(error: OSError | sqlite3.Error, what: str) -> AiosError:
    """The error of the tree that fits; ``what`` names the table or file."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            return StorageFull(f"{what}: the disk is full; nothing was stored, free some space and try again")
        return StorageError(f"{what}: {reason}; check that the folder exists and may be written")
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{what}: the disk is full; nothing was stored, free some space and try again")
    if code in _BUSY:
        return Busy(f"{what}: another process is writing to this table; try again")
    if code in _CORRUPT:
        return Corrupt(f"{what}: the file is damaged or no memory table ({error}); restore it from an export")
    if code == sqlite3.SQLITE_TOOBIG:
        return TooLarge(f"{what}: a value is larger than SQLite can hold")
    if code == sqlite3.SQLITE_READONLY:
        return StorageError(f"{what}: the folder or file is read-only")
    return StorageError(f"{what}: {error}; check the disk and the folder's rights")


@contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Turn errors of SQLite and the operating system inside the block into the project's own."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise storage_error(error, what) from error


def sync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it replaces ``path`` durably, otherwise it is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
