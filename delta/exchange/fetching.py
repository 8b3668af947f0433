"""One supplier of a package that is gathered from many (protocol 2): a transition table from WANT to COMMITTED.

What to ask for is decided by the gathering, which all sessions of the node share; this is the link's part in it. The
first to see the last chunk staged has the package committed; the others learn of it when they look next (``look``).
"""

from __future__ import annotations

import zlib
from enum import Enum, auto
from typing import Any, ClassVar

from aios_node.delta.chunks import TransferKey, chunk_count, chunk_span
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    OpenStaged,
    StageChunk,
    TransferResult,
)
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.receiving import BASE_TO_BLAME
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import Abort, Chunk, Committed, Have, Message, Request, Share, Want
from aios_node.delta.names import short
from aios_node.delta.offers import Offer
from aios_node.delta.swarm.bitmaps import from_ranges, to_ranges
from aios_node.delta.swarm.description import HASH_BYTES, Description
from aios_node.delta.swarm.gathering import Gathering, Stage
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import (
    AiosError,
    Corrupt,
    DataError,
    HashMismatch,
    NoBase,
    ProtocolError,
    ResourceError,
    TooLarge,
    TransferAborted,
)


class Fetch(Enum):
    """Where this link's part stands."""

    ASKED = auto()  # WANT is out; hashes are coming
    OPENING = auto()  # the driver looks what is staged
    FETCHING = auto()
    COMMITTING = auto()  # this link has the package committed
    GIVEN_UP = auto()  # we said ABORT; what the sender said before it heard us is ignored
    ENDED = auto()


