"""The device thread: sharing, bounds, swaps between turns, shutdown. Snapshots are fakes that tests can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aios_node.engine import ArrowEngine
from aios_node.engine.errors import BadRequest, Busy, TooLarge, Unavailable
from aios_node.engine.runtime.executor import DeviceExecutor


class HeldSnapshot:
    """Encodes a text as (its length, the version's number), when the test lets it."""

    def __init__(self, number: int = 0) -> None:
        self.version = f"version {number}"
        self.number = number
        self.calls: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        self.entered.release()
        assert self.gate.wait(60)
        if self.error:
            raise self.error
        return np.array([[len(text), self.number] for text in texts], np.float32).reshape(-1, 2)


class FakeEngine:
    def __init__(self, snapshot: HeldSnapshot) -> None:
        self.snapshot = snapshot


@pytest.fixture
def executor() -> Iterator[DeviceExecutor]:
    with DeviceExecutor(max_batch=4, max_queue=3, max_texts=20) as executor:
        yield executor


@pytest.fixture
def held() -> Iterator[HeldSnapshot]:
    """A snapshot whose first encode waits until the test opens the gate."""
    snapshot = HeldSnapshot()
    snapshot.gate.clear()
    yield snapshot
    snapshot.gate.set()


def lengths(future: Future[Any]) -> list[float]:
    vectors, _ = future.result(60)
    return [float(value) for value in vectors[:, 0]]


def test_results_come_row_by_row_with_their_version(executor: DeviceExecutor) -> None:
    future = executor.submit_encode(FakeEngine(HeldSnapshot(7)), ["a", "bbb", "cc"])
    vectors, version = future.result(60)
    assert vectors.tolist() == [[1, 7], [3, 7], [2, 7]]
    assert version == "version 7"


def test_requests_that_wait_together_are_computed_together(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    first = executor.submit_encode(engine, ["first"])
    assert held.entered.acquire(timeout=60)
    futures = [executor.submit_encode(engine, ["x" * n]) for n in (1, 2, 3)]
    assert executor.waiting == 4
    held.gate.set()
    assert [lengths(future) for future in (first, *futures)] == [[5], [1], [2], [3]]
    assert held.calls == [["first"], ["x", "xx", "xxx"]]
    assert executor.waiting == 0


def test_a_small_request_passes_a_large_one(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    large = executor.submit_encode(engine, ["long one"] * 12)
    assert held.entered.acquire(timeout=60)
    small = executor.submit_encode(engine, ["small"])
    done: list[bool] = []
    small.add_done_callback(lambda _: done.append(large.done()))
    held.gate.set()
    assert lengths(large) == [8] * 12
    assert done == [False]
    assert [len(call) for call in held.calls] == [4, 3, 4, 2]
    assert "small" in held.calls[1]


def test_a_request_stays_on_the_version_it_met(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    before = executor.submit_encode(engine, ["a"] * 9)
    assert held.entered.acquire(timeout=60)
    engine.snapshot = HeldSnapshot(1)
    after = executor.submit_encode(engine, ["b"] * 9)
    held.gate.set()
    assert before.result(60)[0][:, 1].tolist() == [0] * 9
    assert after.result(60)[0][:, 1].tolist() == [1] * 9
    assert all(set(call) == {"a"} for call in held.calls)


def test_too_many_requests_are_told_to_come_back(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    running = executor.submit_encode(engine, ["x"])
    assert held.entered.acquire(timeout=60)
    waiting = [executor.submit_encode(engine, ["x"]) for _ in range(3)]
    with pytest.raises(Busy, match="waiting") as caught:
        executor.submit_encode(engine, ["x"])
    assert caught.value.retryable
    assert caught.value.retry_after_s
    held.gate.set()
    assert [lengths(future) for future in (running, *waiting)] == [[1]] * 4
    assert lengths(executor.submit_encode(engine, ["again"])) == [5]


def test_too_many_texts_at_once_or_together(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    with pytest.raises(TooLarge, match="21 texts"):
        executor.submit_encode(engine, ["x"] * 21)
    running = executor.submit_encode(engine, ["x"] * 15)
    assert held.entered.acquire(timeout=60)
    with pytest.raises(Busy):
        executor.submit_encode(engine, ["x"] * 6)
    fits = executor.submit_encode(engine, ["x"] * 5)
    held.gate.set()
    assert len(lengths(running) + lengths(fits)) == 20


def test_nothing_to_encode_is_answered_at_once(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    busy = executor.submit_encode(FakeEngine(held), ["x"])
    vectors, version = executor.submit_encode(FakeEngine(HeldSnapshot(2)), []).result(0)
    assert vectors.shape == (0, 2)
    assert version == "version 2"
    held.gate.set()
    assert lengths(busy) == [1]


@pytest.mark.parametrize("texts", ["one", [1], None, ["\ud800"]])
def test_bad_texts_are_refused_before_they_meet_others(executor: DeviceExecutor, texts: Any) -> None:
    with pytest.raises(BadRequest):
        executor.submit_encode(FakeEngine(HeldSnapshot()), texts)


def test_an_error_reaches_those_who_asked_and_nobody_else(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    bad = FakeEngine(held)
    held.error = MemoryError("no room")
    futures = [executor.submit_encode(bad, ["x"] * 6), executor.submit_encode(bad, ["y"])]
    good = executor.submit_encode(FakeEngine(HeldSnapshot(1)), ["z"])
    held.gate.set()
    for future in futures:
        with pytest.raises(MemoryError, match="no room"):
            future.result(60)
    assert lengths(good) == [1]
    assert executor.waiting == 0


def test_a_cancelled_request_is_never_computed(executor: DeviceExecutor, held: HeldSnapshot) -> None:
    engine = FakeEngine(held)
    running = executor.submit_encode(engine, ["running"])
    assert held.entered.acquire(timeout=60)
    unwanted = executor.submit_encode(engine, ["unwanted"])
    wanted = executor.submit_encode(engine, ["wanted"])
    assert unwanted.cancel()
    assert not running.cancel()
    held.gate.set()
    assert lengths(wanted) == [6]
    assert held.calls == [["running"], ["wanted"]]


def test_closing_finishes_what_waits(held: HeldSnapshot) -> None:
    executor = DeviceExecutor(max_batch=2)
    futures = [executor.submit_encode(FakeEngine(held), ["x"] * 5) for _ in range(3)]
    assert held.entered.acquire(timeout=60)
    assert not executor.close(timeout=0)
    with pytest.raises(Unavailable, match="shutting down"):
        executor.submit_encode(FakeEngine(held), ["late"])
    held.gate.set()
    assert executor.close(timeout=60)
    assert [lengths(future) for future in futures] == [[1] * 5] * 3


def test_closing_at_once_refuses_what_waits(held: HeldSnapshot) -> None:
    executor = DeviceExecutor(max_batch=2)
    engine = FakeEngine(held)
    small = executor.submit_encode(engine, ["x", "y"])
    assert held.entered.acquire(timeout=60)
    large = executor.submit_encode(engine, ["x"] * 5)
    cancelled = executor.submit_encode(engine, ["x"])
    assert cancelled.cancel()
    assert not executor.close(drain=False, timeout=0)
    held.gate.set()
    assert executor.close(timeout=60)
    assert lengths(small) == [1, 1]
    with pytest.raises(Unavailable, match="shutting down"):
        large.result(60)
    with pytest.raises(CancelledError):
        cancelled.result(60)


def test_a_half_done_request_is_refused_when_closing_at_once(held: HeldSnapshot) -> None:
    executor = DeviceExecutor(max_batch=2)
    half = executor.submit_encode(FakeEngine(held), ["x"] * 5)
    assert held.entered.acquire(timeout=60)
    assert not executor.close(drain=False, timeout=0)
    held.gate.set()
    with pytest.raises(Unavailable):
        half.result(60)
    assert executor.close(timeout=60)
    assert len(held.calls) == 1


def test_closing_from_a_callback_does_not_wait_for_itself() -> None:
    executor = DeviceExecutor()
    closed: list[bool] = []
    held = HeldSnapshot()
    held.gate.clear()
    future = executor.submit_encode(FakeEngine(held), ["x"])
    future.add_done_callback(lambda _: closed.append(executor.close()))
    held.gate.set()
    assert lengths(future) == [1]
    assert executor.close(timeout=60)
    assert closed == [False]


def test_an_error_in_the_with_block_does_not_wait_for_what_waits(held: HeldSnapshot) -> None:
    def fail() -> None:
        with DeviceExecutor(max_batch=1) as executor:
            futures.append(executor.submit_encode(FakeEngine(held), ["x"] * 9))
            assert held.entered.acquire(timeout=60)
            held.gate.set()
            raise KeyError("elsewhere")

    futures: list[Future[Any]] = []
    with pytest.raises(KeyError):
        fail()
    assert futures[0].done()


def test_the_thread_ends() -> None:
    executor = DeviceExecutor(name="aios-device-test")
    assert "aios-device-test" in {thread.name for thread in threading.enumerate()}
    assert executor.close()
    assert executor.close()
    assert "aios-device-test" not in {thread.name for thread in threading.enumerate()}


def test_many_threads_and_swaps_over_real_encoders(tiny_versions: tuple[Path, Path]) -> None:
    texts = [f"{word} {n}" for n in range(20) for word in ("file", "socket", "bird")]
    expected: dict[str, NDArray[np.float32]] = {}
    for path in tiny_versions:
        with ArrowEngine.open(path) as engine:
            expected[engine.version] = engine.encode(texts)
    with ArrowEngine.open(tiny_versions[0]) as engine, DeviceExecutor(max_batch=8) as executor:

        def ask(start: int) -> bool:
            vectors, version = executor.submit_encode(engine, texts[start:]).result(60)
            return np.allclose(vectors, expected[version][start:], atol=1e-5)

        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(ask, start) for start in range(len(texts))]
            for number in range(10):
                engine.swap(tiny_versions[number % 2])
            assert all(answer.result(60) for answer in answers)
