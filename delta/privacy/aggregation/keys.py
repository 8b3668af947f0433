"""Keys of one participant in one session, and what two of them share: X25519, HKDF-SHA256, ChaCha20-Poly1305.

Every participant has two key pairs. One makes the masks that it shares with each other one; its private half may be
rebuilt by the others when the participant drops out. The other one seals shares on their way through the aggregator,
and is never given away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aios_node.delta.privacy.aggregation.shamir import SHARE_BYTES
from aios_node.delta.privacy.random import SEED_BYTES, Random
from aios_node.engine.errors import Corrupt, ProtocolError

SEALED_BYTES: Final = 2 * SHARE_BYTES + 16
_NONCE: Final = bytes(12)  # every key seals one message, in one direction
_PROBE: Final = bytes(range(32))


@dataclass(frozen=True)
class Secrets:
    """What a participant must keep: the private halves, and the seed of the mask that is its own alone."""

    mask_key: bytes
    seal_key: bytes
    seed: bytes

    @classmethod
    def new(cls, random: Random) -> Secrets:
        """Fresh secrets: no session ever sees those of another."""
        return cls(random(SEED_BYTES), random(SEED_BYTES), random(SEED_BYTES))

    def __repr__(self) -> str:
        """Nothing: secrets do not belong into logs."""
        return "Secrets(...)"


def public_half(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_public(key: bytes) -> None:
    """Raises ProtocolError for keys whose secrets everybody knows (points of low order)."""
    _exchange(_PROBE, key)


def commitment(terms: bytes, owner: str, seed: bytes) -> str:
    """sha256 (hex) that binds a participant to its seed and shows nothing of it: a seed has 256 random bits."""
    return hashlib.sha256(b"aios-secure-sum seed\0" + terms + owner.encode() + seed).hexdigest()


def mask_seed(terms: bytes, private: bytes, public: bytes) -> bytes:
    """The seed of the mask that two participants share; the same from both sides."""
    return _derive(_exchange(private, public), terms, b"mask")


def seal(terms: bytes, private: bytes, public: bytes, sender: str, receiver: str, shares: bytes) -> bytes:
    """Shares for one receiver's eyes, ``SEALED_BYTES`` long."""
    return _cipher(terms, private, public, sender, receiver).encrypt(_NONCE, shares, None)


def unseal(terms: bytes, private: bytes, public: bytes, sender: str, receiver: str, sealed: bytes) -> bytes:
    """The shares. Raises Corrupt when they were not sealed by this sender for this receiver under these terms."""
    try:
        return _cipher(terms, private, public, sender, receiver).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise Corrupt(f"the shares from {sender[:12]} were changed on their way") from None


def _cipher(terms: bytes, private: bytes, public: bytes, sender: str, receiver: str) -> ChaCha20Poly1305:
    purpose = b"seal" + bytes.fromhex(sender) + bytes.fromhex(receiver)
    return ChaCha20Poly1305(_derive(_exchange(private, public), terms, purpose))


def _exchange(private: bytes, public: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError("a public key of low order or wrong size: no secret can be agreed on with it") from None


def _derive(secret: bytes, terms: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=terms, info=b"aios-secure-sum " + purpose).derive(secret)
