"""Independent pieces of work on all cores: one thread per piece, instead of all threads on one piece after the other.

Small products gain little from several threads that must wait for each other at every step; whole batches do not
wait. Torch's own threads are not used inside. Knows nothing of what the pieces are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Piece = TypeVar("_Piece")

_pools: dict[int, ThreadPoolExecutor] = {}
_alone_now: list[int] = []  # how many threads those may use who use one for the moment
_change = threading.Lock()


def each(work: Callable[[_Piece], None], pieces: Sequence[_Piece], *, split_single: bool = True) -> None:
    """Call ``work`` with every piece, on as many threads as torch may use here; returns when all are done.

    A single piece is done by the calling thread; its products then use all of torch's threads, unless
    ``split_single`` is false because they are too small to gain by that. Raises what the first failed piece raised.
    """
    threads = _threads()
    if threads > 1 and len(pieces) > 1:
        running = [_pool(threads).submit(work, piece) for piece in pieces]
        wait(running)
        for piece_of_work in running:
            piece_of_work.result()
        return
    with contextlib.nullcontext() if split_single else _one_thread(threads):
        for piece in pieces:
            work(piece)


def _threads() -> int:
    """How many threads torch may use, as far as the calling thread knows."""
    threads = torch.get_num_threads()
    with _change:
        if threads == 1 and _alone_now:
            # It asked torch for the first time while another thread was alone: that was not meant for it.
            threads = max(_alone_now)
            torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def _one_thread(threads: int) -> Iterator[None]:
    """Torch works in the calling thread only, which may otherwise use ``threads``."""
    with _change:
        _alone_now.append(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with _change:
            _alone_now.remove(threads)


def _pool(threads: int) -> ThreadPoolExecutor:
    """The pool of so many threads; there is one per number, kept for good."""
    with _change:
        if threads not in _pools:
            _pools[threads] = _start(threads)
        return _pools[threads]


def _start(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="aios-compute")
    ready = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(_alone, ready)
    ready.wait()
    # The number is the calling thread's and, for threads yet to come, everybody's: give the latter back.
    torch.set_num_threads(threads)
    return pool


def _alone(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread takes over everybody's number when it first asks: now, not later
    torch.set_num_threads(1)
    ready.wait()
