"""One receiver of a package that is passed on (protocol 2): a transition table from WANT to COMMITTED.

The receiver asks for chunks, one at a time is read and sent: the one that this node has handed out least. The package
may still be arriving here; what arrives is told by HAVE, unless the receiver is known to have it. Knows nothing about
files: the driver opens the package.
"""

from __future__ import annotations

import zlib
from enum import Enum, auto
from typing import Any, ClassVar, Final

from aios_node.delta.chunks import TransferKey, chunk_span
from aios_node.delta.exchange.effects import Effect, ReadChunk, ReleasePackage, Shared, SharePackage, TransferResult
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import Abort, Chunk, Committed, Have, Message, Request, Share, Want
from aios_node.delta.offers import PackageInfo
from aios_node.delta.swarm.bitmaps import Bitmap, first_from, from_ranges, full, indices, to_ranges
from aios_node.delta.swarm.description import HASH_BYTES, Description, spread
from aios_node.delta.swarm.gathering import Gathering, Stage
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, ProtocolError, StorageError

HASHES_PER_MESSAGE: Final = 32_768
MOST_ASKS: Final = 8  # times that one chunk may be asked for in a transfer


class Serve(Enum):
    """Where an outgoing transfer stands."""

    WAITING = auto()  # others are served first
    PREPARING = auto()
    SERVING = auto()
    GIVEN_UP = auto()  # we said ABORT; what the receiver said before it heard us is ignored
    ENDED = auto()


