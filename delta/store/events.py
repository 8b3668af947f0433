"""Word of changes in the store, so that a sync loop or an engine need not ask again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_log = logging.getLogger(__name__)

Kind = Literal["committed", "activated", "collected"]


@dataclass(frozen=True)
class Event:
    """Something changed. ``number`` counts the events of this store since it was opened, from 1."""

    number: int
    kind: Kind
    model: str
    version: str


class Subscribers:
    """Who wants to hear of changes. Callbacks run in the thread that made the change, after it is durable."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._callbacks: dict[object, Callable[[Event], None]] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Number of events so far: cheap to compare with an older value."""
        return self._count

    def add(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call back on every event from now on; returns what ends that."""
        token = object()
        with self._mutex:
            self._callbacks[token] = callback

        def end() -> None:
            with self._mutex:
                self._callbacks.pop(token, None)

        return end

    def tell(self, kind: Kind, model: str, version: str) -> None:
        """Publish one event. A callback that fails is logged: the change has happened all the same."""
        with self._mutex:
            self._count += 1
            event = Event(self._count, kind, model, version)
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                _log.exception("a subscriber failed on %s", event)
