"""The side of one who adds up: a pure state machine that learns the sum, and nothing of a single vector.

Messages in, events out. It has no clock: the driver calls ``close`` when it will not wait any longer for those in
``waiting``, and the round goes on without them, or the session fails. Messages of participants that break the rules
raise an error and change nothing: the sender counts as absent until it says something right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aios_node.delta.exchange.transitions import Table, listed
from aios_node.delta.privacy.aggregation import keys
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
    Survivors,
    Verify,
    check_signature,
)
from aios_node.delta.privacy.aggregation.opening import Opening
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.engine.errors import Corrupt, ProtocolError


@dataclass(frozen=True)
class Tell:
    """Send this to a participant."""

    receiver: str
    message: FromAggregator


@dataclass(frozen=True, eq=False)
class Sum:
    """The end: residues [length] of the sum over ``contributors``. Those who dropped out earlier are not in it."""

    total: Residues
    contributors: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """The end without a sum. Nothing can be learned of any vector any more."""

    round: Round
    reason: str


Event = Tell | Sum | Failed


class Aggregator:
    """One session. ``round`` is what it waits for, ``waiting`` from whom."""

    def __init__(self, terms: Terms, verify: Verify) -> None:
        self._terms, self._verify = terms, verify
        self.round = Round.KEYS
        self._expected: tuple[str, ...] = terms.participants
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, dict[str, bytes]] = {}  # sealed, by sender and receiver
        self._total: Residues = np.zeros(0, terms.dtype)
        self._came: dict[str, bytes] = {}  # who answered in this round, with the signature
        self._members: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()
        self._opening = Opening(terms)

    @property
    def waiting(self) -> frozenset[str]:
        """Who has not answered in this round."""
        return frozenset(self._expected) - self._came.keys() if self.round in _NEXT else frozenset()

    def handle(self, message: FromParticipant) -> list[Event]:
        """Take one message. Raises ProtocolError, Unauthenticated or Corrupt, and has then changed nothing."""
        handler = listed(self._TABLE, self.round, message, "in a secure sum")
        if message.sender not in self.waiting:
            raise ProtocolError(
                f"{message.kind} of {message.sender[:12]!a} is not expected: not a member, or said twice"
            )
        if isinstance(message, Masked) and len(message.data) != self._terms.vector_bytes:
            raise ProtocolError(f"a vector of {len(message.data)} bytes instead of {self._terms.vector_bytes}")
        check_signature(self._terms, message, self._verify)
        handler(self, message)
        self._came[message.sender] = message.signature
        return [] if self.waiting else self.close()

    def close(self) -> list[Event]:
        """End the round with those who answered. The session fails where they are fewer than the threshold."""
        if self.round not in _NEXT:
            return []
        if len(self._came) < self._terms.threshold:
            return self._fail(f"{len(self._came)} answered, {self._terms.threshold} are needed")
        came, self._came = dict(sorted(self._came.items())), {}
        ended, self.round, self._expected = self.round, _NEXT[self.round], tuple(came)
        return self._ENDINGS[ended](self, came)

    def _take_keys(self, message: Keys) -> None:
        for key in (message.mask_key, message.seal_key):
            keys.check_public(bytes.fromhex(key))
        self._keys[message.sender] = message

    def _take_shares(self, message: Shares) -> None:
        receivers = [receiver for receiver, _ in message.sealed]
        if receivers != sorted(self._keys.keys() - {message.sender}):
            raise ProtocolError(f"the shares of {message.sender[:12]} are not for everybody in the roster")
        self._shares[message.sender] = dict(message.sealed)

    def _take_vector(self, message: Masked) -> None:
        self._total += np.frombuffer(message.data, self._terms.dtype)

    def _take_consent(self, message: Consent) -> None:
        if (message.members, message.survivors) != (self._members, self._survivors):
            raise ProtocolError(f"{message.sender[:12]} consents to another list than it was sent")

    def _take_reveal(self, message: Reveal) -> None:
        dropped = set(self._members) - set(self._survivors)
        for shares, owners in ((message.seeds, set(self._survivors)), (message.mask_keys, dropped)):
            named = [owner for owner, _ in shares]
            if len(set(named)) != len(named) or not set(named) <= owners:
                raise ProtocolError(f"{message.sender[:12]} reveals shares that nobody asked for")
        self._opening.add(message)

    def _tell_roster(self, came: dict[str, bytes]) -> list[Event]:
        roster = Roster(tuple(self._keys[member] for member in came))
        return [Tell(member, roster) for member in came]

    def _deliver(self, came: dict[str, bytes]) -> list[Event]:
        self._members = tuple(came)
        self._total = np.zeros(self._terms.length, self._terms.dtype)

        def sealed_for(receiver: str) -> Delivery:
            return Delivery(tuple((one, self._shares[one][receiver]) for one in came if one != receiver))

        told: list[Event] = [Tell(member, sealed_for(member)) for member in came]
        self._shares.clear()
        return told

    def _tell_survivors(self, came: dict[str, bytes]) -> list[Event]:
        self._survivors = tuple(came)
        return [Tell(member, Survivors(self._survivors)) for member in came]

    def _tell_consents(self, came: dict[str, bytes]) -> list[Event]:
        return [Tell(member, Consents(tuple(came.items()))) for member in came]

    def _open(self, came: dict[str, bytes]) -> list[Event]:
        """Rebuild what the threshold allows, and take all masks away."""
        try:
            self._opening.unmask(self._total, self._keys, self._members, self._survivors)
        except (Corrupt, ProtocolError) as error:
            return self._fail(error.message)
        return [Sum(self._total, self._survivors)]

    def _fail(self, reason: str) -> list[Event]:
        failed = Failed(self.round, reason)
        self.round, self._total = Round.FAILED, np.zeros(0, self._terms.dtype)
        return [failed]

    _TABLE: ClassVar[Table] = {
        (Round.KEYS, Keys): _take_keys,
        (Round.SHARES, Shares): _take_shares,
        (Round.VECTORS, Masked): _take_vector,
        (Round.CONSENT, Consent): _take_consent,
        (Round.REVEAL, Reveal): _take_reveal,
    }
    _ENDINGS: ClassVar[dict[Round, Callable[[Aggregator, dict[str, bytes]], list[Event]]]] = {
        Round.KEYS: _tell_roster,
        Round.SHARES: _deliver,
        Round.VECTORS: _tell_survivors,
        Round.CONSENT: _tell_consents,
        Round.REVEAL: _open,
    }


_NEXT = {
    Round.KEYS: Round.SHARES,
    Round.SHARES: Round.VECTORS,
    Round.VECTORS: Round.CONSENT,
    Round.CONSENT: Round.REVEAL,
    Round.REVEAL: Round.DONE,
}
