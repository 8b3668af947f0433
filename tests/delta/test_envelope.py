"""Envelopes: canonical bytes, strict reading, signatures over exactly the facts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.envelope import Envelope, check_envelope, seal, signed_bytes
from aios_node.engine.errors import Corrupt, DataError, TooLarge, Unauthenticated

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw().hex()
VERSION = "a" * 64
ENVELOPE = seal("m", VERSION, publisher="cloud", created_at="2026-01-02T03:04:05Z", public_key=PUBLIC, sign=KEY.sign)


def genuine(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def test_a_sealed_envelope_is_genuine_after_its_journey() -> None:
    arrived = Envelope.from_bytes(ENVELOPE.to_bytes())
    assert arrived == ENVELOPE
    check_envelope(arrived, model="m", version=VERSION, verify=genuine)


@pytest.mark.parametrize(
    "forged",
    [
        replace(ENVELOPE, publisher="edge"),
        replace(ENVELOPE, created_at="2027-01-02T03:04:05Z"),
        replace(ENVELOPE, signature="0" * 128),
        replace(ENVELOPE, public_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()),
        replace(ENVELOPE, model="n"),
        replace(ENVELOPE, version="b" * 64),
    ],
)
def test_any_change_is_noticed(forged: Envelope) -> None:
    with pytest.raises(Unauthenticated):
        check_envelope(forged, model="m", version=VERSION, verify=genuine)


def test_a_signature_for_another_version_is_of_no_use() -> None:
    moved = replace(ENVELOPE, version="b" * 64)
    with pytest.raises(Unauthenticated, match="not genuine"):
        check_envelope(moved, model="m", version="b" * 64, verify=genuine)
    with pytest.raises(Unauthenticated, match="belongs to"):
        check_envelope(ENVELOPE, model="m", version="b" * 64, verify=genuine)


def test_what_is_signed_cannot_be_taken_for_anything_else() -> None:
    assert signed_bytes("m", VERSION, "p", "t").startswith(b"aios-envelope-v1\n{")
    assert signed_bytes("m", VERSION, 'p","created_at":"t', "") != signed_bytes("m", VERSION, "p", "t")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"model": "../m"},
        {"version": "x"},
        {"publisher": "two\nlines"},
        {"publisher": "x" * 129},
        {"created_at": "yesterday"},
        {"public_key": "AB" * 32},
        {"signature": ""},
        {"more": 1},
    ],
)
def test_envelopes_are_read_strictly(change: dict[str, object]) -> None:
    values = json.loads(ENVELOPE.to_bytes()) | change
    with pytest.raises(Corrupt):
        Envelope.from_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def test_only_the_canonical_spelling_and_size_is_read() -> None:
    with pytest.raises(Corrupt, match="canonical"):
        Envelope.from_bytes(json.dumps(json.loads(ENVELOPE.to_bytes())).encode())
    with pytest.raises(TooLarge):
        Envelope.from_bytes(b" " * 5000)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(DataError):
        Envelope.from_bytes(noise)
