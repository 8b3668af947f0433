"""Identities: a certificate proves the node id, or it proves nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aios_node.engine.errors import BadConfig, Corrupt, StorageError, Unauthenticated
from aios_node.node.identity import create_identity, expired, load_identity, node_id_of, verify


def test_the_certificate_proves_the_node_id(tmp_path: Path) -> None:
    identity = create_identity(tmp_path, ["10.0.0.7", "edge.local"])
    assert node_id_of(identity.certificate) == identity.node_id
    assert verify(identity.node_id, b"hello", identity.sign(b"hello"))
    assert not verify(identity.node_id, b"hullo", identity.sign(b"hello"))
    assert not verify("zz", b"hello", identity.sign(b"hello"))


def test_nobody_can_claim_another_id(tmp_path: Path) -> None:
    """A certificate with somebody else's id as first SAN, and a proof made with the wrong key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    victim = create_identity(tmp_path / "victim", [])
    thief = create_identity(tmp_path / "thief", [])
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "thief")])
    now = datetime.now(UTC)
    for ca, proof in ((False, thief.sign(spki).hex()), (False, "zz"), (True, victim.sign(spki).hex())):
        uris = [f"aios:{victim.node_id}", f"aios-proof:{proof}"]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), False)
            .add_extension(x509.BasicConstraints(ca, None), True)
            .sign(key, hashes.SHA256())
        )
        with pytest.raises(Unauthenticated):
            node_id_of(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_junk_proves_nothing(junk: bytes) -> None:
    with pytest.raises(Unauthenticated):
        node_id_of(junk)


def test_certificates_are_renewed_and_the_id_stays(tmp_path: Path) -> None:
    old = datetime.now(UTC) - timedelta(days=3000)
    identity = create_identity(tmp_path, [], now=old)
    assert expired(identity.certificate)
    renewed = load_identity(tmp_path)
    assert renewed.node_id == identity.node_id
    assert not expired(renewed.certificate)
    assert load_identity(tmp_path).certificate == renewed.certificate
    assert load_identity(tmp_path, ["10.1.1.1"]).certificate != renewed.certificate


def test_keys_are_never_overwritten_and_damage_is_told(tmp_path: Path) -> None:
    create_identity(tmp_path, [])
    with pytest.raises(BadConfig, match="never overwritten"):
        create_identity(tmp_path, [])
    (tmp_path / "identity.key").write_bytes(b"junk")
    with pytest.raises(Corrupt, match="not a private key"):
        load_identity(tmp_path)
    with pytest.raises(StorageError, match="aios-node init"):
        load_identity(tmp_path / "nowhere")


def test_a_certificate_of_another_identity_is_refused(tmp_path: Path) -> None:
    create_identity(tmp_path / "a", [])
    create_identity(tmp_path / "b", [])
    for name in ("node.crt", "node.key"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(Corrupt, match="another identity"):
        load_identity(tmp_path / "a")


def test_a_listener_on_all_addresses_is_valid_for_each_of_them(tmp_path: Path) -> None:
    from aios_node.node.config import load_config
    from aios_node.node.core import certificate_hosts

    (tmp_path / "node.yaml").write_text("listen: {host: 0.0.0.0, advertise: edge.example}")
    hosts = certificate_hosts(load_config(tmp_path / "node.yaml", environ={}))
    assert {"edge.example", "127.0.0.1"} <= set(hosts)
    assert "0.0.0.0" not in hosts
    create_identity(tmp_path / "keys", hosts)
