"""Streams between simulated hosts: latency, a cap on what each host sends and receives, faults of single messages.

A stream keeps the order of its messages. A host's messages leave one after the other, those of all its streams in
turns, as each stream has one message at the door at a time. Messages without data do not wait for other streams'
chunks, but count: what a real node's cap does, too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from aios_node.delta.simulation.clock import Clock
from aios_node.delta.simulation.faults import Fault

FRAME_BYTES = 60  # what TCP, HTTP/2 and Arrow add to a message, about
SLOWNESS = 100.0


@dataclass
class Host:
    """A node's network card. Rates in bytes per second."""

    up: float
    down: float
    sent: Counter[str] = field(default_factory=Counter)  # bytes by type of message
    up_free: float = 0.0
    down_free: float = 0.0


class End(Protocol):
    """Who hears from a stream."""

    def arrive(self, metadata: bytes, data: bytes | memoryview) -> None: ...

    def broken(self) -> None: ...


Waiting = tuple[bytes, "bytes | memoryview", str, Callable[[], None]]


class Stream:
    """A connection between two hosts, with an ``End`` on each side. ``side`` 0 or 1 names the sender."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        hosts: tuple[Host, Host],
        *,
        latency: float,
        slow: bool,
        faults: frozenset[Fault],
        rate: float,
    ) -> None:
        self.ends: list[End] = []
        self.open = True
        self._clock, self._random, self._hosts = clock, random, hosts
        self._latency, self._slowness = latency, SLOWNESS if slow else 1.0
        self._faults, self._rate = faults, rate
        self._queues: tuple[deque[Waiting], deque[Waiting]] = (deque(), deque())
        self._latest = [0.0, 0.0]
        self._link_free = [0.0, 0.0]

    def send(self, side: int, metadata: bytes, data: bytes | memoryview, kind: str, left: Callable[[], None]) -> None:
        """Send a message; ``left`` is called when it has gone out of the door."""
        queue = self._queues[side]
        queue.append((metadata, data, kind, left))
        if len(queue) == 1:
            self._depart(side)

    def close(self) -> None:
        """Both ends hear of it: what was sent before comes first."""
        if self.open:
            self.open = False
            for side, end in enumerate(self.ends):
                delay = max(self._latency, self._latest[1 - side] - self._clock.now)
                self._clock.after(delay, lambda side=side, end=end: self._break(side, end))  # type: ignore[misc]

    def _break(self, side: int, end: End) -> None:
        self._clock.after(self._hosts[side].down_free - self._clock.now, end.broken)

    def _depart(self, side: int) -> None:
        metadata, data, kind, _ = self._queues[side][0]
        size = FRAME_BYTES + len(metadata) + len(data)
        host, now = self._hosts[side], self._clock.now
        host.sent[kind] += size
        host.up_free = max(host.up_free, now) + size / host.up
        pause = host.up_free - now if data else size / host.up
        self._clock.after(pause, lambda: self._departed(side, size))

    def _departed(self, side: int, size: int) -> None:
        metadata, data, _kind, left = self._queues[side].popleft()
        if self.open:
            self._travel(side, metadata, data, size)
        if self._queues[side]:
            self._depart(side)
        left()

    def _travel(self, side: int, metadata: bytes, data: bytes | memoryview, size: int) -> None:
        copies, delay = 1, self._latency
        if self._hit(Fault.BREAK):
            self.close()
            return
        if self._hit(Fault.LOSS):
            copies = 0
        if self._hit(Fault.DUPLICATION):
            copies = 2
        if self._hit(Fault.BIT_FLIP):
            metadata, data = self._flip(metadata, data)
        late = self._hit(Fault.REORDERING)
        now = self._clock.now
        if self._slowness > 1:  # a narrow part in the middle, of its own
            self._link_free[side] = max(self._link_free[side], now) + size * self._slowness / self._hosts[side].up
            delay += self._link_free[side] - now
        if late:
            self._latest[side] = max(now + delay, self._latest[side])
            delay += 5 * self._latency
        else:
            delay = max(delay, self._latest[side] - now)
            self._latest[side] = now + delay
        for _ in range(copies):
            self._clock.after(delay, lambda: self._arrive(side, metadata, data, size))

    def _arrive(self, side: int, metadata: bytes, data: bytes | memoryview, size: int) -> None:
        """A host takes in one message after the other."""
        other, now = self._hosts[1 - side], self._clock.now
        other.down_free = max(other.down_free, now) + size / other.down
        self._clock.after(other.down_free - now, lambda: self.ends[1 - side].arrive(metadata, data))

    def _hit(self, fault: Fault) -> bool:
        return fault in self._faults and self._random.random() < self._rate

    def _flip(self, metadata: bytes, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
        if data and self._random.random() < 0.8:
            return metadata, self._flipped(bytes(data))
        return self._flipped(metadata), data

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)
