"""Which memories were read, and when: counted in memory, written along with the next commit.

Reading must not wait for the disk, so a crash may lose the latest counts; rows are never rewritten for
them. Knows ids and times only.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable

_ENOUGH = 8192  # ids waiting: more are written as soon as nobody else writes

_UPSERT = """
INSERT INTO access SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM rows WHERE id = ?1)
ON CONFLICT(id) DO UPDATE SET
    last_access = max(last_access, excluded.last_access), access_count = access_count + excluded.access_count
"""


class AccessCounter:
    """Counts until the writer takes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def record(self, ids: Iterable[str]) -> bool:
        """Count one access now for each id; returns whether it is time to write."""
        now = time.time_ns() // 1000
        with self._lock:
            for name in ids:
                self._counts[name] = self._counts.get(name, 0) + 1
                self._last[name] = now
            return len(self._counts) >= _ENOUGH

    def write(self, connection: sqlite3.Connection) -> None:
        """Add what was counted to the table ``access``, inside the caller's transaction."""
        with self._lock:
            counts, self._counts = self._counts, {}
            last, self._last = self._last, {}
        connection.executemany(_UPSERT, ((name, last[name], count) for name, count in counts.items()))
