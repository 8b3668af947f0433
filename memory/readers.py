"""A few open read connections per table, borrowed for one consistent snapshot at a time.

Knows connections; nothing about rows. In WAL mode readers and the writer never wait for each other.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aios_node.engine.errors import Unavailable
from aios_node.memory import log
from aios_node.memory.storage import clear_errors

_KEPT = 8  # idle connections; more are opened when more threads read at once


class Readers:
    """Borrowed connections see the table as it was when they first read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._what = f"memory table {folder.name}"
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection inside one read transaction. Raises ``Unavailable`` after ``close``."""
        with clear_errors(self._what):
            connection = self._take()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                self._give_back(connection)

    def close(self) -> None:
        """Close idle connections now, borrowed ones when they come back. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self._what} is closed")
            if self._idle:
                return self._idle.pop()
        return log.connect(self._folder, write=False)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._lock:
            keep = not self._closed and len(self._idle) < _KEPT
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()