class Serving:
    """An outgoing transfer. ``handle`` takes messages, ``complete`` and ``fail`` the driver's answers."""

    def __init__(self, want: Want, codecs: tuple[str, ...], outbox: Outbox, *, swarm: Swarm, link: int) -> None:
        self.state = Serve.WAITING
        self.result: TransferResult | None = None
        self._transfer, self._outbox, self._codecs = want.transfer, outbox, codecs
        self._swarm, self._link, self._root = swarm, link, want.root
        self._key = TransferKey(want.model, want.version, want.base)
        self._description: Description | None = None
        self._gathering: Gathering | None = None
        self._origin = False
        self._told: Bitmap = 0
        self._queue: Bitmap = 0
        self._place = 0
        self._sent: dict[int, int] = {}
        self._reading = False
        self._bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether its turn to be prepared has not come."""
        return self.state is Serve.WAITING

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to report."""
        return self._bytes == 0

    def begin(self) -> None:
        """Have the package built, or opened where it is still arriving."""
        self.state = Serve.PREPARING
        gathering = self._gathering = self._swarm.find(self._key)
        arriving = gathering.description if gathering else None
        self._outbox.ask(SharePackage(self._transfer, self._key, self._codecs, arriving))

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
        self._end(Serve.ENDED, error=code, message=message)

    def look(self) -> None:
        """Tell what has arrived here since the last time, or that it was no good."""
        gathering = self._gathering
        if self.state is not Serve.SERVING or gathering is None:
            return
        if gathering.error is not None:
            self._give_up(gathering.error)
            return
        news = self._here() & ~self._told & ~gathering.held_by(self._link)
        if news:
            self._told |= news
            self._outbox.say(Have(self._transfer, to_ranges(news)))

    def next_chunk(self) -> ReadChunk | None:
        """The next piece to read; None when nothing is asked for."""
        if self.state is not Serve.SERVING or not self._queue:
            return None
        handed = self._swarm.handed(self._described().root)
        index = first_from(handed.chunks.rarest(self._queue), self._place)
        handed.chunks.add(1 << index)
        self._queue &= ~(1 << index)
        self._place, self._reading = index, True
        return ReadChunk(self._transfer, self._key, index, *chunk_span(self._package().bytes, index))

    def _prepared(self, effect: SharePackage, shared: Shared) -> None:
        self._description, self._origin = shared.description, shared.origin
        self.state = Serve.SERVING
        root = shared.description.root
        if effect.arriving is None:
            self._gathering = None
        handed = self._swarm.handed(root)
        start = self._place = spread(handed.receivers, shared.description.count)
        handed.receivers += 1
        for first, hashes in self._pages(shared.description):
            share = Share(self._transfer, self._package(), root, shared.origin, start, first, hashes)
            self._outbox.say(share)
        self._told = self._here()
        self._outbox.say(Have(self._transfer, to_ranges(self._told)))

    def _pages(self, description: Description) -> list[tuple[int, bytes]]:
        """(number of the first chunk, hashes), or one empty page where the receiver knows them."""
        if self._root == description.root:
            return [(0, b"")]
        size = HASHES_PER_MESSAGE * HASH_BYTES
        hashes = description.hashes
        return [(at // HASH_BYTES, hashes[at : at + size]) for at in range(0, len(hashes), size)]

    def _here(self) -> Bitmap:
        if self._gathering is None or self._gathering.stage is Stage.DONE:
            return full(self._described().count)
        return self._gathering.have

    def _asked(self, request: Request) -> None:
        count = self._described().count
        for ranges in (request.chunks, request.stop):
            if ranges and ranges[-1][1] > count:
                raise ProtocolError(f"chunk {ranges[-1][1] - 1} of a package of {count} chunks is asked for")
        self._queue &= ~from_ranges(request.stop, count)
        chunks = from_ranges(request.chunks, count)
        if chunks & ~self._here():
            raise ProtocolError(f"transfer {self._transfer} asks for chunks that are not here")
        for index in indices(chunks):
            self._sent[index] = self._sent.get(index, 0) + 1
            if self._sent[index] > MOST_ASKS:
                raise ProtocolError(f"transfer {self._transfer} asks for chunk {index} again and again")
        self._queue |= chunks

    def _send(self, effect: ReadChunk, data: bytes) -> None:
        if len(data) != effect.length:
            self._give_up(StorageError(f"read {len(data)} bytes of a chunk of {effect.length}: the file changed"))
            return
        self._bytes += len(data)
        self._outbox.say(Chunk(self._transfer, effect.index, effect.offset, zlib.crc32(data), data))

    def _committed(self, message: Committed) -> None:
        self._end(Serve.ENDED)

    def _aborted(self, abort: Abort) -> None:
        self._end(Serve.ENDED, error=abort.code, message=f"the receiver: {abort.message}")

    def _ignore(self, message: Message) -> None:
        """The receiver had not heard our ABORT yet."""

    def _give_up(self, error: AiosError) -> None:
        self._outbox.say(Abort(self._transfer, "sender", error.code, error.message))
        self._end(Serve.GIVEN_UP, error=error.code, message=error.message)

    def _end(self, state: Serve, *, error: str | None = None, message: str = "") -> None:
        package = self._description.package if self._description else None
        self.state = state
        self._queue = 0
        resumed = max(0, package.bytes - self._bytes) if package and error is None else 0
        self.result = TransferResult.of(
            self._key, "sent", package, carried=self._bytes, resumed=resumed, error=error, message=message
        )
        if package is not None and not self._reading:
            self._release()

    def _release(self) -> None:
        self._outbox.ask(ReleasePackage(self._transfer, self._key))

    def _described(self) -> Description:
        if self._description is None:
            raise ProtocolError(f"transfer {self._transfer} has not described its package")
        return self._description

    def _package(self) -> PackageInfo:
        return self._described().package

    TABLE: ClassVar[Table] = {
        (Serve.WAITING, Abort): _aborted,
        (Serve.PREPARING, Abort): _aborted,
        (Serve.SERVING, Request): _asked,
        (Serve.SERVING, Committed): _committed,
        (Serve.SERVING, Abort): _aborted,
        (Serve.GIVEN_UP, Request): _ignore,
        (Serve.GIVEN_UP, Committed): _ignore,
        (Serve.GIVEN_UP, Abort): _ignore,
    }
    ANSWERS: ClassVar[Table] = {
        (Serve.PREPARING, SharePackage): _prepared,
        (Serve.SERVING, ReadChunk): _send,
    }
