"""A bandwidth cap: bytes may leave, or come in, at a steady rate, with a short burst."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25


class BandwidthCap:
    """Token bucket of ``mbit`` per second; 0 means no cap. Shared by all streams of a node in one direction."""

    def __init__(
        self, mbit: float, *, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = mbit * 1e6 / 8
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._free_at = clock()

    def spend(self, count: int, *, wait: bool = True) -> None:
        """Wait until ``count`` bytes may pass. Without ``wait`` they pass now and hold back what comes later."""
        if not self._rate:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_S) + count / self._rate
            pause = self._free_at - now
        if wait and pause > 0:
            self._wait(pause)
