"""One writer per table: concurrent changes share a transaction and its fsync (group commit).

Knows transactions and the table's counters; nothing about what a change does.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from aios_node.engine.errors import AiosError, StorageError, Unavailable
from aios_node.memory import log
from aios_node.memory.storage import storage_error

T = TypeVar("T")

_AT_ONCE = 256  # changes in one transaction


class Txn:
    """One change inside a transaction: its connection and the table's counters, read and written once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._meta: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta"))
        self._before = dict(self._meta)

    @property
    def dimension(self) -> int | None:
        """The table's dimension, None before its first vector."""
        return self._meta.get("dimension")

    @property
    def space(self) -> str | None:
        """The table's embedding space."""
        return self._meta.get("space")

    @property
    def version(self) -> int:
        """The version that the table has before this change."""
        return int(self._before["version"])

    def set_space(self, dimension: int, space: str | None) -> None:
        """Fix dimension and space at the first vector."""
        self._meta.update({"dimension": dimension, "space": space})

    def take_seqs(self, count: int) -> range:
        """Numbers never used before in this table."""
        start = int(self._meta["next_seq"])
        self._meta["next_seq"] = start + count
        return range(start, start + count)

    def changed(self) -> None:
        """Say that rows changed: the version will grow by one."""
        self._meta["version"] = self.version + 1

    def finish(self) -> int:
        """Write the counters that moved; returns the version after the change."""
        moved = [(key, value) for key, value in self._meta.items() if self._before.get(key) != value]
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", moved)
        return int(self._meta["version"])


class Follower(Protocol):
    """Whoever mirrors the table in memory and must know of a change before others can see it."""

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """See what another process may have committed before this transaction began."""
        ...

    def stage(self, connection: sqlite3.Connection) -> None:
        """Prepare for what this transaction has written and will commit next."""
        ...

    def unstage(self) -> None:
        """Forget what the last ``stage`` prepared: its transaction did not commit."""
        ...


class _Change(Generic[T]):
    """A change that waits for its turn, then its outcome."""

    def __init__(self, apply: Callable[[Txn], T]) -> None:
        self.apply = apply
        self.done = False
        self.error: BaseException | None = None
        self.result: T | None = None
        self.version = 0


class Writer:
    """Applies changes to one table; ``run`` returns when they are durable.

    Whoever gets the lock commits for everyone who waits. A change that fails is undone alone (savepoint);
    a transaction that fails fails for all its changes.
    """

    def __init__(self, folder: Path, follower: Follower, before_commit: Callable[[sqlite3.Connection], None]) -> None:
        self._what = f"memory table {folder.name}"
        self._connection = log.connect(folder, write=True)
        self._follower = follower
        self._before_commit = before_commit
        self._lock = threading.Lock()
        self._waiting: deque[_Change[Any]] = deque()
        self._closed = False

    def run(self, apply: Callable[[Txn], T]) -> tuple[T, int]:
        """Apply one change durably; returns its result and the table's version after it.

        Raises what ``apply`` raises, ``StorageFull``, ``StorageError``, ``Busy``.
        """
        change = _Change(apply)
        self._waiting.append(change)
        with self._lock:
            while not change.done:
                self._commit(self._take())
        if change.error is not None:
            raise change.error
        return change.result, change.version  # type: ignore[return-value]  # set by _apply whenever error is None

    def flush_if_idle(self) -> bool:
        """Commit what ``before_commit`` holds unless someone is writing now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._commit([])
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Commit what is held and close; waits for the running transaction. Idempotent."""
        with self._lock:
            if not self._closed:
                try:
                    self._commit([])
                finally:
                    self._closed = True
                    self._connection.close()

    def _take(self) -> list[_Change[Any]]:
        group: list[_Change[Any]] = []
        while self._waiting and len(group) < _AT_ONCE:
            group.append(self._waiting.popleft())
        return group

    def _commit(self, group: list[_Change[Any]]) -> None:
        """One transaction for the group; every change of it is done afterwards, with or without an error."""
        try:
            self._transaction(group)
        except (OSError, sqlite3.Error) as error:
            _fail(group, storage_error(error, self._what))
        except AiosError as error:
            _fail(group, error)
        except BaseException:
            _fail(group, StorageError(f"{self._what}: the write was interrupted; try again"))
            raise
        finally:
            if not self._closed and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            for change in group:
                change.done = True

    def _transaction(self, group: list[_Change[Any]]) -> None:
        if self._closed:
            raise Unavailable(f"{self._what} is closed")
        self._connection.execute("BEGIN IMMEDIATE")
        self._follower.catch_up(self._connection)
        for change in group:
            self._apply(change)
        self._before_commit(self._connection)
        self._follower.stage(self._connection)
        try:
            self._connection.execute("COMMIT")
        except BaseException:
            self._follower.unstage()  # before the rollback lets another process commit
            raise

    def _apply(self, change: _Change[Any]) -> None:
        """Run one change in a savepoint of its own."""
        self._connection.execute("SAVEPOINT change")
        try:
            txn = Txn(self._connection)
            change.result = change.apply(txn)
            change.version = txn.finish()
        except Exception as error:
            if not self._connection.in_transaction:  # SQLite gave up the whole transaction: the disk is full
                raise
            self._connection.execute("ROLLBACK TO change")
            change.error = storage_error(error, self._what) if isinstance(error, sqlite3.Error) else error
        self._connection.execute("RELEASE change")


def _fail(group: list[_Change[Any]], error: AiosError) -> None:
    for change in group:
        if change.error is None:
            change.error = error
