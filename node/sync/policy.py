"""What this node takes from a peer, and what it offers: subscriptions, rights, trust, lineage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from aios_node.delta.names import short
from aios_node.delta.offers import Decision, Offer
from aios_node.delta.store.heads import Heads
from aios_node.engine.errors import Unauthorized
from aios_node.flight.ports import Principal, Right
from aios_node.node.patterns import chosen

Check = Callable[[Principal, Right, str], None]
LINEAGE_SENT = 256  # ancestors named in an offer: a peer further behind gets a full copy


class Policy:
    """Decides about the offers of one peer, by one picture of the store."""

    def __init__(
        self,
        heads: Heads,
        present: Callable[[str], bool],
        *,
        peer: Principal,
        check: Check,
        subscribe: Iterable[str],
        publishers: Collection[str] | None,
        only: str | None = None,
    ) -> None:
        """``publishers``: node ids whose versions are accepted; None: anyone's (an open network)."""
        self._heads = heads
        self._present = present
        self._peer = peer
        self._check = check
        self._subscribe = tuple(subscribe)
        self._publishers = publishers
        self._only = only

    def wants(self, offer: Offer) -> Decision:
        """Whether the version is wanted, and the nearest base that is here."""
        refusal = self._refusal(offer)
        if refusal:
            return Decision(False, reason=refusal)
        return Decision(True, self._base(offer))

    def _refusal(self, offer: Offer) -> str:
        if self._only not in {None, offer.model}:
            return "not asked for"
        if not chosen(offer.model, self._subscribe):
            return "not subscribed"
        if not permitted(self._check, self._peer, "write", f"weights/{offer.model}"):
            return f"the peer may not write weights/{offer.model}"
        if self._publishers is not None and offer.publisher not in self._publishers:
            return f"publisher {(offer.publisher or 'unknown')[:12]} is not trusted here (security.publishers)"
        state = self._heads.models.get(offer.model)
        if state is None:
            return ""
        if offer.version in state.versions and self._present(offer.version):
            return "already here"
        if any(offer.version in self._heads.ancestors(head) for head in self._heads.heads(offer.model)):
            return f"older than what is here ({short(offer.version)})"
        return ""

    def _base(self, offer: Offer) -> str | None:
        """The nearest ancestor whose files are here."""
        for ancestor in offer.lineage:
            if self._present(ancestor):
                return ancestor
        return None


def permitted(check: Check, principal: Principal, right: Right, resource: str) -> bool:
    """Whether a right is granted."""
    try:
        check(principal, right, resource)
    except Unauthorized:
        return False
    return True


def offers_for(
    heads: Heads,
    publisher_of: Callable[[str, str], str | None],
    *,
    peer: Principal,
    check: Check,
    serve: Iterable[str],
    only: str | None = None,
) -> list[Offer]:
    """The active version of every model that this peer may read."""
    offers = []
    for model, state in sorted(heads.models.items()):
        active = state.pointers.active
        wanted = only in {None, model} and active is not None and chosen(model, tuple(serve))
        if wanted and active is not None and permitted(check, peer, "read", f"weights/{model}"):
            facts = heads.facts[active]
            offers.append(
                Offer(
                    model=model,
                    version=active,
                    lineage=heads.ancestors(active)[:LINEAGE_SENT],
                    bytes=facts.bytes,
                    quant=facts.quant,
                    derived_from=facts.derived_from,
                    publisher=publisher_of(model, active),
                )
            )
    return offers