class Fetching:
    """One link of a gathering. ``handle`` takes messages, ``complete`` and ``fail`` the driver's answers."""

    def __init__(
        self,
        transfer: int,
        offer: Offer,
        base: str | None,
        outbox: Outbox,
        most_bytes: int,
        *,
        swarm: Swarm,
        link: int,
        codecs: tuple[str, ...],
    ) -> None:
        self.state = Fetch.ASKED
        self.offer = offer
        self.result: TransferResult | None = None
        self.wants_full = False
        self._transfer, self._outbox, self._most_bytes = transfer, outbox, most_bytes
        self._swarm, self._link = swarm, link
        self._codecs = offer.partial.codecs if offer.partial else codecs
        self._key = TransferKey(offer.model, offer.version, base)
        self._hashes = bytearray()
        self._description: Description | None = None
        self._gathering: Gathering | None = None
        self._lead = False
        self._damaged: set[int] = set()
        self._bytes = 0
        outbox.say(Want(transfer, offer.model, offer.version, base, root=swarm.known_root(self._key)))

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to report: another link did all the work, or nobody could."""
        return self._bytes == 0 and not self._lead

    @property
    def busy(self) -> bool:
        """Whether the package is being committed, here or by another session."""
        return self._gathering is not None and self._gathering.stage is Stage.COMMITTING

    def handle(self, message: Message) -> None:
        """A message of the supplier. Raises ProtocolError for one that must not come now."""
        handler = listed(self.TABLE, self.state, message, f"in transfer {self._transfer}")
        try:
            handler(self, message)
        except (DataError, ResourceError) as error:
            self._give_up(error)

    def complete(self, effect: Effect, value: Any) -> None:
        """The driver did what the effect asked for. What was staged or committed counts even after the end."""
        match effect:
            case StageChunk():
                self._staged(effect.index)
            case CommitTransfer():
                self._committed()
            case OpenStaged() if self.state is Fetch.OPENING:
                self._opened(value)
            case _:
                pass

    def fail(self, effect: Effect, error: AiosError) -> None:
        """The driver could not do it."""
        if isinstance(effect, StageChunk):
            self._joined().lost(effect.index)
        if isinstance(effect, CommitTransfer):
            self._commit_failed(error)
        if self.result is None:
            self._give_up(error)

    def cut(self, code: str, message: str) -> None:
        """The session is over. What is staged stays staged."""
        self._end(Fetch.ENDED, error=code, message=message)

    def look(self) -> None:
        """After every input and when other sessions have news: end, commit, or ask for more."""
        gathering = self._gathering
        if gathering is None or self.state is not Fetch.FETCHING:
            return
        if gathering.stage is Stage.DONE:
            self._finish()
        elif gathering.error is not None:
            self._give_up(gathering.error)
        elif gathering.stage is Stage.LIVE and gathering.complete:
            self._commit(gathering)
        else:
            self._ask(gathering)

    def _ask(self, gathering: Gathering) -> None:
        chunks, stop = gathering.ask(self._link), gathering.take_stops(self._link)
        if chunks or stop:
            self._outbox.say(Request(self._transfer, to_ranges(chunks), to_ranges(stop)))

    def _shared(self, share: Share) -> None:
        """The package's description, or a part of its hashes."""
        package = share.package
        if package.base not in {None, self._key.base}:
            raise ProtocolError(f"transfer {self._transfer} comes from a base that was not asked for")
        if package.bytes > self._most_bytes:
            raise TooLarge(f"the package has {package.bytes} bytes, at most {self._most_bytes} are taken here")
        if share.first * HASH_BYTES != len(self._hashes):
            raise ProtocolError(f"transfer {self._transfer} leaves out hashes of chunks")
        known = self._swarm.find(self._key)
        if not share.data and known is not None and known.description.root == share.root:
            description = known.description
        else:
            self._hashes += share.data
            if share.data and len(self._hashes) < HASH_BYTES * chunk_count(package.bytes):
                return
            description = Description(package, bytes(self._hashes))
        if description.root != share.root or description.package != package:
            raise Corrupt(f"transfer {self._transfer} names another root than its hashes have")
        self._join(description, share)

    def _join(self, description: Description, share: Share) -> None:
        self._lead = self._swarm.find(self._key) is None
        gathering = self._swarm.begin(self._link, self._key, description, self.offer, self._codecs)
        gathering.join(self._link, share.start, share.origin)
        self._description, self._gathering = description, gathering
        self.state = Fetch.OPENING
        self._outbox.ask(OpenStaged(self._transfer, self._key, description))

    def _opened(self, missing: tuple[tuple[int, int], ...]) -> None:
        gathering = self._joined()
        self.state = Fetch.FETCHING
        if gathering.stage is Stage.IDLE:
            gathering.opened(missing)
            self._swarm.opened(gathering)
            self._swarm.tell(self._link)

    def _holds(self, have: Have) -> None:
        gathering = self._joined()
        gathering.holds(self._link, from_ranges(have.chunks, gathering.description.count))

    def _take(self, chunk: Chunk) -> None:
        gathering, index = self._joined(), chunk.index
        package = gathering.description.package
        if index >= gathering.description.count or not gathering.expects(self._link, index):
            raise ProtocolError(f"chunk {index} of transfer {self._transfer} was not asked for")
        if (chunk.offset, len(chunk.data)) != chunk_span(package.bytes, index) or chunk.package is not None:
            raise ProtocolError(f"chunk {index} of transfer {self._transfer} has the wrong place or length")
        self._bytes += len(chunk.data)
        needed = gathering.arrived(self._link, index, chunk.data)
        if needed:
            self._outbox.ask(StageChunk(self._transfer, self._key, package, index, chunk.data))
        elif needed is False:
            self._wrong(chunk)

    def _wrong(self, chunk: Chunk) -> None:
        """Damaged on its way: it will be asked for again, once. Sent like that: this peer is not asked again."""
        what = f"chunk {chunk.index} of {self._key.model} {short(self._key.version)}"
        if zlib.crc32(chunk.data) == chunk.crc:
            self._swarm.ban(self._link, self._joined())
            raise HashMismatch(f"{what} is not the one that was announced: this peer is not asked again")
        if chunk.index in self._damaged:
            raise Corrupt(f"{what} came damaged twice")
        self._damaged.add(chunk.index)

    def _staged(self, index: int) -> None:
        self._joined().staged(index)
        self._swarm.chunk_staged()
        self._swarm.tell(self._link)

    def _commit(self, gathering: Gathering) -> None:
        gathering.stage = Stage.COMMITTING
        self.state = Fetch.COMMITTING
        self._lead = True
        package = gathering.description.package
        self._outbox.ask(CommitTransfer(self._transfer, self._key, package, self.offer, gathering.codecs))

    def _committed(self) -> None:
        self._outbox.ask(DiscardStaged(self._transfer, self._key))
        self._swarm.finished(self._joined(), None)
        self._swarm.tell(self._link)
        if self.result is None:
            self._finish()

    def _commit_failed(self, error: AiosError) -> None:
        """Keep what is staged only where the bytes are not to blame; ask in full where the base may be."""
        gathering = self._joined()
        if not isinstance(error, ResourceError | TransferAborted):
            self._outbox.ask(DiscardStaged(self._transfer, self._key))
        poisoned = isinstance(error, DataError) and not isinstance(error, NoBase)
        self._swarm.finished(gathering, error, poisoned=poisoned)
        self._swarm.tell(self._link)
        self.wants_full = gathering.description.package.mode == "delta" and isinstance(error, BASE_TO_BLAME)

    def _finish(self) -> None:
        self._outbox.say(Committed(self._transfer))
        self._end(Fetch.ENDED)

    def _aborted(self, abort: Abort) -> None:
        self._end(Fetch.ENDED, error=abort.code, message=f"the sender: {abort.message}")

    def _ignore(self, message: Message) -> None:
        """The sender had not heard our ABORT or COMMITTED yet."""

    def _give_up(self, error: AiosError) -> None:
        self._outbox.say(Abort(self._transfer, "receiver", error.code, error.message))
        self._end(Fetch.GIVEN_UP, error=error.code, message=error.message)

    def _end(self, state: Fetch, *, error: str | None = None, message: str = "") -> None:
        package = self._description.package if self._description else None
        self.state = state
        if self._gathering is not None:
            self._gathering.leave(self._link)
            self._swarm.tell(self._link)
        resumed = max(0, package.bytes - self._bytes) if package and error is None else 0
        self.result = TransferResult.of(
            self._key, "received", package, carried=self._bytes, resumed=resumed, error=error, message=message
        )

    def _joined(self) -> Gathering:
        if self._gathering is None:
            raise ProtocolError(f"transfer {self._transfer} has not described its package")
        return self._gathering

    TABLE: ClassVar[Table] = {
        (Fetch.ASKED, Share): _shared,
        (Fetch.ASKED, Abort): _aborted,
        (Fetch.OPENING, Have): _holds,
        (Fetch.OPENING, Abort): _aborted,
        (Fetch.FETCHING, Have): _holds,
        (Fetch.FETCHING, Chunk): _take,
        (Fetch.FETCHING, Abort): _aborted,
        (Fetch.COMMITTING, Have): _holds,
        (Fetch.COMMITTING, Chunk): _take,
        (Fetch.COMMITTING, Abort): _ignore,
        (Fetch.GIVEN_UP, Share): _ignore,
        (Fetch.GIVEN_UP, Have): _ignore,
        (Fetch.GIVEN_UP, Chunk): _ignore,
        (Fetch.GIVEN_UP, Abort): _ignore,
        (Fetch.ENDED, Have): _ignore,
        (Fetch.ENDED, Chunk): _ignore,
    }
