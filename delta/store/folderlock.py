"""One owner at a time for a folder: a kernel lock on a small file that says who holds it.

The lock is the kernel's (``flock``), so it ends with its process however that process ends; the file's
content is only for people and for commands that want to reach the owner. This module does not know
what is in the folder, nor how an owner is reached at its address.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from aios_node.delta.disk import disk_errors
from aios_node.engine.errors import FolderLocked

LOCK_NAME = ".lock"
_READ_LIMIT = 4096


@dataclass(frozen=True)
class Owner:
    """Who holds a folder. ``address`` is empty until the owner has announced one."""

    pid: int
    address: str = ""

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" at {self.address}" if self.address else "")


class FolderLock:
    """A held lock on one folder. Keep it as long as the folder is in use, then ``release()`` it.

    Two locks on the same folder exclude each other within one process as well.
    """

    def __init__(self, folder: Path, descriptor: int, owner: Owner) -> None:
        self._folder = folder
        self._descriptor: int | None = descriptor
        self._owner = owner

    @classmethod
    def acquire(cls, folder: Path | str, *, address: str = "") -> FolderLock:
        """Take the lock at once or raise FolderLocked, which names the owner's pid and address.

        The folder must exist. Raises StorageError where the folder does not allow a lock file.
        """
        folder = Path(folder)
        with disk_errors(folder, "lock"):
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _lock_now(folder, descriptor)
                lock = cls(folder, descriptor, Owner(os.getpid()))
                lock.announce(address)
            except BaseException:
                os.close(descriptor)
                raise
        return lock

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def owner(self) -> Owner:
        return self._owner

    def announce(self, address: str) -> None:
        """Write down where this owner can be reached, once it listens."""
        if self._descriptor is None:
            raise ValueError(f"the lock on {self._folder} was released")
        self._owner = Owner(os.getpid(), address)
        record = json.dumps({"pid": self._owner.pid, "address": address}).encode() + b"\n"
        with disk_errors(self._folder, "lock"):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, record, 0)

    def release(self) -> None:
        """Give the folder back; a second call does nothing. The file stays: removing it would be a race."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_owner(folder: Path | str) -> Owner | None:
    """Who the lock file names, or None. It is a hint: only a failed ``acquire`` proves that someone holds it."""
    try:
        with (Path(folder) / LOCK_NAME).open("rb") as file:
            record = json.loads(file.read(_READ_LIMIT))
        pid, address = record["pid"], record["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if type(pid) is not int or type(address) is not str:
        return None
    return Owner(pid, address)


def _lock_now(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        owner = read_owner(folder)
        holder = str(owner) if owner else "another process"
        raise FolderLocked(
            f"{folder} is in use by {holder}: stop it, send it the command, or choose another folder"
        ) from None
