"""What the store asks of a disk: durable names, whole files or none, and errors that people understand.

Knows nothing about versions or transfers. ``Step`` and ``Observer`` are the seam at which fault tests
kill the process or let an operation fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum, auto
from pathlib import Path

from aios_node.engine.errors import AiosError, StorageError, StorageFull
from aios_node.engine.weights.disk import sync_folder

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Step(Enum):
    """Every operation after which the disk differs, in the order in which they happen.

    The observer is told right *before* the operation; ``ACKNOWLEDGE`` comes after the last one.
    """

    BUILD = auto()
    VERIFY = auto()
    RENAME = auto()
    SYNC_NAME = auto()
    REGISTER = auto()
    ACKNOWLEDGE = auto()
    POINT = auto()
    ARCHIVE = auto()
    NAME_ARCHIVE = auto()
    UNREGISTER = auto()
    REMOVE = auto()
    CREATE_TRANSFER = auto()
    NAME_TRANSFER = auto()
    WRITE_CHUNK = auto()
    SYNC_CHUNKS = auto()
    WRITE_JOURNAL = auto()
    SYNC_JOURNAL = auto()
    ASSEMBLE = auto()
    DISCARD = auto()


Observer = Callable[[Step], None]


def unobserved(step: Step) -> None:
    """The observer of everyday life."""


@contextlib.contextmanager
def disk_errors(path: Path | str, doing: str) -> Iterator[None]:
    """Turn OSError into StorageFull or StorageError that name the place and the work.

    Errors of the project's own tree pass unchanged.
    """
    try:
        yield
    except AiosError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageFull(f"no space to {doing} in {path} ({reason}): free some and try again") from error
        raise StorageError(f"cannot {doing} in {path} ({reason}): check the disk and its rights") from error


def sync_files(folder: Path) -> None:
    """Make every file in a folder durable, whoever wrote it, and the names in it."""
    for path in sorted(folder.iterdir()):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def write_durably(path: Path, data: bytes) -> None:
    """Create or replace a file so that after any crash it is the old one or the new one, never half of it."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data at an offset, however many system calls it takes. Raises OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def make_folder(folder: Path) -> Path:
    """Create a folder durably where it does not exist yet; its parent must."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        sync_folder(folder.parent)
    return folder


def fresh_folder(parent: Path, prefix: str) -> Path:
    """A new, empty folder with a name that nobody else has."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; gone already is fine. Links are removed, never followed."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
