"""The side of one who gives a vector: a pure state machine, from keys to the shares that open the sum.

It trusts nobody with the vector, the aggregator least. What it promises: the vector leaves only under its masks; for
every other member it gives away a share of the seed or of the mask key, never of both; it consents to one list of
survivors and helps to open only that sum; whatever breaks the rules ends the session and the secrets are forgotten.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.privacy.aggregation import keys, shamir
from aios_node.delta.privacy.aggregation.masks import ADD, TAKE, apply_mask
from aios_node.delta.privacy.aggregation.messages import (
    Consent,
    Consents,
    Delivery,
    FromAggregator,
    FromParticipant,
    Keys,
    Masked,
    Reveal,
    Roster,
    Round,
    Shares,
    Signer,
    Survivors,
    Verify,
    check_signature,
    sign,
)
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.delta.privacy.random import Random, os_random
from aios_node.engine.errors import AiosError, BadRequest, Corrupt, ProtocolError


class Participant:
    """One session of one node. ``values``: residues [length] in the dtype of the terms; not changed.

    ``begin`` gives the first message, ``handle`` takes what the aggregator says and gives the answer to it. Raises
    BadRequest for values that do not fit the terms or a node that takes no part; every error of ``handle``
    (ProtocolError, Unauthenticated) is the end of the session.
    """

    def __init__(
        self, terms: Terms, signer: Signer, verify: Verify, values: Residues, random: Random = os_random
    ) -> None:
        if values.shape != (terms.length,) or values.dtype != terms.dtype:
            raise BadRequest(f"values of {values.dtype} {values.shape}: the terms say {terms.dtype} ({terms.length},)")
        if signer.node_id not in terms.participants:
            raise BadRequest("this node takes no part in this sum")
        self._terms, self._signer, self._verify, self._random = terms, signer, verify, random
        self._me = signer.node_id
        self._values: Residues | None = values
        self._secrets: keys.Secrets | None = keys.Secrets.new(random)
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, tuple[bytes, bytes] | None] = {}  # of (mask key, seed), by owner; None: damaged
        self._survivors: tuple[str, ...] = ()
        self.round = Round.KEYS

    def begin(self) -> Keys:
        """This node's keys, for the aggregator."""
        secrets, terms = self._secret, self._terms.digest
        mask_key, seal_key = (keys.public_half(part).hex() for part in (secrets.mask_key, secrets.seal_key))
        mine = Keys(self._me, mask_key, seal_key, keys.commitment(terms, self._me, secrets.seed))
        self._keys[self._me] = sign(self._terms, mine, self._signer)
        return self._keys[self._me]

    def handle(self, message: FromAggregator) -> FromParticipant:
        """The answer to what the aggregator says. Raises ProtocolError or Unauthenticated, and is then over."""
        try:
            reply: FromParticipant = listed(self._TABLE, self.round, message, "in a secure sum")(self, message)
        except AiosError:
            self.forget()
            raise
        return reply

    def forget(self) -> None:
        """Leave the session: without its secrets this node can be counted only as dropped."""
        self._secrets, self._values = None, None
        self._shares.clear()
        self.round = Round.FAILED

    def _roster(self, roster: Roster) -> Shares:
        """Check everybody's keys; share both secrets among all places, sealed for those that are there."""
        found = {entry.sender: entry for entry in roster.keys}
        self._require_group(tuple(entry.sender for entry in roster.keys), self._terms.participants)
        if found.get(self._me) != self._keys.get(self._me):
            raise ProtocolError("the roster holds other keys for this node than it said")
        for entry in roster.keys:
            check_signature(self._terms, entry, self._verify)
            for key in (entry.mask_key, entry.seal_key):
                keys.check_public(bytes.fromhex(key))
        self._keys = found
        dealt = self._deal()
        self._shares[self._me] = dealt[self._me]
        sealed = tuple((member, self._seal(member, dealt[member])) for member in sorted(found) if member != self._me)
        self.round = Round.SHARES
        return sign(self._terms, Shares(self._me, sealed), self._signer)

    def _deal(self) -> dict[str, tuple[bytes, bytes]]:
        count, threshold = len(self._terms.participants), self._terms.threshold
        parts = (
            shamir.split(secret, count, threshold, self._random)
            for secret in (self._secret.mask_key, self._secret.seed)
        )
        return dict(zip(self._terms.participants, zip(*parts, strict=True), strict=True))

    def _seal(self, receiver: str, shares: tuple[bytes, bytes]) -> bytes:
        public = bytes.fromhex(self._keys[receiver].seal_key)
        private = self._secret.seal_key
        return keys.seal(self._terms.digest, private, public, self._me, receiver, b"".join(shares))

    def _delivery(self, delivery: Delivery) -> Masked:
        """Open the others' shares, and answer with the vector under its masks."""
        senders = tuple(sender for sender, _ in delivery.sealed)
        self._require_group((*senders, self._me), tuple(self._keys))
        for sender, sealed in delivery.sealed:
            self._shares[sender] = self._unseal(sender, sealed)
        values, self._values = self._values, None
        if values is None:
            raise ProtocolError("this node has given its vector before")
        masked = values.copy()
        apply_mask(masked, self._secret.seed, ADD)
        for other in senders:
            apply_mask(masked, self._seed_with(other), pair_sign(self._me, other))
        self.round = Round.VECTORS
        return sign(self._terms, Masked(self._me, masked.view(np.uint8).data.toreadonly()), self._signer)

    def _unseal(self, sender: str, sealed: bytes) -> tuple[bytes, bytes] | None:
        """Both shares; None where they are damaged: then others must help, for which the threshold leaves room."""
        public = bytes.fromhex(self._keys[sender].seal_key)
        try:
            both = keys.unseal(self._terms.digest, self._secret.seal_key, public, sender, self._me, sealed)
        except Corrupt:
            return None
        if len(both) != 2 * shamir.SHARE_BYTES:
            return None
        return both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]

    def _seed_with(self, other: str) -> bytes:
        return keys.mask_seed(self._terms.digest, self._secret.mask_key, bytes.fromhex(self._keys[other].mask_key))

    def _consent(self, message: Survivors) -> Consent:
        """Sign the list of survivors, once."""
        self._require_group(message.survivors, tuple(self._shares))
        self._survivors = tuple(sorted(message.survivors))
        self.round = Round.CONSENT
        return sign(self._terms, self._consent_of(self._me), self._signer)

    def _consent_of(self, signer: str, signature: bytes = b"") -> Consent:
        return Consent(signer, tuple(sorted(self._shares)), self._survivors, signature)

    def _reveal(self, message: Consents) -> Reveal:
        """Enough others were told the same: give what opens this sum, and forget everything."""
        signers = tuple(signer for signer, _ in message.signatures)
        self._require_group(signers, self._survivors)
        for signer, signature in message.signatures:
            check_signature(self._terms, self._consent_of(signer, signature), self._verify)
        reveal = sign(self._terms, self._opening(), self._signer)
        self.forget()
        self.round = Round.DONE
        return reveal

    def _opening(self) -> Reveal:
        """Shares of survivors' seeds and of dropped members' mask keys: one of the two for each member."""
        known = [(owner, both) for owner, both in sorted(self._shares.items()) if both is not None]
        seeds = tuple((owner, seed) for owner, (_, seed) in known if owner in self._survivors)
        mask_keys = tuple((owner, key) for owner, (key, _) in known if owner not in self._survivors)
        return Reveal(self._me, seeds, mask_keys)

    def _require_group(self, group: tuple[str, ...], allowed: tuple[str, ...]) -> None:
        """Raises ProtocolError unless the group is large enough, without repetition, of allowed ones, me among them."""
        members = set(group)
        if len(members) != len(group) or not members <= set(allowed) or self._me not in members:
            raise ProtocolError("the aggregator names a group with strangers, repetitions, or without this node")
        if len(members) < self._terms.threshold:
            raise ProtocolError(f"only {len(members)} are left in this sum; it needs {self._terms.threshold}")

    @property
    def _secret(self) -> keys.Secrets:
        if self._secrets is None:
            raise ProtocolError("this node has left the sum")
        return self._secrets

    _TABLE: ClassVar[Table] = {
        (Round.KEYS, Roster): _roster,
        (Round.SHARES, Delivery): _delivery,
        (Round.VECTORS, Survivors): _consent,
        (Round.CONSENT, Consents): _reveal,
    }


def pair_sign(one: str, other: str) -> Literal[1, -1]:
    """How one of two applies the mask that both share: the one adds what the other takes away."""
    return ADD if one < other else TAKE
