"""How much one caller, one request and one stream may use. gRPC itself sets no caps that pyarrow exposes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aios_node.engine.errors import Busy, TooLarge

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Limits:
    """Caps of one listener. Bytes are bytes, times are seconds.

    A single gRPC message is read into memory before any of this can look at it (pyarrow sets no cap there),
    so ``batch_bytes`` refuses a huge batch but cannot prevent that it was received.
    """

    calls: int = 512  # running calls of any kind: each has a thread
    streams: int = 128  # open streams and actions over all callers
    streams_per_identity: int = 32
    ticket_ttl: float = 3600.0
    idle_timeout: float = 120.0  # without progress; 0 turns it off
    retry_after: float = 1.0  # what Busy and Unavailable suggest
    command_bytes: int = 16 * MIB  # a JSON command or ticket; search by image carries the file in it
    action_bytes: int = 4 * MIB
    token_bytes: int = 4 * KIB
    put_bytes: int = 256 * MIB
    put_rows: int = 1_000_000
    batch_bytes: int = 64 * MIB  # one record batch of an exchange or a put
    batch_rows: int = 65_536  # one record batch of an exchange
    k: int = 10_000
    vector_dimension: int = 65_536
    hits: int = 250_000  # answered to one batch of searches, at most (rows times k)
    filter_bytes: int = 16 * KIB
    sync_message_bytes: int = 1 * MIB  # metadata and data of one sync message, each


def require_size(actual: int, limit: int, what: str) -> None:
    """Raise ``TooLarge`` when ``actual`` exceeds ``limit``; ``what`` begins the message."""
    if actual > limit:
        raise TooLarge(f"{what} is {actual} large, at most {limit} is allowed: send less at once")


class StreamGovernor:
    """Counts open streams per identity and overall. Thread-safe."""

    def __init__(self, overall: int, per_identity: int, retry_after: float) -> None:
        self._overall = overall
        self._per_identity = per_identity
        self._retry_after = retry_after
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams open now."""
        with self._lock:
            return self._open.total()

    def enter(self, identity: str) -> Callable[[], None]:
        """Take a place for ``identity``; the returned function gives it back. Raises ``Busy``."""
        with self._lock:
            if self._open.total() >= self._overall:
                raise Busy(
                    f"this node already serves {self._overall} streams: try again shortly",
                    retry_after_s=self._retry_after,
                )
            if self._open[identity] >= self._per_identity:
                raise Busy(
                    f"{self._per_identity} streams of yours are already open: end some, then try again",
                    retry_after_s=self._retry_after,
                )
            self._open[identity] += 1
        left = False

        def leave() -> None:
            nonlocal left
            with self._lock:
                if left:
                    return
                left = True
                self._open[identity] -= 1
                if not self._open[identity]:
                    del self._open[identity]

        return leave
