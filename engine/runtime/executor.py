"""DeviceExecutor: one thread that computes for everybody, so that requests share batches and cores.

Torch gives every thread that computes its own team of workers; with one thread per device there is one
team, and small requests that arrive together become one batch. Knows nothing of what a snapshot computes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol

from aios_node.engine.errors import Busy, TooLarge, Unavailable
from aios_node.engine.runtime.turns import Encoded, Encodes, Queue, Request
from aios_node.engine.tokenizer import checked_texts

MAX_TEXTS = 65_536
"""Texts that may wait at once, in all requests together."""


class HasSnapshot(Protocol):
    """What is needed of an engine: the version that new requests run on."""

    @property
    def snapshot(self) -> Encodes:
        """The version to use for a request that arrives now."""
        ...


class DeviceExecutor:
    """Encodes for any number of threads and engines, in one thread of its own.

    ``max_batch``: texts computed together in one turn, fewer when they are long; short turns let small
    requests in between the parts of a large one. ``max_queue``: requests that may wait, and ``max_texts``
    the texts in them.
    """

    def __init__(
        self, *, max_batch: int = 64, max_queue: int = 1024, max_texts: int = MAX_TEXTS, name: str = "aios-device"
    ) -> None:
        self._max_texts = max_texts
        self._max_queue = max_queue
        self._queue = Queue(max_batch)
        self._changed = threading.Condition()
        self._closing = False
        self._drain = True
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts in requests that are not done."""
        with self._changed:
            return self._queue.texts

    def submit_encode(self, engine: HasSnapshot, texts: Sequence[str]) -> Future[Encoded]:
        """Ask for one vector per text; the future gives float32 [n, d] and the version's id.

        The version is fixed now: a swap between this call and the result does not touch it. Raises at
        once: BadRequest for anything but strings, TooLarge for more texts than may ever wait, Busy when
        too much waits already, Unavailable when the engine or this executor is closed.
        """
        request = Request(engine.snapshot, checked_texts(texts))
        if len(request.texts) > self._max_texts:
            raise TooLarge(f"{len(request.texts)} texts in one request: send at most {self._max_texts} at a time")
        if not request.texts:
            request.future.set_result((request.snapshot.encode([]), request.snapshot.version))
            return request.future
        with self._changed:
            self._admit(request)
            self._changed.notify()
        return request.future

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests and end the thread; True when it has ended.

        With ``drain`` everything that waits is still computed, else it fails with Unavailable; the turn
        that runs is always finished. Waits at most ``timeout`` seconds. May be called again.
        """
        with self._changed:
            self._closing = True
            self._drain = self._drain and drain
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> DeviceExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def _admit(self, request: Request) -> None:
        if self._closing:
            raise Unavailable("this node is shutting down: ask another one")
        if len(self._queue) >= self._max_queue or self._queue.texts + len(request.texts) > self._max_texts:
            raise Busy(f"{self._queue.texts} texts are waiting to be encoded: try again later", retry_after_s=1.0)
        self._queue.add(request)

    def _work(self) -> None:
        while self._one_turn():
            pass

    def _one_turn(self) -> bool:
        """Wait for a turn and run it; False when closed. Leaves no reference to a snapshot behind."""
        with self._changed:
            while not self._closing and not len(self._queue):
                self._changed.wait()
            refused = self._queue.drain() if self._closing and not self._drain else []
            turn = self._queue.take_turn()
        for request in refused:
            _refuse(request)
        if turn is not None:
            turn.run()
        with self._changed:
            self._queue.give_back()
            return bool(len(self._queue)) or not self._closing


def _refuse(request: Request) -> None:
    """Fail a request that will not be computed, unless its caller cancelled it."""
    if request.future.running() or request.future.set_running_or_notify_cancel():
        request.future.set_exception(Unavailable("this node is shutting down: ask another one"))
