"""Drives one sync session over one stream: delta's pure state machine gets sockets, threads and a clock.

Three threads, so that neither side can block the other: one reads, one sends, the caller's steps the
session. Slow work (preparing and committing packages) runs beside them. The idle timeout counts
progress: a message that arrived, or one that left; while this side works it sends PING instead. It also
says PING now and then while it only receives: what a sender has sent may lie in buffers for longer than
the timeout on a slow line, and nothing else would tell it that they empty.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import structlog

from aios_node.delta.exchange.effects import (
    CommitTransfer,
    Effect,
    OpenStaged,
    PreparePackage,
    Send,
    SessionDone,
    SharePackage,
    StageChunk,
    TransferResult,
)
from aios_node.delta.exchange.session import Answer, SyncSession
from aios_node.engine.errors import AiosError, TransferAborted
from aios_node.flight.ports import SyncTransport

log = structlog.get_logger("sync")

INBOX = 16  # messages read ahead of the session
PINGS_PER_TIMEOUT = 4


class Work(Protocol):
    """Performs every effect but Send and SessionDone."""

    def perform(self, effect: Effect) -> Answer:
        """Do it and return what ``complete`` expects. Raises AiosError when it cannot be done."""
        ...

    def close(self) -> None:
        """The session is over: give everything back."""
        ...


class Pace(Protocol):
    """Holds back what would exceed a bandwidth cap."""

    def spend(self, count: int, *, wait: bool = True) -> None:
        """Wait until ``count`` bytes may pass; without ``wait`` only count them."""
        ...


class SyncDriver:
    """One session from HELLO to its end, on the calling thread."""

    def __init__(
        self,
        session: SyncSession,
        transport: SyncTransport,
        work: Work,
        *,
        idle_timeout_s: float,
        pace: Pace,
        intake: Pace | None = None,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._transport = transport
        self._work = work
        self._idle_timeout_s = idle_timeout_s
        self._pace, self._intake = pace, intake
        self._stopping = stopping
        self._wake = threading.Condition()
        self._inbox: deque[tuple[bytes, bytes]] = deque()
        self._outbox: deque[Send] = deque()
        self._answers: deque[Callable[[], list[Effect]]] = deque()
        self._ended: str | None = None  # why the other side sends nothing more
        self._closed = False
        self._look = False  # another session of this node has news for this one
        self._moved = session.moved
        self._clock = clock
        self._progress = self._spoke = clock()
        self.outcome: SessionDone | None = None
        session.news = self._news

    def run(self) -> tuple[TransferResult, ...]:
        """Exchange until both sides are done. Raises TransferAborted or what ended the session early."""
        threads = [
            threading.Thread(target=self._read, name="sync-read", daemon=True),
            threading.Thread(target=self._send, name="sync-send", daemon=True),
        ]
        for thread in threads:
            thread.start()
        with ThreadPoolExecutor(4, "sync-work") as jobs:
            try:
                self._step(self._session.start(), jobs)
                while not self._session.over:
                    self._step(self._next(), jobs)
                self._drain_outbox()
            finally:
                self._close()
                self._transport.close()
        self._late_answers()
        for thread in threads:
            thread.join(5)
        self._work.close()
        done = self.outcome
        if done is not None and done.error is not None:
            raise TransferAborted(f"sync ended early ({done.error}): {done.message}")
        return self._session.results

    def _next(self) -> list[Effect]:
        """Wait for the next input and give it to the session."""
        with self._wake:
            self._wake.wait_for(self._has_input, self._idle_timeout_s / PINGS_PER_TIMEOUT)
            step = self._choose()
        return step()  # not under the lock: sessions of one node share a guard, and wake each other

    def _choose(self) -> Callable[[], list[Effect]]:
        if self._answers:
            return self._answers.popleft()
        if self._stopping.is_set():
            return lambda: self._session.abort(TransferAborted("this node is stopping: try again later"))
        if self._look:
            self._look = False
            return self._session.look
        if self._inbox and self._session.can_receive:
            metadata, data = self._inbox.popleft()
            self._wake.notify_all()
            return lambda: self._listened(self._session.receive(metadata, data))
        if self._ended is not None and not self._inbox:
            reason = self._ended
            return lambda: self._session.disconnected(reason)
        return self._idle

    def _news(self) -> None:
        """Called by other sessions, which hold the guard: only remember it."""
        with self._wake:
            self._look = True
            self._wake.notify_all()

    def _has_input(self) -> bool:
        message = bool(self._inbox) and self._session.can_receive
        gone = self._ended is not None and not self._inbox
        return bool(self._answers) or self._look or message or gone or self._stopping.is_set()

    def _listened(self, effects: list[Effect]) -> list[Effect]:
        """After a message: PING as well, if chunks come in and this side has not said a word for a while."""
        silent = self._clock() - self._spoke >= self._idle_timeout_s / PINGS_PER_TIMEOUT
        if silent and any(isinstance(effect, StageChunk) for effect in effects):
            return [*effects, *self._session.ping()]
        return effects

    def _idle(self) -> list[Effect]:
        moved, self._moved = self._session.moved != self._moved, self._session.moved
        if self._session.busy or moved:
            self._progress = self._clock()
            return self._session.ping()
        if self._clock() - self._progress > self._idle_timeout_s:
            return self._session.abort(
                TransferAborted(f"no progress for {self._idle_timeout_s:g} s (limits.idle_timeout_s)")
            )
        return []

    def _step(self, effects: list[Effect], jobs: ThreadPoolExecutor) -> None:
        """Perform effects, and those that their answers ask for, in order."""
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            if isinstance(effect, Send):
                self._spoke = self._clock()
                with self._wake:
                    self._outbox.append(effect)
                    self._wake.notify_all()
            elif isinstance(effect, SessionDone):
                self.outcome = effect
                queue.extend(self._session.complete(effect))
            elif isinstance(effect, PreparePackage | SharePackage | OpenStaged | CommitTransfer):
                self._start_job(effect, jobs)
            else:
                queue.extend(self._perform(effect)())

    def _start_job(self, effect: Effect, jobs: ThreadPoolExecutor) -> None:
        def finished(future: Future[Callable[[], list[Effect]]]) -> None:
            self._answer(future.result())

        jobs.submit(self._perform, effect).add_done_callback(finished)

    def _perform(self, effect: Effect) -> Callable[[], list[Effect]]:
        try:
            value = self._work.perform(effect)
        except AiosError as error:
            failure = error
            return lambda: self._session.fail(effect, failure)
        except Exception:
            log.exception("a sync effect failed", effect=type(effect).__name__)
            failure = TransferAborted(f"internal error in {type(effect).__name__}: this node's log says more")
            return lambda: self._session.fail(effect, failure)
        return lambda: self._session.complete(effect, value)

    def _answer(self, answer: Callable[[], list[Effect]]) -> None:
        with self._wake:
            self._answers.append(answer)
            self._wake.notify_all()

    def _read(self) -> None:
        """Reader thread: messages into the inbox, never more than INBOX ahead of the session."""
        while True:
            try:
                message = self._transport.receive(self._idle_timeout_s)
            except TimeoutError:
                if self._closed:
                    return
                continue
            except AiosError as error:
                self._end(error.message)
                return
            if message is None:
                self._end("the peer ended the stream")
                return
            if self._intake is not None:
                self._intake.spend(len(message[0]) + len(message[1] or b""))
            with self._wake:
                self._wake.wait_for(lambda: self._closed or len(self._inbox) < INBOX)
                if self._closed:
                    return
                self._progress = self._clock()
                self._inbox.append((message[0], message[1] or b""))
                self._wake.notify_all()

    def _end(self, reason: str) -> None:
        with self._wake:
            self._ended = reason
            self._wake.notify_all()

    def _send(self) -> None:
        """Sender thread: what the session wants sent, in order, within the bandwidth cap."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or bool(self._outbox))
                if not self._outbox:
                    return
                effect = self._outbox[0]
            answer = self._send_one(effect)
            with self._wake:
                if self._outbox:
                    self._outbox.popleft()
                self._answers.append(answer)
                self._wake.notify_all()

    def _send_one(self, effect: Send) -> Callable[[], list[Effect]]:
        try:
            self._pace.spend(len(effect.metadata) + len(effect.data), wait=len(effect.data) > 0)
            self._transport.send(effect.metadata, effect.data or None)
        except AiosError as error:
            failure = error
            return lambda: self._session.fail(effect, failure)
        self._progress = self._clock()
        return lambda: self._session.complete(effect)

    def _drain_outbox(self) -> None:
        """Let the last words (DONE, ABORT) leave before the stream is closed."""
        with self._wake:
            self._wake.wait_for(lambda: not self._outbox or self._ended is not None, min(5.0, self._idle_timeout_s))

    def _close(self) -> None:
        with self._wake:
            self._closed = True
            self._outbox.clear()
            self._wake.notify_all()

    def _late_answers(self) -> None:
        """The session is told how everything ended, so that it releases what it holds."""
        while self._answers:
            for effect in self._answers.popleft()():
                if not isinstance(effect, Send | SessionDone):
                    self._perform(effect)()
