"""Blocks are coded side by side: results come in order, and only a few are in memory at once.

The compiled loops, zstd and SHA-256 let go of the interpreter, so that threads help. Knows nothing about blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from aios_node.engine.devices import compute_threads
from aios_node.engine.errors import AiosError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

THREADS: Final = 2
"""Each takes up to 28 MiB; more would not fit into what coding may take beside its input and output."""


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """``map`` on THREADS threads, or fewer processors, at most so many results ahead of the reader.

    Errors come in order too: what raises in ``items`` is raised after the results before it.
    """
    threads = min(THREADS, compute_threads())
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                del item  # what was handed over must not stay until the next one is made
                if len(waiting) > threads:
                    yield waiting.popleft().result()
        except AiosError:
            yield from _drained(waiting)
            raise
        yield from _drained(waiting)


def _drained(waiting: deque[Future[_Result]]) -> Iterator[_Result]:
    while waiting:
        yield waiting.popleft().result()
