"""Who published a version, when, and the signature that proves it. Lies beside a version, never in its hash.

mTLS proves the last hop only; the signature proves the author, whoever passed the version on. Signing and verifying
(Ed25519) are handed in: no cryptography, keys or clocks here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.limits import check_size
from aios_node.engine.errors import Corrupt, Unauthenticated
from aios_node.engine.weights.names import canonical_json

MOST_BYTES: Final = 4096
_CONTEXT: Final = b"aios-envelope-v1\n"
_MOST_NAME: Final = 128
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)")

Sign = Callable[[bytes], bytes]
"""message -> signature [64 bytes]"""
Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key [32 bytes], signature [64 bytes], message) -> whether it is genuine"""


@dataclass(frozen=True)
class Envelope:
    """``publisher`` is for people, ``public_key`` (64 hex digits) is the identity; ``created_at`` is ISO, UTC."""

    model: str
    version: str
    publisher: str
    created_at: str
    public_key: str
    signature: str

    def to_bytes(self) -> bytes:
        """Canonical JSON, as it is stored and sent."""
        return canonical_json({"format": 1, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read what ``to_bytes`` wrote. Raises Corrupt or TooLarge; checks no signature."""
        check_size("an envelope", len(data), MOST_BYTES)
        fields = Fields(parse_object(data, "envelope", Corrupt), "envelope", Corrupt)
        if fields.integer("format") != 1:
            raise Corrupt("the envelope has another format than 1: update this node")
        envelope = cls(
            model=fields.model(),
            version=fields.version(),
            publisher=fields.text("publisher", _MOST_NAME),
            created_at=fields.text("created_at", 40),
            public_key=fields.hexadecimal("public_key", 64),
            signature=fields.hexadecimal("signature", 128),
        )
        fields.close()
        if not _TIME.fullmatch(envelope.created_at):
            raise Corrupt(f"envelope.created_at is no UTC time: {envelope.created_at!r}")
        if envelope.to_bytes() != data:
            raise Corrupt("the envelope is not in canonical form")
        return envelope


def signed_bytes(model: str, version: str, publisher: str, created_at: str) -> bytes:
    """The bytes that the publisher signs: a context, so that no other message can pass for one, and the facts."""
    facts = {"model": model, "version": version, "publisher": publisher, "created_at": created_at}
    return _CONTEXT + canonical_json(facts)


def seal(model: str, version: str, *, publisher: str, created_at: str, public_key: str, sign: Sign) -> Envelope:
    """A signed envelope."""
    signature = sign(signed_bytes(model, version, publisher, created_at)).hex()
    return Envelope(model, version, publisher, created_at, public_key, signature)


def check_envelope(envelope: Envelope, *, model: str, version: str, verify: Verify) -> None:
    """Raises Unauthenticated unless the envelope is about this version of this model and its signature is genuine.

    Whether the key is trusted is another question, and not asked here.
    """
    if (envelope.model, envelope.version) != (model, version):
        raise Unauthenticated(f"the envelope belongs to {envelope.model} {envelope.version}, not to {model} {version}")
    message = signed_bytes(envelope.model, envelope.version, envelope.publisher, envelope.created_at)
    if not verify(bytes.fromhex(envelope.public_key), bytes.fromhex(envelope.signature), message):
        raise Unauthenticated(f"the signature of {model} {version} by {envelope.public_key[:12]} is not genuine")
