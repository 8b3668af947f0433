"""Worker processes for heavy work: deltas, quantising, importing, training.

They are spawned before gRPC starts, get paths rather than arrays, report progress through a queue,
and end with their parent, even when it is killed. Knows nothing about what the jobs do.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from aios_node.engine.errors import Busy, Unavailable, WorkerFailed

Progress = Callable[[float, str], None]
T = TypeVar("T")
Report = tuple[int, float | None, str]
"""Job number, share done (None: the job has said everything), what is being done."""

_reports: SimpleQueue[Report | None] | None = None  # set in each worker process


LAST_WORDS_S = 5.0


class _Listener:
    """Who wants to hear of a job's progress, and whether there is more to come."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.heard_all = threading.Event()


class Workers:
    """A pool of spawned processes; a dead one fails its job, not the node."""

    def __init__(self, count: int, threads: int = 0, memory_bytes: int | None = None) -> None:
        """``threads`` per process (0: as many as there are cores); ``memory_bytes``: see ``run``."""
        self._memory_bytes = memory_bytes
        self._count = count
        self._threads = threads
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._listeners: dict[int, _Listener] = {}
        context = multiprocessing.get_context("spawn")
        self._reports: SimpleQueue[Report | None] = context.SimpleQueue()
        self._pool = self._start_pool()
        self._reader = threading.Thread(target=self._read_reports, name="worker-progress", daemon=True)
        self._reader.start()
        self._closed = False

    def run(self, job: Callable[..., T], *args: Any, progress: Progress | None = None) -> T:
        """Run ``job(*args, progress)`` in a worker and wait. AiosErrors pass through.

        Raises Busy when this process and its children already use more than ``memory_bytes``, WorkerFailed
        when the worker dies.
        """
        self._check_memory()
        number = next(self._ids)
        listener = self._listeners[number] = _Listener(progress)
        try:
            result = self._submit(number, job, args).result()
            listener.heard_all.wait(LAST_WORDS_S)  # progress travels by another way than results
            return result
        except BrokenProcessPool:
            self._replace_pool()
            raise WorkerFailed(
                f"the worker process for {job.__name__} died, most often for lack of memory: free some and try again"
            ) from None
        finally:
            self._listeners.pop(number, None)

    def _check_memory(self) -> None:
        if self._memory_bytes is None:
            return
        used = memory_in_use()
        if used > self._memory_bytes:
            raise Busy(
                f"node and workers use {used >> 20} MB, more than limits.memory_mb ({self._memory_bytes >> 20}): "
                "try again when less is going on, or raise the limit",
                retry_after_s=30.0,
            )

    def warm(self) -> None:
        """Start the processes now, without waiting for them."""
        self._pool.submit(_nothing)

    def close(self) -> None:
        """Stop the processes; running jobs are ended, which every job must survive anyway."""
        if self._closed:
            return
        self._closed = True
        processes = list((self._pool._processes or {}).values())  # noqa: SLF001 - no public way to end a running job
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
        self._pool.shutdown(wait=True)
        self._reports.put(None)
        self._reader.join()

    def _submit(self, number: int, job: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
        with self._lock:
            if self._closed:
                raise Unavailable("the node is stopping")
            return self._pool.submit(_run_job, number, job, args)

    def _start_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self._reports, self._threads),
        )

    def _replace_pool(self) -> None:
        with self._lock:
            if not self._closed:
                self._pool.shutdown(wait=False)
                self._pool = self._start_pool()

    def _read_reports(self) -> None:
        while (report := self._reports.get()) is not None:
            number, fraction, text = report
            listener = self._listeners.get(number)
            if listener is None:
                continue
            if fraction is None:
                listener.heard_all.set()
            elif listener.progress is not None:
                listener.progress(fraction, text)


def memory_in_use() -> int:
    """Bytes of memory that this process and all its children hold now (what they share is counted once each)."""
    import psutil

    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return int(total)


def _start_worker(reports: SimpleQueue[Report | None], threads: int) -> None:
    global _reports  # noqa: PLW0603 - one queue per process, handed over when it starts
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which then ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _nothing() -> None:
    return None


def _run_job(number: int, job: Callable[..., T], args: tuple[Any, ...]) -> T:
    def report(fraction: float, text: str = "") -> None:
        if _reports is not None:
            _reports.put((number, fraction, text))

    try:
        return job(*args, report)
    except MemoryError:
        raise WorkerFailed(f"{job.__name__} ran out of memory") from None
    finally:
        if _reports is not None:
            _reports.put((number, None, ""))
