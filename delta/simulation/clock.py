"""A clock that jumps from event to event. Nothing runs in parallel; the same calls give the same order."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Event = Callable[[], None]


class Clock:
    """``now`` in seconds since the beginning. Events of the same moment happen in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Event]] = []
        self._number = 0

    def after(self, seconds: float, event: Event) -> None:
        """Have something happen later."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + max(0.0, seconds), self._number, event))

    def run(self, done: Callable[[], bool], until: float) -> bool:
        """Until ``done``, the time is over, or nothing more happens; whether it is done."""
        while self._heap and not done():
            moment, _, event = heapq.heappop(self._heap)
            if moment > until:
                break
            self.now = moment
            self.events += 1
            event()
        return done()
