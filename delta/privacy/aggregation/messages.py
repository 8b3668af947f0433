"""The messages of a secure sum, as frozen dataclasses. Participants sign theirs; the aggregator only passes on.

    round     participant -> aggregator      aggregator -> participants
    KEYS      Keys                           Roster: everybody's keys
    SHARES    Shares, sealed for each        Delivery: the shares sealed for the receiver
    VECTORS   Masked, the masked vector      Survivors: whose vectors came
    CONSENT   Consent to that list           Consents: everybody's signatures under it
    REVEAL    Reveal, shares to unmask       nothing more

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), figure 4, the
form against an actively dishonest aggregator. Knows what is signed; ``wire`` knows how messages travel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, ClassVar, Protocol, TypeVar

from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.engine.errors import Unauthenticated
from aios_node.engine.weights.names import canonical_json


class Round(Enum):
    """Where a session stands; on the aggregator's side, which answers it waits for."""

    KEYS = auto()
    SHARES = auto()
    VECTORS = auto()
    CONSENT = auto()
    REVEAL = auto()
    DONE = auto()
    FAILED = auto()


class Signer(Protocol):
    """A node's identity, as far as a sum needs it."""

    @property
    def node_id(self) -> str:
        """The Ed25519 public key in hex, 64 digits."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        ...


Verify = Callable[[str, bytes, bytes], bool]
"""(node id, data, signature) -> whether the node of this id signed the data"""


@dataclass(frozen=True)
class Keys:
    """Public keys for masks and for seals, and the commitment to the seed of the sender's own mask. All in hex."""

    kind: ClassVar[str] = "keys"
    sender: str
    mask_key: str
    seal_key: str
    commitment: str
    signature: bytes = b""

    def said(self) -> dict[str, Any]:
        return {"mask_key": self.mask_key, "seal_key": self.seal_key, "commitment": self.commitment}


@dataclass(frozen=True)
class Shares:
    """Shares of both secrets, sealed for each other participant: (receiver, sealed bytes), by receiver."""

    kind: ClassVar[str] = "shares"
    sender: str
    sealed: tuple[tuple[str, bytes], ...]
    signature: bytes = b""

    def said(self) -> dict[str, Any]:
        return {"sealed": [[receiver, data.hex()] for receiver, data in self.sealed]}


@dataclass(frozen=True)
class Masked:
    """The sender's vector under all its masks: little endian bytes."""

    kind: ClassVar[str] = "masked"
    sender: str
    data: bytes | memoryview
    signature: bytes = b""

    def said(self) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(self.data).hexdigest()}


@dataclass(frozen=True)
class Consent:
    """The sender was told this list of survivors among these members, and will help to open no other sum."""

    kind: ClassVar[str] = "consent"
    sender: str
    members: tuple[str, ...]
    survivors: tuple[str, ...]
    signature: bytes = b""

    def said(self) -> dict[str, Any]:
        return {"members": list(self.members), "survivors": list(self.survivors)}


@dataclass(frozen=True)
class Reveal:
    """(owner, share) of survivors' seeds and of dropped members' mask keys: they open the sum. Never both of one."""

    kind: ClassVar[str] = "reveal"
    sender: str
    seeds: tuple[tuple[str, bytes], ...]
    mask_keys: tuple[tuple[str, bytes], ...]
    signature: bytes = b""

    def said(self) -> dict[str, Any]:
        listed = (("seeds", self.seeds), ("mask_keys", self.mask_keys))
        return {name: [[owner, share.hex()] for owner, share in shares] for name, shares in listed}


@dataclass(frozen=True)
class Roster:
    """Who takes part, with their signed keys, by sender."""

    kind: ClassVar[str] = "roster"
    keys: tuple[Keys, ...]


@dataclass(frozen=True)
class Delivery:
    """Shares sealed for the receiver by each other member: (sender, sealed bytes), by sender."""

    kind: ClassVar[str] = "delivery"
    sealed: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Survivors:
    """Whose vectors came."""

    kind: ClassVar[str] = "survivors"
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Consents:
    """Signatures under the list of survivors: (signer, signature), by signer."""

    kind: ClassVar[str] = "consents"
    signatures: tuple[tuple[str, bytes], ...]


FromParticipant = Keys | Shares | Masked | Consent | Reveal
FromAggregator = Roster | Delivery | Survivors | Consents
Message = FromParticipant | FromAggregator

Signed = TypeVar("Signed", Keys, Shares, Masked, Consent, Reveal)


def signed_bytes(terms: Terms, message: FromParticipant) -> bytes:
    """What a participant signs: the session's terms, the kind of message, who says it, and what."""
    facts = {"terms": terms.digest.hex(), "kind": message.kind, "sender": message.sender, **message.said()}
    return b"aios-secure-sum-v1\n" + canonical_json(facts)


def sign(terms: Terms, message: Signed, signer: Signer) -> Signed:
    """The message with its signature."""
    return replace(message, signature=signer.sign(signed_bytes(terms, message)))


def check_signature(terms: Terms, message: FromParticipant, verify: Verify) -> None:
    """Raises ProtocolError for strangers, Unauthenticated unless the sender signed this under these terms."""
    terms.place(message.sender)
    if not verify(message.sender, signed_bytes(terms, message), message.signature):
        raise Unauthenticated(f"{message.kind} of {message.sender[:12]} was not signed by it for this sum")
