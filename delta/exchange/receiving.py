"""One package on its way in, seen from the exchange: a transition table from WANT to COMMITTED.

Knows nothing about disks: the driver stages and commits. What it promises: no chunk is asked for that is staged,
a damaged chunk is asked for once more, nothing is committed before every chunk is staged.
"""

from __future__ import annotations

import zlib
from enum import Enum, auto
from typing import Any, ClassVar, Final

from aios_node.delta.chunks import TransferKey, chunk_count, chunk_span
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    FindStaged,
    StageChunk,
    TransferResult,
)
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import Abort, Chunk, Commit, Committed, Message, Want
from aios_node.delta.names import short
from aios_node.delta.offers import Offer, PackageInfo, Resume
from aios_node.engine.errors import (
    AiosError,
    Corrupt,
    DataError,
    HashMismatch,
    NoBase,
    NotFound,
    ProtocolError,
    ResourceError,
    TooLarge,
    TransferAborted,
)

MOST_RANGES: Final = 16_384
BASE_TO_BLAME: Final = (NoBase, HashMismatch, Corrupt, NotFound)
"""Failures of a delta that a full package may not have: the base is gone, damaged or another one."""


class In(Enum):
    """Where an incoming transfer stands."""

    LOOKING = auto()  # the driver looks for staged chunks
    ASKED = auto()  # WANT is out, nothing has come back
    RECEIVING = auto()
    STAGING = auto()  # COMMIT is here, the last chunks are being staged
    COMMITTING = auto()
    GIVEN_UP = auto()  # we said ABORT; what the sender said before it heard us is ignored
    ENDED = auto()


