"""Files that are whole or not there, and errors of the disk that people understand.

Knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aios_node.engine.errors import Corrupt, NotFound, StorageError, StorageFull, TooLarge

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn OSError into NotFound, StorageFull or StorageError that name the work and the place."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"cannot {doing}: {error.filename or path} does not exist") from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageFull(f"cannot {doing} {path}: {reason}; free some space and try again") from error
        raise StorageError(f"cannot {doing} {path}: {reason}; check the disk and its rights") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and make its content durable. Never touches an existing one: it may be a hard link."""
    with disk_errors(path, "write"), path.open("xb") as file:
        file.write(data)
        sync_file(file)


def sync_file(file: BinaryIO) -> None:
    """Make a file's content durable."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int) -> bytes:
    """A whole small file. Raises NotFound, TooLarge (before reading), StorageError."""
    with disk_errors(path, "read"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise TooLarge(f"{path} has {size} bytes; at most {limit} are read")
        data = file.read(size + 1)  # reading "up to the limit" would allocate the limit
    if len(data) != size:
        raise Corrupt(f"{path} changed while it was read; try again")
    return data


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with disk_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
