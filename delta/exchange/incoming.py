"""All packages a session receives: which offers are taken, how many at once, and when to ask again in full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from aios_node.delta.chunks import TransferKey
from aios_node.delta.exchange.effects import Effect, TransferResult
from aios_node.delta.exchange.fetching import Fetching
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.receiving import Receiving
from aios_node.delta.exchange.wire import Abort, Chunk, Commit, Have, Share
from aios_node.delta.names import check_version
from aios_node.delta.offers import Offer, SyncPolicy
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, ProtocolError


class Incoming:
    """The receiving half of a session. Transfers are numbered from 0 by this side."""

    def __init__(
        self,
        policy: SyncPolicy,
        outbox: Outbox,
        *,
        parallel: int,
        offers: int,
        most_bytes: int,
        swarm: Swarm | None = None,
        link: int = 0,
    ) -> None:
        self._policy, self._outbox = policy, outbox
        self._swarm, self._link = swarm, link
        self._codecs: tuple[str, ...] = ()
        self._pulls = False
        self._parallel, self._most_offers, self._most_bytes = parallel, offers, most_bytes
        self._known: set[tuple[str, str]] = set()
        self._whole: set[tuple[str, str]] = set()
        self._queue: deque[tuple[Offer, bool]] = deque()
        self._active: dict[int, Receiving | Fetching] = {}
        self._past: dict[int, Receiving | Fetching] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted any more."""
        return not self._queue and not self._active

    @property
    def busy(self) -> bool:
        """Whether something is being committed for which this session waits."""
        return any(isinstance(transfer, Fetching) and transfer.busy for transfer in self._active.values())

    def agreed(self, codecs: tuple[str, ...], *, pulls: bool) -> None:
        """What both sides speak. ``pulls``: protocol 2, chunks are asked for."""
        self._codecs, self._pulls = codecs, pulls

    def has_whole(self, model: str, version: str) -> bool:
        """Whether the peer has said that it holds this version."""
        return (model, version) in self._whole

    def offered(self, offers: tuple[Offer, ...]) -> None:
        """The peer can send these. Raises ProtocolError for repeated or too many offers."""
        for offer in offers:
            key = offer.model, offer.version
            if key in self._known:
                raise ProtocolError(f"{offer.model} {offer.version} is offered twice")
            if len(self._known) >= self._most_offers:
                raise ProtocolError(f"more than {self._most_offers} versions are offered")
            self._known.add(key)
            if offer.partial is None:
                self._whole.add(key)
            self._queue.append((offer, False))

    def handle(self, message: Chunk | Commit | Abort | Share | Have) -> None:
        """A message of the sender of a transfer. Raises ProtocolError."""
        number = message.transfer
        transfer = None if number is None else self._active.get(number) or self._past.get(number)
        if transfer is None:
            raise ProtocolError(f"transfer {number} was never asked for")
        transfer.handle(message)

    def complete(self, number: int, effect: Effect, value: Any) -> None:
        """An answer of the driver. For transfers that are over it comes too late; a gathering goes on without them."""
        past = self._past.get(number)
        if number in self._active:
            self._active[number].complete(effect, value)
        elif isinstance(past, Fetching):
            past.complete(effect, value)

    def fail(self, number: int, effect: Effect, error: AiosError) -> None:
        past = self._past.get(number)
        if number in self._active:
            self._active[number].fail(effect, error)
        elif isinstance(past, Fetching):
            past.fail(effect, error)

    def begin(self) -> None:
        """Take offers from the queue while there is room. The policy is asked now, when it knows the newest base."""
        while self._queue and len(self._active) < self._parallel:
            offer, in_full = self._queue.popleft()
            decision = self._policy.wants(offer)
            base = None if in_full or decision.base is None else check_version(decision.base)
            if decision.want and self._possible(offer, base) and self._claim(offer, base):
                number = len(self._active) + len(self._past)
                self._active[number] = self._transfer(number, offer, base)

    def look(self) -> None:
        """What other sessions did may concern transfers of this one."""
        for transfer in self._active.values():
            if isinstance(transfer, Fetching):
                transfer.look()

    def _possible(self, offer: Offer, base: str | None) -> bool:
        """A package that is still arriving elsewhere must be one that can be used here."""
        partial = offer.partial
        return partial is None or (partial.base == base and set(partial.codecs) <= set(self._codecs))

    def _claim(self, offer: Offer, base: str | None) -> bool:
        if self._swarm is None:
            return True
        return self._swarm.claim(self._link, TransferKey(offer.model, offer.version, base), alone=not self._pulls)

    def _transfer(self, number: int, offer: Offer, base: str | None) -> Receiving | Fetching:
        if self._swarm is None or not self._pulls:
            return Receiving(number, offer, base, self._outbox, self._most_bytes)
        return Fetching(
            number,
            offer,
            base,
            self._outbox,
            self._most_bytes,
            swarm=self._swarm,
            link=self._link,
            codecs=self._codecs,
        )

    def ended(self) -> Iterator[TransferResult]:
        """Results of transfers that ended since the last call."""
        for number, transfer in list(self._active.items()):
            if transfer.result is not None:
                self._past[number] = self._active.pop(number)
                if self._swarm is not None:
                    self._swarm.release(self._link, transfer.offer.model, transfer.offer.version)
                if transfer.wants_full:
                    self._queue.appendleft((transfer.offer, True))
                if not transfer.quiet:
                    yield transfer.result

    def cut(self, code: str, message: str) -> None:
        """The session ends."""
        self._queue.clear()
        for transfer in self._active.values():
            transfer.cut(code, message)
