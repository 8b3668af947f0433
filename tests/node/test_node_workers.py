"""Worker processes: results, errors, progress, death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from aios_node.engine.errors import BadWeights, Busy, Unavailable, WorkerFailed
from aios_node.node.workers import Workers

Progress = Callable[[float, str], None]


def double(value: int, progress: Progress) -> int:
    progress(0.5, "half")
    progress(1.0, "all")
    return 2 * value


def refuse(progress: Progress) -> None:
    raise BadWeights("tensor 'x' is NaN")


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def process_id(progress: Progress) -> int:
    return os.getpid()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    pool = Workers(1)
    yield pool
    pool.close()


def test_results_and_progress(workers: Workers) -> None:
    told: list[tuple[float, str]] = []
    assert workers.run(double, 21, progress=lambda fraction, text: told.append((fraction, text))) == 42
    assert told == [(0.5, "half"), (1.0, "all")]


def test_errors_keep_their_class(workers: Workers) -> None:
    with pytest.raises(BadWeights, match="tensor 'x' is NaN"):
        workers.run(refuse)


def test_a_dead_worker_fails_its_job_and_is_replaced(workers: Workers) -> None:
    before = workers.run(process_id)
    with pytest.raises(WorkerFailed, match="die"):
        workers.run(die)
    assert workers.run(process_id) != before


def test_close_ends_the_processes() -> None:
    pool = Workers(1)
    child = pool.run(process_id)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with pytest.raises(Unavailable):
        pool.run(process_id)
    pool.close()


def test_no_job_starts_when_memory_is_used_up() -> None:
    pool = Workers(1, memory_bytes=1 << 20)
    try:
        with pytest.raises(Busy, match=r"limits\.memory_mb"):
            pool.run(double, 1)
    finally:
        pool.close()
