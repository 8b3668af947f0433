"""All packages a session sends: what may be asked for, how many are prepared at once, whose chunk is next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aios_node.delta.exchange.effects import PreparePackage, ReadChunk, SharePackage, TransferResult
from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.sending import Sending
from aios_node.delta.exchange.serving import Serving
from aios_node.delta.exchange.wire import Abort, Committed, Request, Want
from aios_node.delta.offers import Offer
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, ProtocolError

ASKS_PER_OFFER: Final = 2  # as a delta, then in full


class Outgoing:
    """The sending half of a session. Transfers have the numbers that the peer gave them."""

    def __init__(
        self,
        offered: Mapping[tuple[str, str], Offer],
        outbox: Outbox,
        *,
        served: int,
        swarm: Swarm | None = None,
        link: int = 0,
    ) -> None:
        self._offered, self._outbox, self._served = offered, outbox, served
        self._swarm, self._link = swarm, link
        self._pulls = False
        self._asked: Counter[tuple[str, str]] = Counter()
        self._active: dict[int, Sending | Serving] = {}
        self._past: dict[int, Sending | Serving] = {}
        self._turns: deque[int] = deque()
        self._moving = False

    @property
    def idle(self) -> bool:
        """Whether every transfer has ended."""
        return not self._active

    def agreed(self, *, pulls: bool) -> None:
        """``pulls``: protocol 2, chunks are asked for."""
        self._pulls = pulls

    def want(self, want: Want, codecs: tuple[str, ...]) -> None:
        """The peer asks for a version, or again for damaged chunks. Raises ProtocolError for what it may not ask."""
        if want.round and not self._pulls:
            self._known(want.transfer).handle(want)
            return
        key = want.model, want.version
        if want.transfer in self._active or want.transfer in self._past or key not in self._offered:
            raise ProtocolError(f"transfer {want.transfer} of {want.model} was not offered, or has begun before")
        self._asked[key] += 1
        if self._asked[key] > ASKS_PER_OFFER:
            raise ProtocolError(f"{want.model} was asked for {ASKS_PER_OFFER} times already in this session")
        if self._swarm is not None and self._pulls:
            serving = Serving(want, codecs, self._outbox, swarm=self._swarm, link=self._link)
            self._active[want.transfer] = serving
        else:
            self._active[want.transfer] = Sending(want, codecs, self._outbox)
        self._turns.append(want.transfer)

    def look(self) -> None:
        """What other sessions did may concern transfers of this one."""
        for transfer in self._active.values():
            if isinstance(transfer, Serving):
                transfer.look()

    def handle(self, message: Committed | Abort | Request) -> None:
        """A message of the receiver of a transfer. Raises ProtocolError."""
        if message.transfer is not None:
            self._known(message.transfer).handle(message)

    def complete(self, effect: PreparePackage | SharePackage | ReadChunk, value: Any) -> None:
        """An answer of the driver, perhaps a late one: what was prepared or read in vain is released."""
        transfer = self._known(effect.transfer)
        transfer.complete(effect, value)
        if isinstance(effect, ReadChunk) and transfer.result is not None:
            self._moving = False  # otherwise the chunk is on its way now

    def fail(self, effect: PreparePackage | SharePackage | ReadChunk, error: AiosError) -> None:
        if isinstance(effect, ReadChunk):
            self._moving = False
        self._known(effect.transfer).fail(effect, error)

    def chunk_sent(self) -> None:
        """The stream took the chunk: the next may be read."""
        self._moving = False

    def pump(self) -> None:
        """Prepare the oldest transfers and move one chunk at a time, the transfers taking turns."""
        for transfer in list(self._active.values())[: self._served]:
            if transfer.waiting:
                transfer.begin()
        for _ in range(len(self._turns)):
            if self._moving:
                return
            effect = self._active[self._turns[0]].next_chunk()
            self._turns.rotate(-1)
            if effect is not None:
                self._moving = True
                self._outbox.ask(effect)

    def ended(self) -> Iterator[TransferResult]:
        """Results of transfers that ended since the last call."""
        for number, transfer in list(self._active.items()):
            if transfer.result is not None:
                self._past[number] = self._active.pop(number)
                self._turns.remove(number)
                if not transfer.quiet:
                    yield transfer.result

    def cut(self, code: str, message: str) -> None:
        """The session ends."""
        for transfer in self._active.values():
            transfer.cut(code, message)

    def _known(self, number: int) -> Sending | Serving:
        transfer = self._active.get(number) or self._past.get(number)
        if transfer is None:
            raise ProtocolError(f"transfer {number} was never asked for")
        return transfer
