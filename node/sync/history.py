"""What was transferred lately: for `sync`, the status page and the demo's table."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from aios_node.delta.exchange.effects import TransferResult

KEPT = 512


@dataclass(frozen=True)
class TransferRecord:
    """One transfer with whom and how long it took."""

    peer: str
    seconds: float
    at: str  # ISO 8601, UTC, when it ended
    result: TransferResult

    def to_json(self) -> dict[str, Any]:
        """Field names as in the `sync` action's answer."""
        values = asdict(self.result)
        return {
            "peer": self.peer,
            "model": values.pop("model"),
            "from": values.pop("from_version"),
            "to": values.pop("to_version"),
            **values,
            "seconds": round(self.seconds, 3),
            "at": self.at,
        }


class History:
    """The last transfers, newest last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[TransferRecord] = deque(maxlen=KEPT)

    def add(self, record: TransferRecord) -> None:
        """Remember one."""
        with self._lock:
            self._records.append(record)

    def all(self) -> list[TransferRecord]:
        """All that are remembered, oldest first."""
        with self._lock:
            return list(self._records)
