"""Drives a session in the simulator: effects on a simulated node, messages over a stream, an idle timeout.

Does what a real node's driver does, without threads: jobs take simulated time, and what is not durable when a node is
killed is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from aios_node.delta.exchange.effects import CommitTransfer, Effect, Send, SessionDone, SharePackage, StageChunk
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.simulation.node import SimulatedNode
from aios_node.delta.simulation.wire import Stream
from aios_node.engine.errors import AiosError, TransferAborted

IDLE_TIMEOUT_S: Final = 3.0
CHECKS: Final = 4
JOB_S: Final[dict[type, float]] = {StageChunk: 0.002, CommitTransfer: 0.02, SharePackage: 0.01}


class Driver:
    """One end of a stream with its session. ``ended`` is called once, with the reason or None."""

    def __init__(
        self,
        node: SimulatedNode,
        peer: SimulatedNode,
        session: SyncSession,
        stream: Stream,
        side: int,
        ended: Callable[[str | None], None],
    ) -> None:
        self._node, self._peer = node, peer
        self.session, self._stream, self._side = session, stream, side
        self._ended = ended
        self._inbox: deque[tuple[bytes, bytes | memoryview]] = deque()
        self._dead = False
        self._looking = False
        self._gone = False
        self._progress, self._moved = node.clock.now, session.moved
        session.news = self._news

    def start(self) -> None:
        """Say HELLO."""
        self._take(self.session.start())
        self._node.clock.after(IDLE_TIMEOUT_S / CHECKS, self._check)

    def kill(self) -> None:
        """The process is gone: nothing is answered any more."""
        self._dead = True
        self._stream.close()

    def cut(self) -> None:
        """The network between the two is gone."""
        self._stream.close()

    def arrive(self, metadata: bytes, data: bytes | memoryview) -> None:
        """A message comes in."""
        if not self._dead:
            self._progress = self._node.clock.now
            self._inbox.append((metadata, data))
            self._read()

    def broken(self) -> None:
        """The stream is gone."""
        self._gone = True
        if not self._dead and not self._inbox:
            self._take(self.session.disconnected())

    def _read(self) -> None:
        while self._inbox and self.session.can_receive and not self._dead:
            self._take(self.session.receive(*self._inbox.popleft()))
        if self._gone and not self._inbox and not self._dead:
            self._take(self.session.disconnected())

    def _news(self) -> None:
        if not self._looking and not self._dead:
            self._looking = True
            self._node.clock.after(0, self._look)

    def _look(self) -> None:
        self._looking = False
        if not self._dead and not self.session.over:
            self._take(self.session.look())

    def _check(self) -> None:
        if self._dead or self.session.over:
            return
        now, moved = self._node.clock.now, self.session.moved
        if self.session.busy or moved != self._moved:
            self._moved, self._progress = moved, now
            self._take(self.session.ping())
        elif now - self._progress > IDLE_TIMEOUT_S:
            self._take(self.session.abort(TransferAborted("no progress")))
        self._node.clock.after(IDLE_TIMEOUT_S / CHECKS, self._check)

    def _take(self, effects: Iterable[Effect]) -> None:
        queue = deque(effects)
        while queue and not self._dead:
            effect = queue.popleft()
            if isinstance(effect, Send):
                self._send(effect)
            elif isinstance(effect, SessionDone):
                queue.extend(self.session.complete(effect))
                self._node.clock.after(0, self._stream.close)
                self._ended(effect.error)
            elif type(effect) in JOB_S:
                self._node.clock.after(JOB_S[type(effect)], lambda effect=effect: self._job(effect))  # type: ignore[misc]
            else:
                queue.extend(self._perform(effect))

    def _job(self, effect: Effect) -> None:
        if not self._dead:
            self._take(self._perform(effect))
            self._read()

    def _send(self, effect: Send) -> None:
        def left() -> None:
            if not self._dead:
                self._progress = self._node.clock.now
                self._take(self.session.complete(effect))

        self._stream.send(self._side, effect.metadata, effect.data, effect.message.kind, left)

    def _perform(self, effect: Effect) -> list[Effect]:
        try:
            value = self._node.perform(effect, self._peer)
        except AiosError as error:
            return self.session.fail(effect, error)
        return self.session.complete(effect, value)
