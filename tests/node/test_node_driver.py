"""The sync driver: two of them over an in-memory stream, with real threads and a short idle timeout."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.exchange.effects import Effect, PreparePackage, TransferResult
from aios_node.delta.exchange.session import SyncSession
from aios_node.engine.errors import AiosError, TransferAborted
from aios_node.node.sync.driver import Pace, SyncDriver
from aios_node.node.sync.pace import BandwidthCap

from sync_peers import Node  # isort: skip  # from tests/delta/support, see conftest.py

END = object()


class Pipe:
    """One end of an in-memory stream; at most four messages are under way, so that senders really block."""

    def __init__(self, inbox: queue.Queue[Any], outbox: queue.Queue[Any]) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._closed = threading.Event()
        self.sent = 0
        self.limit: int | None = None  # messages after which this end goes silent

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        self.sent += 1
        if self.limit is not None and self.sent > self.limit:
            return
        while not self._closed.is_set():
            try:
                self._outbox.put((meta, bytes(data or b"")), timeout=0.05)
                return
            except queue.Full:
                continue
        raise TransferAborted("the stream is closed")

    def receive(self, timeout: float | None = None) -> tuple[bytes, bytes | None] | None:
        try:
            message = self._inbox.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        return None if message is END else message

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            threading.Thread(target=self._outbox.put, args=(END,), daemon=True).start()


class NodeWork:
    """Effects on the in-memory node."""

    def __init__(self, node: Node, hook: Callable[[Effect], None] = lambda _effect: None) -> None:
        self._node, self._hook, self.closed = node, hook, False

    def perform(self, effect: Effect) -> Any:
        self._hook(effect)
        return self._node.perform(effect)

    def close(self) -> None:
        self.closed = True


class Side:
    """A driver on a thread of its own, and what became of it."""

    def __init__(self, node: Node, pipe: Pipe, *, hook: Callable[[Effect], None] = lambda _effect: None,
                 idle_timeout_s: float = 5.0, pace: Pace | None = None,
                 intake: Pace | None = None) -> None:  # fmt: skip
        self.stopping = threading.Event()
        self.work = NodeWork(node, hook)
        self.results: tuple[TransferResult, ...] = ()
        self.error: AiosError | None = None
        self._driver = SyncDriver(
            SyncSession(node.offers(), node),
            pipe,
            self.work,
            idle_timeout_s=idle_timeout_s,
            pace=pace or BandwidthCap(0),
            intake=intake,
            stopping=self.stopping,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.results = self._driver.run()
        except AiosError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.work.closed


def pipes() -> tuple[Pipe, Pipe]:
    one: queue.Queue[Any] = queue.Queue(4)
    two: queue.Queue[Any] = queue.Queue(4)
    return Pipe(one, two), Pipe(two, one)


def exchange(left: Node, right: Node, **options: Any) -> tuple[Side, Side]:
    a, b = pipes()
    sides = Side(left, a, **options), Side(right, b, **options)
    for side in sides:
        side.join()
    return sides


@given(st.lists(st.integers(0, 3_000_000), max_size=2), st.lists(st.integers(0, 600_000), max_size=2))
def test_both_sides_end_with_everything(left_sizes: list[int], right_sizes: list[int]) -> None:
    left, right = Node(), Node()
    for number, size in enumerate(left_sizes):
        left.add(f"l{number}", bytes([number]) * size + b"left")
    for number, size in enumerate(right_sizes):
        right.add(f"r{number}", bytes([number]) * size + b"right")
    one, other = exchange(left, right)
    assert one.error is None
    assert other.error is None
    assert left.versions == right.versions
    assert all(result.hash_ok for result in (*one.results, *other.results))
    assert len(one.results) == len(left_sizes) + len(right_sizes)


def test_a_silent_peer_is_given_up_after_the_idle_timeout() -> None:
    left, right = Node(), Node()
    left.add("m", b"x" * 2_000_000)
    a, b = pipes()
    a.limit = 6  # greeting, offers and a few chunks, then nothing more
    sides = Side(left, a, idle_timeout_s=0.4), Side(right, b, idle_timeout_s=0.4)
    for side in sides:
        side.join()
    assert any(side.error is not None and "no progress" in side.error.message for side in sides)
    assert right.versions == {}
    assert right.staging  # what had arrived waits for the next session


def test_slow_work_is_no_silence() -> None:
    """Preparing takes three idle timeouts; PING tells the peer that work goes on."""
    left, right = Node(), Node()
    version = left.add("m", b"x" * 50_000)
    pause = threading.Event()

    def slow(effect: Effect) -> None:
        if isinstance(effect, PreparePackage):
            pause.wait(1.2)

    one, other = exchange(left, right, hook=slow, idle_timeout_s=0.4)
    assert one.error is other.error is None
    assert ("m", version) in right.versions


def test_a_stopping_node_says_so() -> None:
    left, right = Node(), Node()
    left.add("m", b"x" * 2_000_000)
    a, b = pipes()
    one = Side(left, a)
    one.stopping.set()
    other = Side(right, b)
    one.join()
    other.join()
    assert one.error is not None
    assert "stopping" in one.error.message


def test_unexpected_errors_become_aborts_without_details() -> None:
    left, right = Node(), Node()
    left.add("m", b"x" * 50_000)

    def broken(effect: Effect) -> None:
        if isinstance(effect, PreparePackage):
            raise KeyError("a secret detail")

    one, other = exchange(left, right, hook=broken)
    told = [result.message for result in (*one.results, *other.results) if not result.hash_ok]
    assert told
    assert not any("secret" in message for message in told)
    assert right.versions == {}


@pytest.mark.parametrize("mbit", [0.0, 8.0])
def test_the_bandwidth_cap_spreads_bytes_over_time(mbit: float) -> None:
    moment, waited = 100.0, []

    def wait(seconds: float) -> None:
        nonlocal moment
        waited.append(seconds)
        moment += seconds

    cap = BandwidthCap(mbit, clock=lambda: moment, wait=wait)
    for _ in range(100):
        cap.spend(100_000)
    expected = 100 * 100_000 / (mbit * 125_000) if mbit else 0.0
    assert sum(waited) == pytest.approx(expected, abs=0.3)


class Meter:
    """A pace that notes what passes, and whether it would have had to wait."""

    def __init__(self) -> None:
        self.waited: list[int] = []
        self.at_once: list[int] = []

    def spend(self, count: int, *, wait: bool = True) -> None:
        (self.waited if wait else self.at_once).append(count)


def test_the_cap_counts_both_directions_and_only_chunks_wait() -> None:
    left, right = Node(), Node()
    left.add("m", b"x" * 600_000)
    a, b = pipes()
    out, into = Meter(), Meter()
    one = Side(left, a, pace=out)
    other = Side(right, b, intake=into)
    one.join()
    other.join()
    assert left.versions == right.versions
    assert sum(out.waited) >= 600_000
    assert 0 < sum(out.at_once) < 10_000
    assert sum(into.waited) == sum(out.waited) + sum(out.at_once)


def test_what_does_not_wait_holds_back_what_does() -> None:
    waited: list[float] = []
    cap = BandwidthCap(8.0, clock=lambda: 100.0, wait=waited.append)
    cap.spend(1_000_000, wait=False)
    assert waited == []
    cap.spend(1_000_000)
    assert waited == [pytest.approx(2.0, abs=0.3)]
