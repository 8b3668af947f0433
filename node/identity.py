"""Who a node is: an Ed25519 key, and a TLS certificate that proves possession of it.

The node id is the raw Ed25519 public key in hex (64 characters); "fingerprint" is the same string.
gRPC cannot use Ed25519 certificates, so TLS runs on an ECDSA P-256 key whose self-signed certificate
carries the node id as first SAN (``aios:<id>``) and, in ``aios-proof:<hex>``, the Ed25519 signature
over its public key. Nobody can present another node's id without that node's key, and certificates
can be renewed without changing the id.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from aios_node.engine.errors import BadConfig, Corrupt, StorageError, Unauthenticated
from aios_node.node.files import storage_error, write_atomic

SERVER_NAME = "aios-node"  # every certificate is also valid for this name: peers pin it, so no DNS is trusted
VALIDITY = timedelta(days=825)
RENEW_BEFORE = timedelta(days=30)
_PROOF_CONTEXT = b"aios-node tls key v1\0"


@dataclass(frozen=True)
class Identity:
    """A node's keys. ``certificate`` and ``tls_key`` are PEM."""

    node_id: str
    signing_key: ed25519.Ed25519PrivateKey
    certificate: bytes
    tls_key: bytes

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self.signing_key.sign(data)


def verify(node_id: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the node of this id."""
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(node_id))
        key.verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def create_identity(folder: Path, hosts: Iterable[str], *, now: datetime | None = None) -> Identity:
    """Make keys in ``folder`` (mode 0700, private files 0600). Existing keys are never overwritten."""
    if (folder / "identity.key").exists():
        raise BadConfig(f"{folder} already holds an identity; it is never overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(error, folder) from None
    key = ed25519.Ed25519PrivateKey.generate()
    write_atomic(folder / "identity.key", _private_pem(key), mode=0o600)
    moment = now or datetime.now(UTC)
    _write_certificate(folder, key, hosts, moment)
    return load_identity(folder, now=moment)


def load_identity(folder: Path, hosts: Iterable[str] = (), *, now: datetime | None = None) -> Identity:
    """Read the keys; a certificate that ends within 30 days, or lacks one of ``hosts``, is renewed."""
    signing = _load_key(folder / "identity.key")
    moment = now or datetime.now(UTC)
    certificate_file = folder / "node.crt"
    if not certificate_file.exists() or _needs_renewal(_read(certificate_file), hosts, moment):
        _write_certificate(folder, signing, hosts, moment)
    certificate = _read(certificate_file)
    node_id = node_id_of(certificate)
    if node_id != _public_hex(signing):
        raise Corrupt(f"{certificate_file} belongs to another identity than identity.key: remove it to renew it")
    return Identity(node_id, signing, certificate, _read(folder / "node.key"))


_NO_CERTIFICATE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)
"""What the library raises, early or late, for bytes that are no certificate of a node."""


def node_id_of(certificate: bytes) -> str:
    """The node id that a PEM certificate proves. Raises Unauthenticated when it proves none."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        basic = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
        spki = parsed.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except _NO_CERTIFICATE:
        raise Unauthenticated("this is not the certificate of a node: make one with `aios-node init`") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    claimed = uris[0].removeprefix("aios:") if uris and uris[0].startswith("aios:") else ""
    proofs = [uri.removeprefix("aios-proof:") for uri in uris if uri.startswith("aios-proof:")]
    proved = any(_hex_signature_ok(claimed, spki, proof) for proof in proofs)
    if basic.ca or not proved:
        raise Unauthenticated("the certificate does not prove the node id that it names")
    return claimed


def expired(certificate: bytes, now: datetime | None = None) -> bool:
    """Whether a PEM certificate is outside its time of validity."""
    parsed = x509.load_pem_x509_certificate(certificate)
    moment = now or datetime.now(UTC)
    return not parsed.not_valid_before_utc <= moment <= parsed.not_valid_after_utc


def _hex_signature_ok(node_id: str, spki: bytes, proof: str) -> bool:
    try:
        return verify(node_id, _PROOF_CONTEXT + spki, bytes.fromhex(proof))
    except ValueError:
        return False


def _write_certificate(folder: Path, signing: ed25519.Ed25519PrivateKey, hosts: Iterable[str], now: datetime) -> None:
    tls_key = ec.generate_private_key(ec.SECP256R1())
    certificate = _build_certificate(tls_key, signing, hosts, now)
    write_atomic(folder / "node.key", _private_pem(tls_key), mode=0o600)
    write_atomic(folder / "node.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _build_certificate(
    tls_key: ec.EllipticCurvePrivateKey,
    signing: ed25519.Ed25519PrivateKey,
    hosts: Iterable[str],
    now: datetime,
) -> x509.Certificate:
    spki = tls_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    proof = signing.sign(_PROOF_CONTEXT + spki).hex()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"aios:{_public_hex(signing)}")]
    names += [_general_name(host) for host in dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", *hosts])]
    names += [x509.UniformResourceIdentifier(f"aios-proof:{proof}")]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of small machines are often a little late
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(tls_key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _needs_renewal(certificate: bytes, hosts: Iterable[str], now: datetime) -> bool:
    parsed = x509.load_pem_x509_certificate(certificate)
    names = set(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    lacking = any(_general_name(host) not in names for host in hosts)
    return lacking or parsed.not_valid_after_utc - now < RENEW_BEFORE


def _public_hex(key: ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _private_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> ed25519.Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise Corrupt(f"{path} is not a private key: restore it from a backup, or make a new node") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Corrupt(f"{path} is not an Ed25519 key")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StorageError(f"{path} is missing: make the node's identity with `aios-node init`") from None
    except OSError as error:
        raise storage_error(error, path) from None
