"""Ends connections on which nothing has moved for the idle timeout. Counts progress, never duration.

A connection is judged as a whole: it is idle when every call on it waits for its client, no call has
handed or taken a message, and the kernel counts less than ``_MIN_BYTES`` of traffic (keepalive pings are
not progress). A stalled stream beside a busy one on the same connection is therefore left alone; the caps
on streams hold it in check.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from aios_node.flight import connections
from aios_node.flight.calls import Call, CallRegistry

log = logging.getLogger("aios_node.flight")

_MIN_BYTES = 1024


@dataclass(frozen=True)
class _Mark:
    """Where a connection stood when it last moved."""

    calls: frozenset[Call]
    moves: int
    traffic: int
    since: float

    def moved_until(self, now: _Mark) -> bool:
        """Whether anything counts as progress between this mark and a later one."""
        same = self.calls == now.calls and self.moves == now.moves
        return not same or now.traffic - self.traffic >= _MIN_BYTES


def _may_be_stalled(calls: list[Call], unknown: bool) -> bool:
    """Whether a connection with these calls could be stuck on its client.

    One without calls is left alone, unless ``unknown`` calls run: a client that opens a stream and sends not
    even its first message keeps a thread busy before any handler learns where it comes from. A client that
    was only resting reconnects.
    """
    return all(call.waits_for_client for call in calls) if calls else unknown


class Watchdog:
    """A thread that looks at the running calls a few times per idle timeout."""

    def __init__(
        self, registry: CallRegistry, idle_timeout: float, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._idle_timeout = idle_timeout
        self._now = now
        self._marks: dict[connections.Address, _Mark] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, local_port: int) -> None:
        """Begin; ``local_port`` is the listener's."""
        if self._idle_timeout <= 0:
            return
        self._thread = threading.Thread(target=self._run, args=(local_port,), name="flight-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, local_port: int) -> None:
        while not self._stop.wait(self._idle_timeout / 4):
            try:
                self.look(local_port)
            except Exception:
                log.exception("the watchdog for stalled connections failed once")

    def look(self, local_port: int) -> int:
        """Examine every connection once; cut the idle ones and return how many."""
        by_peer: dict[connections.Address | None, list[Call]] = defaultdict(list)
        for call in self._registry.running():
            by_peer[connections.parse_peer(call.peer)].append(call)
        if not by_peer:
            self._marks.clear()
            return 0
        unknown = bool(by_peer[None])
        traffic = {
            peer: count
            for peer, count in connections.progress(local_port).items()
            if _may_be_stalled(by_peer.get(peer, []), unknown)
        }
        self._marks = {peer: mark for peer, mark in self._marks.items() if peer in traffic}
        idle = {peer for peer in traffic if self._is_idle(peer, by_peer.get(peer, []), traffic[peer])}
        for peer in idle:
            methods = sorted(call.method for call in by_peer.get(peer, []))
            log.warning("cutting %s:%d: nothing moved for %g s %s", *peer, self._idle_timeout, methods)
            del self._marks[peer]
        return connections.cut(local_port, idle) if idle else 0

    def _is_idle(self, peer: connections.Address, calls: list[Call], traffic: int) -> bool:
        mark = self._marks.get(peer)
        now = _Mark(frozenset(calls), sum(call.moves for call in calls), traffic, self._now())
        if mark is None or mark.moved_until(now):
            self._marks[peer] = now
            return False
        return now.since - mark.since >= self._idle_timeout
