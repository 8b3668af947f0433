"""The idle timeout counts progress, never duration: a slow line is served to the end, a stalled one is cut.

Time is made up: the line between two real drivers moves a clock by what its bytes would take.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from aios_node.delta.chunks import chunk_count
from aios_node.delta.exchange.effects import CommitTransfer, Effect, FindStaged, PreparePackage, ReadChunk, StageChunk
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.offers import Decision, Offer, PackageInfo
from aios_node.engine.errors import AiosError, TransferAborted
from aios_node.node.config.model import LimitsSection
from aios_node.node.sync.driver import SyncDriver
from aios_node.node.sync.pace import BandwidthCap

IDLE_S = LimitsSection().idle_timeout_s  # type: ignore[call-arg]  # every field has a default
GIGABYTE = 1_000_000_000
MB_PER_S = 1_000_000.0
VERSION = "a" * 64
OFFER = Offer("m", VERSION, lineage=(), bytes=GIGABYTE)
PACKAGE = PackageInfo(GIGABYTE, "b" * 64, "full", None, GIGABYTE, GIGABYTE)
ZEROS = bytes(256 * 1024)
END = object()


class Clock:
    """A time that only the line moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


class Line:
    """One end of a stream on which every byte takes its time."""

    def __init__(self, inbox: queue.Queue[Any], outbox: queue.Queue[Any], clock: Clock, rate: float) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._clock, self._rate = clock, rate
        self.stalls_after: int | None = None  # data messages
        self.pings = 0

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        self.pings += b'"type":"ping"' in meta
        if data and self.stalls_after is not None:
            self.stalls_after -= 1
            if self.stalls_after < 0:
                return
        self._clock.wait(len(data or b"") / self._rate)
        self._outbox.put((meta, data))

    def receive(self, timeout: float | None = None) -> tuple[bytes, bytes | None] | None:
        try:
            message = self._inbox.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        return None if message is END else message

    def close(self) -> None:
        self._outbox.put(END)


class Source:
    """A gigabyte of zeros, read chunk by chunk."""

    def perform(self, effect: Effect) -> Any:
        match effect:
            case PreparePackage():
                return PACKAGE
            case ReadChunk():
                return ZEROS[: effect.length]
        return None

    def close(self) -> None:
        """Nothing is open."""


class Sink:
    """Counts what comes."""

    def __init__(self) -> None:
        self.chunks: set[int] = set()
        self.committed = False

    def perform(self, effect: Effect) -> Any:
        match effect:
            case StageChunk():
                self.chunks.add(effect.index)
            case CommitTransfer():
                self.committed = True
            case FindStaged():
                return None
        return None

    def close(self) -> None:
        """Nothing is open."""


class Wants:
    """Takes whatever is offered."""

    def wants(self, offer: Offer) -> Decision:
        return Decision(want=True)


def drive(driver: SyncDriver, errors: list[AiosError]) -> threading.Thread:
    def run() -> None:
        try:
            driver.run()
        except AiosError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def exchange(clock: Clock, *, idle_s: float, stalls_after: int | None = None) -> tuple[Sink, list[AiosError], Line]:
    """A gigabyte at 1 MB/s from a source to a sink, with real drivers."""
    forth: queue.Queue[Any] = queue.Queue(8)
    back: queue.Queue[Any] = queue.Queue()
    out, home = Line(back, forth, clock, MB_PER_S), Line(forth, back, clock, MB_PER_S)
    out.stalls_after = stalls_after
    sink, errors = Sink(), list[AiosError]()
    common: dict[str, Any] = {
        "idle_timeout_s": idle_s,
        "pace": BandwidthCap(0),
        "stopping": threading.Event(),
        "clock": clock,
    }
    threads = [
        drive(SyncDriver(SyncSession([OFFER], Wants()), out, Source(), **common), errors),
        drive(SyncDriver(SyncSession([], Wants()), home, sink, **common), errors),
    ]
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return sink, errors, home


def test_a_gigabyte_at_one_megabyte_a_second_succeeds_with_default_settings() -> None:
    clock = Clock()
    sink, errors, home = exchange(clock, idle_s=IDLE_S)
    assert errors == []
    assert sink.committed
    assert len(sink.chunks) == chunk_count(GIGABYTE)
    assert clock.now - 1000.0 > 15 * IDLE_S
    assert home.pings >= 30  # what tells a sender, whose bytes lie in buffers, that they arrive


def test_a_line_that_stalls_is_cut() -> None:
    clock = Clock()
    real = threading.Event()

    def later() -> None:
        while not real.wait(0.02):
            clock.wait(1.0)

    ticking = threading.Thread(target=later, daemon=True)
    ticking.start()
    try:
        sink, errors, _ = exchange(clock, idle_s=0.4, stalls_after=40)
    finally:
        real.set()
        ticking.join()
    assert not sink.committed
    assert any("no progress" in error.message for error in errors)
    assert all(isinstance(error, TransferAborted) for error in errors)


@pytest.mark.parametrize("mbit", [1.0, 10.0])
def test_a_capped_sender_makes_progress(mbit: float) -> None:
    """The cap spaces messages out; each that leaves is progress."""
    clock = Clock()
    cap = BandwidthCap(mbit, clock=clock, wait=clock.wait)
    longest, before = 0.0, clock.now
    for _ in range(200):
        cap.spend(len(ZEROS))
        longest, before = max(longest, clock.now - before), clock.now
    assert longest < IDLE_S
    assert (clock.now - 1000.0) * mbit * 125_000 == pytest.approx(200 * len(ZEROS), rel=0.02)
