"""The sync exchange as a pure state machine: messages in, effects out, both directions in one stream.

    HELLO -> OFFER -> WANT -> CHUNK... -> COMMIT -> COMMITTED | ABORT         DONE, PING at any time after OFFER

Knows no sockets, files, threads or clocks. The driver owns those: it hands in what arrives (``receive``) and how its
own work went (``complete``, ``fail``), and performs the effects that every call returns (``effects`` lists them).
Whatever the tables of this module, ``receiving`` and ``sending`` do not list is a ProtocolError, which ends the
session with an ABORT that carries its code. The session decides nothing about versions: ``SyncPolicy`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from aios_node.delta.codec.codecs import CODECS, choose
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    Effect,
    FindStaged,
    PreparePackage,
    ReadChunk,
    Send,
    SessionDone,
    StageChunk,
    TransferDone,
    TransferResult,
)
from aios_node.delta.exchange.incoming import Incoming
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.outgoing import Outgoing
from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.exchange.wire import (
    OFFERS_PER_MESSAGE,
    PROTOCOLS,
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Hello,
    Offers,
    Ping,
    Want,
    decode,
)
from aios_node.delta.limits import DEFAULT_LIMITS
from aios_node.delta.offers import Offer, PackageInfo, Resume, SyncPolicy
from aios_node.engine.errors import AiosError, BadRequest, ProtocolError, TransferAborted

Answer = PackageInfo | Resume | bytes | memoryview | None


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

    def __init__(self, offers: Iterable[Offer], policy: SyncPolicy, config: SessionConfig | None = None) -> None:
        self.phase = Phase.NEW
        self._config = config = config or SessionConfig()
        self._offered = {(offer.model, offer.version): offer for offer in offers}
        self._outbox = Outbox()
        self._incoming = Incoming(
            policy,
            self._outbox,
            parallel=config.parallel,
            offers=config.offers,
            most_bytes=config.package_bytes,
        )
        self._outgoing = Outgoing(self._offered, self._outbox, served=config.served)
        self._codecs: tuple[str, ...] = ()
        self._expected = 0
        self._said_done = False
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
        return self._outbox.open(PreparePackage, CommitTransfer, StageChunk, FindStaged) > 0

    @property
    def results(self) -> tuple[TransferResult, ...]:
        """Transfers that have ended, in order."""
        return tuple(self._results)

    def start(self) -> list[Effect]:
        """Say HELLO. Both sides do."""
        if self.phase is not Phase.NEW:
            raise RuntimeError("start() was called before")
        self.phase = Phase.GREETING
        self._outbox.say(Hello(PROTOCOLS, choose(self._config.codecs)))
        return self._outbox.drain()

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
        if not self.over:
            self._outbox.say(Abort(None, None, error.code, error.message))
            self._close(error.code, error.message)
        return self._outbox.drain()

    def disconnected(self, reason: str = "the stream ended") -> list[Effect]:
        """The stream is gone. Without COMMIT that is an abort; what is staged stays staged."""
        if not self.over:
            self._close(TransferAborted.code, reason)
        return self._outbox.drain()

    def _guarded(self, step: Callable[[], None]) -> list[Effect]:
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
        if not set(hello.protocols) & set(PROTOCOLS):
            raise ProtocolError(f"no common protocol: {PROTOCOLS} here, {hello.protocols} there: update one of us")
        try:
            self._codecs = choose(set(hello.codecs) & set(self._config.codecs))
        except BadRequest as error:
            raise ProtocolError(error.message) from None
        self.phase = Phase.LISTENING
        offers = tuple(self._offered.values())
        for first in range(0, max(1, len(offers)), OFFERS_PER_MESSAGE):
            end = first + OFFERS_PER_MESSAGE
            self._outbox.say(Offers(offers[first:end], last=end >= len(offers)))

    def _on_offers(self, message: Offers) -> None:
        self._incoming.offered(message.offers)
        if message.last:
            self.phase = Phase.TRADING

    def _on_want(self, want: Want) -> None:
        self._outgoing.want(want, self._codecs)

    def _on_package(self, message: Chunk | Commit) -> None:
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
            case FindStaged() | StageChunk() | CommitTransfer():
                self._incoming.complete(effect.transfer, effect, value)
            case PreparePackage() | ReadChunk():
                self._outgoing.complete(effect, value)
            case Send(message=Chunk()):
                self._outgoing.chunk_sent()
            case _:
                pass  # nothing waits for the others

    def _fail(self, effect: Effect, error: AiosError) -> None:
        match effect:
            case FindStaged() | StageChunk() | CommitTransfer():
                self._incoming.fail(effect.transfer, effect, error)
            case PreparePackage() | ReadChunk():
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
            self._outgoing.pump()
            self._collect()
            if self._incoming.idle and not self._said_done:
                self._said_done = True
                self._outbox.say(Done())
        if self._said_done and self.phase is Phase.PEER_DONE:
            self._close(None, "")

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
        self._outbox.ask(SessionDone(code, message, self.results))

    TABLE: ClassVar[Table] = {
        (Phase.GREETING, Hello): _on_hello,
        (Phase.GREETING, Abort): _on_abort,
        (Phase.LISTENING, Offers): _on_offers,
        (Phase.LISTENING, Abort): _on_abort,
        (Phase.LISTENING, Ping): _on_ping,
        (Phase.TRADING, Want): _on_want,
        (Phase.TRADING, Chunk): _on_package,
        (Phase.TRADING, Commit): _on_package,
        (Phase.TRADING, Committed): _on_committed,
        (Phase.TRADING, Abort): _on_abort,
        (Phase.TRADING, Ping): _on_ping,
        (Phase.TRADING, Done): _on_done,
        (Phase.PEER_DONE, Chunk): _on_package,
        (Phase.PEER_DONE, Commit): _on_package,
        (Phase.PEER_DONE, Abort): _on_abort,
        (Phase.PEER_DONE, Ping): _on_ping,
    }
