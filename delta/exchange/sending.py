"""One package on its way out, seen from the exchange: a transition table from WANT to COMMITTED.

Knows nothing about files: the driver builds the package and reads its chunks. Only one chunk at a time is asked
for (``next_chunk``), so that the slowest link sets the pace.
"""

from __future__ import annotations

import zlib
from collections import deque
from enum import Enum, auto
from typing import Any, ClassVar

from aios_node.delta.chunks import TransferKey, chunk_count, chunk_span
from aios_node.delta.exchange.effects import Effect, PreparePackage, ReadChunk, ReleasePackage, TransferResult
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import Abort, Chunk, Commit, Committed, Message, Want
from aios_node.delta.offers import PackageInfo, Resume
from aios_node.engine.errors import AiosError, ProtocolError, StorageError


class Out(Enum):
    """Where an outgoing transfer stands."""

    WAITING = auto()  # others are served first
    PREPARING = auto()
    SENDING = auto()
    AWAITING = auto()  # COMMIT is out
    GIVEN_UP = auto()  # we said ABORT; what the receiver said before it heard us is ignored
    ENDED = auto()


class Sending:
    """An outgoing transfer. ``handle`` takes messages, ``complete`` and ``fail`` the driver's answers."""

    def __init__(self, want: Want, codecs: tuple[str, ...], outbox: Outbox) -> None:
        self.state = Out.WAITING
        self.result: TransferResult | None = None
        self.quiet = False
        self._transfer, self._outbox, self._codecs = want.transfer, outbox, codecs
        self._key = TransferKey(want.model, want.version, want.base)
        self._resume = want.resume
        self._package: PackageInfo | None = None
        self._queue: deque[int] = deque()
        self._repeated: set[int] = set()
        self._round = 0
        self._described = self._reading = False
        self._bytes = self._resumed = 0

    @property
    def waiting(self) -> bool:
        """Whether its turn to be prepared has not come."""
        return self.state is Out.WAITING

    def begin(self) -> None:
        """Have the package built."""
        self.state = Out.PREPARING
        self._outbox.ask(PreparePackage(self._transfer, self._key, self._codecs))

    def handle(self, message: Message) -> None:
        """A message of the receiver. Raises ProtocolError for one that must not come now."""
        listed(self.TABLE, self.state, message, f"in transfer {self._transfer}")(self, message)

    def complete(self, effect: Effect, value: Any) -> None:
        """The driver did what the effect asked for; too late, if the transfer has ended meanwhile."""
        self._reading = False
        if self.result is None:
            listed(self.ANSWERS, self.state, effect, f"in transfer {self._transfer}")(self, effect, value)
        else:
            self._release()

    def fail(self, effect: Effect, error: AiosError) -> None:
        """The driver could not do it."""
        self._reading = False
        if self.result is None:
            self._give_up(error)
        elif isinstance(effect, ReadChunk):
            self._release()

    def cut(self, code: str, message: str) -> None:
        """The session is over."""
        self._end(Out.ENDED, error=code, message=message)

    def next_chunk(self) -> ReadChunk | None:
        """The next piece to read; None, with COMMIT said, when all are sent, and None when nothing is to do."""
        if self.state is not Out.SENDING or self._package is None:
            return None
        if not self._queue:
            self._outbox.say(Commit(self._transfer, self._round, self._package))
            self.state = Out.AWAITING
            return None
        self._reading = True
        index = self._queue.popleft()
        return ReadChunk(self._transfer, self._key, index, *chunk_span(self._package.bytes, index))

    def _prepared(self, effect: PreparePackage, package: PackageInfo) -> None:
        self._package = package
        self.state = Out.SENDING
        count = chunk_count(package.bytes)
        if self._resume is not None and self._resume.sha256 == package.sha256:
            self._queue.extend(_indices(self._resume, count))
        else:
            self._queue.extend(range(count))
        self._resumed = package.bytes - sum(chunk_span(package.bytes, index)[1] for index in self._queue)

    def _send(self, effect: ReadChunk, data: bytes) -> None:
        if len(data) != effect.length:
            self._give_up(StorageError(f"read {len(data)} bytes of a chunk of {effect.length}: the file changed"))
            return
        package = None if self._described else self._package
        self._described = True
        self._bytes += len(data)
        crc = zlib.crc32(data)
        self._outbox.say(Chunk(self._transfer, effect.index, effect.offset, crc, data, package))

    def _again(self, want: Want) -> None:
        """Chunks that came damaged; each may be asked for once more."""
        package, resume = self._package, want.resume
        if package is None or resume is None or resume.sha256 != package.sha256:
            raise ProtocolError(f"transfer {self._transfer} asks again for another package")
        if want.round != self._round + 1 or TransferKey(want.model, want.version, want.base) != self._key:
            raise ProtocolError(f"transfer {self._transfer} asks again out of turn")
        indices = _indices(resume, chunk_count(package.bytes))
        if self._repeated.intersection(indices):
            raise ProtocolError(f"transfer {self._transfer} asks a third time for a chunk")
        self._repeated.update(indices)
        self._queue.extend(indices)
        self._round = want.round
        self.state = Out.SENDING

    def _committed(self, message: Committed) -> None:
        self._end(Out.ENDED)

    def _aborted(self, abort: Abort) -> None:
        self._end(Out.ENDED, error=abort.code, message=f"the receiver: {abort.message}")

    def _ignore(self, message: Message) -> None:
        """The receiver had not heard our ABORT yet."""

    def _give_up(self, error: AiosError) -> None:
        self._outbox.say(Abort(self._transfer, "sender", error.code, error.message))
        self._end(Out.GIVEN_UP, error=error.code, message=error.message)

    def _end(self, state: Out, *, error: str | None = None, message: str = "") -> None:
        package = self._package
        self.state = state
        self._queue.clear()
        self.result = TransferResult.of(
            self._key, "sent", package, carried=self._bytes, resumed=self._resumed, error=error, message=message
        )
        if package is not None and not self._reading:
            self._release()

    def _release(self) -> None:
        self._outbox.ask(ReleasePackage(self._transfer, self._key))

    TABLE: ClassVar[Table] = {
        (Out.WAITING, Abort): _aborted,
        (Out.PREPARING, Abort): _aborted,
        (Out.SENDING, Abort): _aborted,
        (Out.SENDING, Want): _again,
        (Out.AWAITING, Abort): _aborted,
        (Out.AWAITING, Want): _again,
        (Out.AWAITING, Committed): _committed,
        (Out.GIVEN_UP, Abort): _ignore,
        (Out.GIVEN_UP, Want): _ignore,
    }
    ANSWERS: ClassVar[Table] = {
        (Out.PREPARING, PreparePackage): _prepared,
        (Out.SENDING, ReadChunk): _send,
    }


def _indices(resume: Resume, count: int) -> list[int]:
    if resume.missing and resume.missing[-1][1] > count:
        raise ProtocolError(f"chunk {resume.missing[-1][1] - 1} of a package of {count} chunks is asked for")
    return [index for first, end in resume.missing for index in range(first, end)]