class Receiving:
    """An incoming transfer. ``handle`` takes messages, ``complete`` and ``fail`` the driver's answers."""

    def __init__(self, transfer: int, offer: Offer, base: str | None, outbox: Outbox, most_bytes: int) -> None:
        self.state = In.LOOKING
        self.offer = offer
        self.result: TransferResult | None = None
        self.wants_full = False
        self.quiet = False
        self._transfer, self._outbox, self._most_bytes = transfer, outbox, most_bytes
        self._key = TransferKey(offer.model, offer.version, base)
        self._resume: Resume | None = None
        self._package: PackageInfo | None = None
        self._missing: set[int] = set()
        self._unstaged: set[int] = set()
        self._again: set[int] = set()
        self._round = 0
        self._bytes = self._resumed = 0
        outbox.ask(FindStaged(transfer, self._key))

    def handle(self, message: Message) -> None:
        """A message of the sender. Raises ProtocolError for one that must not come now."""
        handler = listed(self.TABLE, self.state, message, f"in transfer {self._transfer}")
        try:
            handler(self, message)
        except DataError as error:
            self._give_up(error)

    def complete(self, effect: Effect, value: Any) -> None:
        """The driver did what the effect asked for."""
        listed(self.ANSWERS, self.state, effect, f"in transfer {self._transfer}")(self, effect, value)

    def fail(self, effect: Effect, error: AiosError) -> None:
        """The driver could not do it."""
        if isinstance(effect, FindStaged):
            self._end(In.GIVEN_UP, error=error.code, message=error.message)
            return
        if isinstance(effect, CommitTransfer):
            self._commit_failed(error)
        self._give_up(error)

    def cut(self, code: str, message: str) -> None:
        """The session is over. What is staged stays staged."""
        self._end(In.ENDED, error=code, message=message)

    def _ask(self, effect: FindStaged, resume: Resume | None) -> None:
        if resume is not None and len(resume.missing) > MOST_RANGES:
            kept = resume.missing[: MOST_RANGES - 1]
            rest = (resume.missing[MOST_RANGES - 1][0], resume.missing[-1][1])
            resume = Resume(resume.sha256, (*kept, rest))
        self._resume = resume
        self.state = In.ASKED
        self._want(resume)

    def _want(self, resume: Resume | None) -> None:
        key = self._key
        self._outbox.say(Want(self._transfer, key.model, key.version, key.base, self._round, resume))

    def _first_chunk(self, chunk: Chunk) -> None:
        if chunk.package is None:
            raise ProtocolError(f"the first chunk of transfer {self._transfer} does not describe its package")
        self._adopt(chunk.package)
        self._take(chunk)

    def _next_chunk(self, chunk: Chunk) -> None:
        if chunk.package is not None:
            raise ProtocolError(f"transfer {self._transfer} describes its package twice")
        self._take(chunk)

    def _only_commit(self, commit: Commit) -> None:
        """Everything was staged already, so no chunk had to come."""
        self._adopt(commit.package)
        self._all_sent(commit)

    def _adopt(self, package: PackageInfo) -> None:
        if package.base not in {None, self._key.base}:
            raise ProtocolError(f"transfer {self._transfer} comes from a base that was not asked for")
        self._package = package
        self.state = In.RECEIVING
        if package.bytes > self._most_bytes:
            raise TooLarge(f"the package has {package.bytes} bytes, at most {self._most_bytes} are taken here")
        count = chunk_count(package.bytes)
        resume = self._resume
        ranges = resume.missing if resume and resume.sha256 == package.sha256 else ((0, count),)
        self._missing = {index for first, end in ranges for index in range(first, min(end, count))}
        self._resumed = package.bytes - sum(chunk_span(package.bytes, index)[1] for index in self._missing)

    def _take(self, chunk: Chunk) -> None:
        package = self._described()
        if chunk.index not in self._missing:
            raise ProtocolError(f"chunk {chunk.index} of transfer {self._transfer} was not asked for")
        if (chunk.offset, len(chunk.data)) != chunk_span(package.bytes, chunk.index):
            raise ProtocolError(f"chunk {chunk.index} of transfer {self._transfer} has the wrong place or length")
        self._bytes += len(chunk.data)
        if zlib.crc32(chunk.data) != chunk.crc:
            self._ask_again(package, chunk.index)
            return
        self._missing.discard(chunk.index)
        self._unstaged.add(chunk.index)
        self._outbox.ask(StageChunk(self._transfer, self._key, package, chunk.index, chunk.data))

    def _ask_again(self, package: PackageInfo, index: int) -> None:
        if index in self._again:
            raise Corrupt(f"chunk {index} of {self._key.model} {short(self._key.version)} came damaged twice")
        self._again.add(index)
        self._round += 1
        self._want(Resume(package.sha256, ((index, index + 1),)))

    def _all_sent(self, commit: Commit) -> None:
        if commit.package != self._package or commit.round > self._round:
            raise ProtocolError(f"transfer {self._transfer} is committed as something else than was sent")
        if commit.round < self._round:
            return  # said before our last WANT was heard; another follows
        if self._missing:
            raise ProtocolError(f"transfer {self._transfer} is committed with {len(self._missing)} chunks missing")
        self.state = In.STAGING
        self._commit_when_staged()

    def _staged(self, effect: StageChunk, value: None) -> None:
        self._unstaged.discard(effect.index)

    def _last_staged(self, effect: StageChunk, value: None) -> None:
        self._unstaged.discard(effect.index)
        self._commit_when_staged()

    def _commit_when_staged(self) -> None:
        if not self._unstaged:
            self.state = In.COMMITTING
            self._outbox.ask(CommitTransfer(self._transfer, self._key, self._described(), self.offer))

    def _committed(self, effect: CommitTransfer, value: None) -> None:
        self._outbox.ask(DiscardStaged(self._transfer, self._key))
        self._outbox.say(Committed(self._transfer))
        self._end(In.ENDED)

    def _commit_failed(self, error: AiosError) -> None:
        """Keep what is staged only where the bytes are not to blame; ask in full where the base may be."""
        if not isinstance(error, ResourceError | TransferAborted):
            self._outbox.ask(DiscardStaged(self._transfer, self._key))
        self.wants_full = self._described().mode == "delta" and isinstance(error, BASE_TO_BLAME)

    def _aborted(self, abort: Abort) -> None:
        self._end(In.ENDED, error=abort.code, message=f"the sender: {abort.message}")

    def _ignore(self, message: Message) -> None:
        """The sender had not heard our ABORT yet."""

    def _give_up(self, error: AiosError) -> None:
        self._outbox.say(Abort(self._transfer, "receiver", error.code, error.message))
        self._end(In.GIVEN_UP, error=error.code, message=error.message)

    def _end(self, state: In, *, error: str | None = None, message: str = "") -> None:
        package = self._package
        self.state = state
        self._missing, self._unstaged = set(), set()
        self.result = TransferResult.of(
            self._key, "received", package, carried=self._bytes, resumed=self._resumed, error=error, message=message
        )

    def _described(self) -> PackageInfo:
        if self._package is None:
            raise ProtocolError(f"transfer {self._transfer} has not described its package")
        return self._package

    TABLE: ClassVar[Table] = {
        (In.ASKED, Chunk): _first_chunk,
        (In.ASKED, Commit): _only_commit,
        (In.ASKED, Abort): _aborted,
        (In.RECEIVING, Chunk): _next_chunk,
        (In.RECEIVING, Commit): _all_sent,
        (In.RECEIVING, Abort): _aborted,
        (In.GIVEN_UP, Chunk): _ignore,
        (In.GIVEN_UP, Commit): _ignore,
        (In.GIVEN_UP, Abort): _ignore,
    }
    ANSWERS: ClassVar[Table] = {
        (In.LOOKING, FindStaged): _ask,
        (In.RECEIVING, StageChunk): _staged,
        (In.STAGING, StageChunk): _last_staged,
        (In.COMMITTING, CommitTransfer): _committed,
    }
