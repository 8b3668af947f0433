"""What a session offers to its peer: what was there when it began, and, in protocol 2, what begins to arrive later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from aios_node.delta.exchange.outbox import Outbox
from aios_node.delta.exchange.wire import OFFERS_PER_MESSAGE, Offers
from aios_node.delta.offers import Offer, Partial
from aios_node.delta.swarm.gathering import Gathering
from aios_node.delta.swarm.swarm import Swarm

Version = tuple[str, str]
Holds = Callable[[str, str], bool]
MayOffer = Callable[[Offer], bool]


class Offering:
    """``offered`` is what the peer may ask for, by model and version."""

    def __init__(self, offers: Iterable[Offer], outbox: Outbox, swarm: Swarm | None, may_offer: MayOffer) -> None:
        self.offered: dict[Version, Offer] = {(offer.model, offer.version): offer for offer in offers}
        self._outbox, self._swarm, self._may_offer = outbox, swarm, may_offer

    def begin(self, *, arriving: bool) -> None:
        """Say OFFER for everything, with what is arriving here if the peer understands it."""
        if arriving:
            self._fresh(lambda model, version: False)
        self._say(list(self.offered.values()))

    def go_on(self, peer_holds: Holds) -> None:
        """Say OFFER for what began to arrive meanwhile."""
        fresh = self._fresh(peer_holds)
        if fresh:
            self._say(fresh)

    @property
    def waiting(self) -> bool:
        """Whether something is arriving that was offered: the peer may still come to send some of it."""
        live = () if self._swarm is None else self._swarm.live()
        return any((one.key.model, one.key.version) in self.offered for one in live)

    def _fresh(self, peer_holds: Holds) -> list[Offer]:
        """What is arriving here, that the peer may have and has neither heard of nor holds."""
        found = []
        for gathering in () if self._swarm is None else self._swarm.offered():
            version = gathering.key.model, gathering.key.version
            if version in self.offered or peer_holds(*version):
                continue
            offer = _partial(gathering)
            if self._may_offer(offer):
                self.offered[version] = offer
                found.append(offer)
        return found

    def _say(self, offers: list[Offer]) -> None:
        for first in range(0, max(1, len(offers)), OFFERS_PER_MESSAGE):
            end = first + OFFERS_PER_MESSAGE
            self._outbox.say(Offers(tuple(offers[first:end]), last=end >= len(offers)))


def _partial(gathering: Gathering) -> Offer:
    partial = Partial(gathering.key.base, gathering.description.root, gathering.codecs)
    return replace(gathering.offer, partial=partial)
