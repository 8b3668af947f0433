"""The peers of a node: those in its configuration, those added by command, and what is known of each.

Under TLS a peer is pinned by its node id. Its certificate is fetched from it once, checked to prove that
id, kept in ``keys/peers/`` and from then on the only root that is trusted for it.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from aios_node.engine.errors import BadConfig, BadRequest, Corrupt, Unauthenticated, Unavailable
from aios_node.node.config.model import PeerEntry
from aios_node.node.files import read_json, write_atomic, write_json
from aios_node.node.identity import expired, node_id_of

FETCH_TIMEOUT_S = 5.0
_URIS = "grpc+tls://HOST:PORT, grpc://HOST:PORT, or key:NODE_ID for a node that only dials"


@dataclass(frozen=True)
class Peer:
    """One peer and the last that was heard of it. ``node_id`` is None for a plain peer that never answered."""

    uri: str
    node_id: str | None
    rights: tuple[str, ...] | None
    certificate: Path | None = None
    name: str | None = None
    state: str = "new"  # new, up, down
    last_error: str | None = None
    found: str | None = None  # where it was discovered, when it is not where its URI says

    @property
    def address(self) -> str:
        """The URI at which it is dialled."""
        return self.found or self.uri

    @property
    def tls(self) -> bool:
        """Whether it is met under mTLS."""
        return self.uri.startswith(("grpc+tls://", "key:"))

    @property
    def dialled(self) -> bool:
        """Whether it is dialled from here; otherwise it is known by its key alone, and dials in or is not found yet."""
        return not self.address.startswith("key:")


class PeerBook:
    """All peers of one node. Thread-safe; changes by command are kept in ``peers.json``."""

    def __init__(self, folder: Path, configured: Iterable[PeerEntry], base: Path) -> None:
        self._folder = folder
        self._base = base
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._added: dict[str, dict[str, Any]] = _checked_entries(read_json(folder / "peers.json", {}), folder)
        for entry in (*configured, *(PeerEntry(**value) for value in self._added.values())):
            self._peers[entry.uri] = _peer(entry, base)

    def all(self) -> list[Peer]:
        """All peers by URI."""
        with self._lock:
            return [self._peers[uri] for uri in sorted(self._peers)]

    def by_id(self, node_id: str) -> Peer | None:
        """The peer with this node id, if it is one of ours."""
        return next((peer for peer in self.all() if peer.node_id == node_id), None)

    def dialled(self) -> list[Peer]:
        """The peers that are dialled from here."""
        return [peer for peer in self.all() if peer.dialled]

    def find(self, text: str) -> Peer:
        """The peer with this URI, name or node id prefix. Raises BadRequest."""
        peers = self.all()
        fits = [p for p in peers if text in {p.uri, p.name}] or [
            p for p in peers if len(text) >= 4 and (p.node_id or "").startswith(text)
        ]
        if len(fits) != 1:
            known = ", ".join(peer.uri for peer in peers) or "none"
            raise BadRequest(f"no single peer is called {text!r}; there are: {known}")
        return fits[0]

    def add(self, uri: str, fingerprint: str | None, certificate: Path | None, *, discovered: bool = False) -> Peer:
        """Add a peer and keep it. Raises BadRequest or BadConfig.

        ``discovered``: whether a peer without an address may be found, and asked for its certificate then.
        """
        try:
            entry = PeerEntry(uri=uri, fingerprint=fingerprint, certificate=certificate)
        except ValidationError as error:
            wrong = (*error.errors()[0]["loc"], "uri")[0]
            allowed = "64 hexadecimal digits" if wrong == "fingerprint" else _URIS
            raise BadRequest(
                f"{wrong} is {(fingerprint if wrong == 'fingerprint' else uri)!r}: use {allowed}"
            ) from None
        if uri.startswith("grpc+tls://") and fingerprint is None:
            raise BadRequest("a grpc+tls peer needs --fingerprint NODE_ID: `aios-node status` there shows it")
        peer = _peer(entry, self._base)
        if not (peer.dialled or certificate or discovered) and self.certificate(peer) is None:
            raise BadRequest(f"{uri} cannot be asked for its certificate: give --cert, a copy of its keys/node.crt")
        if certificate is not None:
            self._keep_certificate(peer, _read_certificate(certificate))
        with self._lock:
            self._peers[uri] = peer
            self._added[uri] = entry.model_dump(mode="json", exclude_none=True, exclude={"certificate"})
            write_json(self._folder / "peers.json", self._added)
        return peer

    def remove(self, uri: str) -> None:
        """Forget a peer that was added by command. Raises BadRequest."""
        with self._lock:
            if uri not in self._added:
                where = "it stands in the configuration file" if uri in self._peers else "there is none"
                raise BadRequest(f"{uri} was not added by `peers add`: {where}")
            del self._added[uri], self._peers[uri]
            write_json(self._folder / "peers.json", self._added)

    def note(self, uri: str, **changes: Any) -> None:
        """Remember what was heard of a peer: ``name``, ``node_id``, ``state``, ``last_error``."""
        with self._lock:
            if uri in self._peers:
                self._peers[uri] = replace(self._peers[uri], **changes)

    def move(self, peer: Peer, uri: str) -> None:
        """Dial a TLS peer at another address from now on, once it has proved there that it is the pinned node.

        Raises Unavailable when nobody answers there, Unauthenticated when it is somebody else.
        """
        self.fetch_certificate(replace(peer, found=uri))
        self.note(peer.uri, found=uri, state="new", last_error=None)

    def certificate(self, peer: Peer) -> bytes | None:
        """The pinned certificate (PEM) of a TLS peer, if it is at hand and still valid."""
        if peer.node_id is None:
            return None
        path = self._certificate_path(peer.node_id)
        if not path.exists() and peer.certificate is not None:
            self._keep_certificate(peer, _read_certificate(peer.certificate))
        if not path.exists():
            return None
        pem = path.read_bytes()
        return None if expired(pem) else pem

    def fetch_certificate(self, peer: Peer) -> bytes:
        """Ask the peer for its certificate, check that it proves the pinned id, and keep it.

        Raises Unavailable when it does not answer, Unauthenticated when it is somebody else.
        """
        address = urlsplit(peer.address)
        try:
            pem = ssl.get_server_certificate((address.hostname or "", address.port or 0), timeout=FETCH_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{peer.address} does not answer: {error}") from None
        self._keep_certificate(peer, pem.encode())
        return pem.encode()

    def roots(self) -> dict[str, bytes]:
        """Certificates of all TLS peers by node id: whom the peers' listener lets in."""
        found = {peer.node_id: self.certificate(peer) for peer in self.all() if peer.tls and peer.node_id}
        return {node_id: pem for node_id, pem in found.items() if pem is not None}

    def _keep_certificate(self, peer: Peer, pem: bytes) -> None:
        proved = node_id_of(pem)
        if proved != peer.node_id:
            raise Unauthenticated(
                f"{peer.address} is node {proved[:12]}, not {(peer.node_id or '')[:12]}: check the fingerprint"
            )
        if expired(pem):
            raise Unauthenticated(f"the certificate of {peer.uri} has expired: restart that node, which renews it")
        write_atomic(self._certificate_path(proved), pem)

    def _certificate_path(self, node_id: str) -> Path:
        return self._folder / "peers" / f"{node_id}.crt"


def _peer(entry: PeerEntry, base: Path) -> Peer:
    certificate = base / entry.certificate if entry.certificate else None
    return Peer(entry.uri, entry.node_id, entry.rights, certificate)


def _checked_entries(value: Any, folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return {PeerEntry(**entry).uri: dict(entry) for entry in dict[str, Mapping[str, Any]](value).values()}
    except (ValidationError, TypeError, ValueError):
        raise Corrupt(f"{folder / 'peers.json'} is damaged: remove it and add the peers again") from None


def _read_certificate(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"certificate {path} cannot be read: {error.strerror}") from None
