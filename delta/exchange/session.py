"""The sync exchange as a pure state machine: messages in, effects out, both directions in one stream.

    protocol 1:  HELLO -> OFFER -> WANT -> CHUNK... -> COMMIT -> COMMITTED | ABORT
    protocol 2:  HELLO -> OFFER -> WANT -> SHARE -> HAVE..., REQUEST..., CHUNK... -> COMMITTED | ABORT

DONE and PING come at any time after OFFER. Protocol 2 is spoken where both have a swarm: what several sessions of a
node receive together, they share through it, and what is still arriving is offered to others.

Knows no sockets, files, threads or clocks. The driver owns those: it hands in what arrives (``receive``) and how its
own work went (``complete``, ``fail``), and performs the effects that every call returns (``effects`` lists them).
Whatever the tables of this module, ``receiving`` and ``sending`` do not list is a ProtocolError, which ends the
session with an ABORT that carries its code. The session decides nothing about versions: ``SyncPolicy`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from aios_node.delta.codec.codecs import CODECS, choose
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    Effect,
    FindStaged,
    OpenStaged,
    PreparePackage,
    ReadChunk,
    Send,
    SessionDone,
    Shared,
    SharePackage,
    StageChunk,
    TransferDone,
    TransferResult,
)
from aios_node.delta.exchange.incoming import Incoming
from aios_node.delta.exchange.offering import MayOffer, Offering
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.outgoing import Outgoing
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import (
    PASSED_ON,
    PUSHED,
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Have,
    Hello,
    Offers,
    Ping,
    Request,
    Share,
    Want,
    decode,
)
from aios_node.delta.limits import DEFAULT_LIMITS
from aios_node.delta.offers import Offer, PackageInfo, Resume, SyncPolicy
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, BadRequest, ProtocolError, TransferAborted

Answer = PackageInfo | Resume | Shared | tuple[tuple[int, int], ...] | bytes | memoryview | None


@dataclass(frozen=True)
class SessionConfig:
    """How much a session takes on.

    ``window``: chunks that may be between arrival and disk; ``parallel``: packages received at once; ``served``:
    packages prepared and sent at once; ``offers``: versions a peer may offer; ``package_bytes``: the largest
    package taken; ``codecs``: names this side can decode.
    """

    window: int = 8
    parallel: int = 2
    served: int = 4
    offers: int = 4096
    package_bytes: int = DEFAULT_LIMITS.package_bytes
    codecs: tuple[str, ...] = tuple(CODECS)


class Phase(Enum):
    """What the peer has said so far."""

    NEW = auto()
    GREETING = auto()  # our HELLO is out
    LISTENING = auto()  # the peer's HELLO is here, its offers are coming
    TRADING = auto()
    PEER_DONE = auto()  # the peer asks for nothing more
    CLOSED = auto()


class SyncSession:
    """One exchange with one peer. Every method returns the effects to perform, in order.

    Never raises for what a peer does. RuntimeError tells a driver that it broke the rules.
    """

    def __init__(
        self,
        offers: Iterable[Offer],
        policy: SyncPolicy,
        config: SessionConfig | None = None,
        *,
        swarm: Swarm | None = None,
        peer: str = "",
        may_offer: MayOffer = lambda offer: True,
        news: Callable[[], None] = lambda: None,
    ) -> None:
        """``swarm``: what this node's sessions share; ``peer``: the identity that the peer has proved.

        ``may_offer``: whether this peer may have what is still arriving here. ``news`` is called, from any session of
        the swarm, when ``look`` should be.
        """
        self.phase = Phase.NEW
        self.news = news
        self._swarm = swarm
        self._guard: AbstractContextManager[object] = nullcontext() if swarm is None else swarm.guard
        with self._guard:
            self._link = 0 if swarm is None else swarm.connect(peer, self._tell)
        self._protocol = PUSHED
        self._config = config = config or SessionConfig()
        self._outbox = Outbox()
        self._offering = Offering(offers, self._outbox, swarm, may_offer)
        self._incoming = Incoming(
            policy,
            self._outbox,
            parallel=config.parallel,
            offers=config.offers,
            most_bytes=config.package_bytes,
            swarm=swarm,
            link=self._link,
        )
        self._outgoing = Outgoing(
            self._offering.offered, self._outbox, served=config.served, swarm=swarm, link=self._link
        )
        self._codecs: tuple[str, ...] = ()
        self._expected = 0
        self._said_done = False
        self.missed = False
        self._results: list[TransferResult] = []

    @property
    def over(self) -> bool:
        """Whether SessionDone was returned; what arrives now is ignored."""
        return self.phase is Phase.CLOSED

    @property
    def can_receive(self) -> bool:
        """Whether the driver may read the next message: the bound on chunks that are not on disk yet."""
        return self._outbox.open(StageChunk) < self._config.window

    @property
    def busy(self) -> bool:
        """Whether a job of the driver is under way, so that PING may tell the peer to be patient."""
        jobs = (PreparePackage, SharePackage, CommitTransfer, StageChunk, FindStaged, OpenStaged)
        return self._outbox.open(*jobs) > 0 or self._incoming.busy

    @property
    def moved(self) -> int:
        """Chunks that all sessions of this node have gathered together: a link that waits for others looks at this."""
        return 0 if self._swarm is None else self._swarm.moved

    @property
    def results(self) -> tuple[TransferResult, ...]:
        """Transfers that have ended, in order."""
        return tuple(self._results)

    def start(self) -> list[Effect]:
        """Say HELLO. Both sides do."""
        if self.phase is not Phase.NEW:
            raise RuntimeError("start() was called before")
        self.phase = Phase.GREETING
        self._outbox.say(Hello(self._protocols, choose(self._config.codecs)))
        return self._outbox.drain()

    def look(self) -> list[Effect]:
        """Other sessions of this node have news."""
        return self._guarded(lambda: None)

    def receive(self, metadata: bytes, data: bytes | memoryview = b"") -> list[Effect]:
        """One message from the stream. Call it only while ``can_receive``."""
        if self.over:
            return []
        if not self.can_receive:
            raise RuntimeError("receive() was called while can_receive is False: wait for StageChunk answers")
        return self._guarded(lambda: self._receive(metadata, data))

    def complete(self, effect: Effect, value: Answer = None) -> list[Effect]:
        """An effect was performed. Call this or ``fail`` once for every effect, even after the end."""
        self._outbox.answered(effect)
        return self._guarded(lambda: self._complete(effect, value))

    def fail(self, effect: Effect, error: AiosError) -> list[Effect]:
        """An effect could not be performed."""
        self._outbox.answered(effect)
        return self._guarded(lambda: self._fail(effect, error))

    def ping(self) -> list[Effect]:
        """Tell the peer that work goes on here. Does nothing before the peer's HELLO and after the end."""
        if self.phase in {Phase.LISTENING, Phase.TRADING, Phase.PEER_DONE}:
            self._outbox.say(Ping())
        return self._outbox.drain()

    def abort(self, error: AiosError) -> list[Effect]:
        """End the session from this side, telling the peer why. What is staged stays staged."""
        with self._guard:
            if not self.over:
                self._outbox.say(Abort(None, None, error.code, error.message))
                self._close(error.code, error.message)
            return self._outbox.drain()

    def disconnected(self, reason: str = "the stream ended") -> list[Effect]:
        """The stream is gone. Without COMMIT that is an abort; what is staged stays staged."""
        with self._guard:
            if not self.over:
                self._close(TransferAborted.code, reason)
            return self._outbox.drain()

    def _tell(self) -> None:
        self.news()

    def _guarded(self, step: Callable[[], None]) -> list[Effect]:
        with self._guard:
            try:
                step()
                self._settle()
            except AiosError as error:
                return self.abort(error)
            return self._outbox.drain()

    def _receive(self, metadata: bytes, data: bytes | memoryview) -> None:
        number, message = decode(metadata, data)
        if number < self._expected:
            return  # a duplicate
        if number > self._expected:
            raise ProtocolError(f"{number - self._expected} messages got lost on the way")
        self._expected += 1
        listed(self.TABLE, self.phase, message, "in a session")(self, message)

    def _on_hello(self, hello: Hello) -> None:
        common = set(hello.protocols) & set(self._protocols)
        if not common:
            raise ProtocolError(
                f"no common protocol: {self._protocols} here, {hello.protocols} there: update one of us"
            )
        self._protocol = max(common)
        try:
            self._codecs = choose(set(hello.codecs) & set(self._config.codecs))
        except BadRequest as error:
            raise ProtocolError(error.message) from None
        self._incoming.agreed(self._codecs, pulls=self._pulls)
        self._outgoing.agreed(pulls=self._pulls)
        self.phase = Phase.LISTENING
        self._offering.begin(arriving=self._pulls)

    def _on_offers(self, message: Offers) -> None:
        self._incoming.offered(message.offers)
        if message.last:
            self.phase = Phase.TRADING

    def _on_late_offers(self, message: Offers) -> None:
        """Protocol 2: something begins to arrive at the peer. After our DONE it is for the next session."""
        self._only_when_pulling("OFFER")
        if self._said_done:
            self.missed = True
        else:
            self._incoming.offered(message.offers)

    def _on_share(self, message: Share | Have) -> None:
        self._only_when_pulling(message.kind.upper())
        self._incoming.handle(message)

    def _on_request(self, message: Request) -> None:
        self._only_when_pulling("REQUEST")
        self._outgoing.handle(message)

    def _only_when_pulling(self, what: str) -> None:
        if not self._pulls:
            raise ProtocolError(f"{what} is not allowed here in protocol {self._protocol}")

    def _on_want(self, want: Want) -> None:
        self._outgoing.want(want, self._codecs)

    def _on_package(self, message: Chunk | Commit) -> None:
        if self._pulls and isinstance(message, Commit):
            raise ProtocolError("COMMIT does not belong to protocol 2")
        self._incoming.handle(message)

    def _on_committed(self, message: Committed) -> None:
        self._outgoing.handle(message)

    def _on_abort(self, abort: Abort) -> None:
        if abort.transfer is None:
            self._close(abort.code, f"the peer: {abort.message}")
        elif abort.role == "sender":
            self._incoming.handle(abort)
        else:
            self._outgoing.handle(abort)

    def _on_done(self, message: Done) -> None:
        if not self._outgoing.idle:
            raise ProtocolError("the peer is done, but its transfers are not")
        self.phase = Phase.PEER_DONE

    def _on_ping(self, message: Ping) -> None:
        """Progress for the driver's idle timeout; nothing for the session."""

    def _complete(self, effect: Effect, value: Answer) -> None:
        match effect:
            case FindStaged() | OpenStaged() | StageChunk() | CommitTransfer():
                self._incoming.complete(effect.transfer, effect, value)
            case PreparePackage() | SharePackage() | ReadChunk():
                self._outgoing.complete(effect, value)
            case Send(message=Chunk()):
                self._outgoing.chunk_sent()
            case _:
                pass  # nothing waits for the others

    def _fail(self, effect: Effect, error: AiosError) -> None:
        match effect:
            case FindStaged() | OpenStaged() | StageChunk() | CommitTransfer():
                self._incoming.fail(effect.transfer, effect, error)
            case PreparePackage() | SharePackage() | ReadChunk():
                self._outgoing.fail(effect, error)
            case Send() if not self.over:
                self._close(TransferAborted.code, error.message)
            case _:
                pass  # what could not be discarded or released is found again at the next start

    def _settle(self) -> None:
        """After every input: report what ended, begin and send what may be, end when both sides are done."""
        if self.over:
            return
        self._collect()
        if self.phase in {Phase.TRADING, Phase.PEER_DONE}:
            self._incoming.begin()
            self._incoming.look()
            self._outgoing.look()
            self._collect()
            self._incoming.begin()
            self._outgoing.pump()
            self._collect()
            gathering = self._offer_arriving()
            if self._incoming.idle and not self._said_done and not gathering:
                self._said_done = True
                self._outbox.say(Done())
        if self._said_done and self.phase is Phase.PEER_DONE:
            self._close(None, "")

    def _offer_arriving(self) -> bool:
        """Offer what is arriving here; whether the peer may still come to send some of it."""
        if not self._pulls or self.phase is Phase.PEER_DONE:
            return False
        if not self._said_done:
            self._offering.go_on(self._incoming.has_whole)
        return self._offering.waiting

    @property
    def _pulls(self) -> bool:
        return self._protocol == PASSED_ON

    @property
    def _protocols(self) -> tuple[int, ...]:
        return (PUSHED,) if self._swarm is None else (PUSHED, PASSED_ON)

    def _collect(self) -> None:
        for half in (self._incoming, self._outgoing):
            for result in half.ended():
                self._results.append(result)
                self._outbox.ask(TransferDone(result))

    def _close(self, code: str | None, message: str) -> None:
        self.phase = Phase.CLOSED
        self._collect()
        if code is not None:
            self._incoming.cut(code, message)
            self._outgoing.cut(code, message)
            self._collect()
        if self._swarm is not None:
            self._swarm.leave(self._link)
            self._swarm.tell(self._link)
        self._outbox.ask(SessionDone(code, message, self.results))

    TABLE: ClassVar[Table] = {
        (Phase.GREETING, Hello): _on_hello,
        (Phase.GREETING, Abort): _on_abort,
        (Phase.LISTENING, Offers): _on_offers,
        (Phase.LISTENING, Abort): _on_abort,
        (Phase.LISTENING, Ping): _on_ping,
        (Phase.TRADING, Offers): _on_late_offers,
        (Phase.TRADING, Want): _on_want,
        (Phase.TRADING, Share): _on_share,
        (Phase.TRADING, Have): _on_share,
        (Phase.TRADING, Request): _on_request,
        (Phase.TRADING, Chunk): _on_package,
        (Phase.TRADING, Commit): _on_package,
        (Phase.TRADING, Committed): _on_committed,
        (Phase.TRADING, Abort): _on_abort,
        (Phase.TRADING, Ping): _on_ping,
        (Phase.TRADING, Done): _on_done,
        (Phase.PEER_DONE, Share): _on_share,
        (Phase.PEER_DONE, Have): _on_share,
        (Phase.PEER_DONE, Chunk): _on_package,
        (Phase.PEER_DONE, Commit): _on_package,
        (Phase.PEER_DONE, Abort): _on_abort,
        (Phase.PEER_DONE, Ping): _on_ping,
    }
