"""Calls to peers: mutual TLS with pinned certificates, or plain where the network is plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from aios_node.engine.errors import BadConfig, ProtocolError, Unauthorized
from aios_node.flight.client import Client
from aios_node.flight.peer_link import PeerLink
from aios_node.flight.ports import SearchRequest
from aios_node.node.identity import SERVER_NAME, Identity
from aios_node.node.peers import Peer, PeerBook
from aios_node.node.sync.calling import HELD_S

STATUS_TIMEOUT_S = 10.0


class Dialer:
    """Opens connections to peers in this node's name. Thread-safe."""

    def __init__(self, identity: Identity, peers: PeerBook, *, idle_timeout_s: float, tls: bool) -> None:
        self._identity = identity
        self._peers = peers
        self._idle_timeout_s = idle_timeout_s
        self._tls = tls
        self.on_new_certificate: Callable[[], None] = lambda: None

    def link(self, peer: Peer) -> PeerLink:
        """A sync stream. Raises AiosError, at the latest when it is first used."""
        certificates = self._certificates(peer)
        if peer.name is None or peer.state == "down":
            self._introduce(peer, certificates)
        return PeerLink(
            peer.address,
            ca=certificates.get("ca"),
            cert=certificates.get("cert"),
            key=certificates.get("key"),
            hostname=SERVER_NAME,
            idle_timeout=self._idle_timeout_s,
        )

    def news(self, peer: Peer, since: int) -> int:
        """How many news a peer has had, at once if that is not ``since``, else after a while. Raises AiosError."""
        timeout_s = HELD_S + STATUS_TIMEOUT_S
        with self._client(peer, self._certificates(peer), timeout_s) as client:
            answer = next(client.call("news", {"since": since}, timeout=timeout_s), {})
        number = answer.get("news")
        if type(number) is not int:
            raise ProtocolError(f"{peer.uri} does not say what news it has")
        return number

    def ask(self, peer: Peer, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The result of an operation on a peer; what it says of its progress is passed over. Raises AiosError."""
        with self._client(peer, self._certificates(peer), timeout_s) as client:
            results = [found for found in client.call(op, args, timeout=timeout_s) if "progress" not in found]
        return results[-1] if results else {}

    def search(self, peer: Peer, request: SearchRequest, timeout_s: float) -> pa.Table:
        """A peer's own hits for a search."""
        fields = {name: value for name, value in vars(request).items() if value is not None and name != "table"}
        with self._client(peer, self._certificates(peer), timeout_s) as client:
            return client.search(request.table, **fields)

    def _introduce(self, peer: Peer, certificates: dict[str, bytes]) -> None:
        """Learn a peer's name and, on a plain network, its id."""
        with self._client(peer, certificates, STATUS_TIMEOUT_S) as client:
            try:
                status = client.status()
            except Unauthorized:
                return  # a peer that keeps its name to itself can be synced with all the same
        node_id = peer.node_id or (str(status["node_id"]) if "node_id" in status else None)
        self._peers.note(peer.uri, name=str(status.get("node", ""))[:64] or None, node_id=node_id)

    def _client(self, peer: Peer, certificates: dict[str, Any], timeout_s: float) -> Client:
        hostname = SERVER_NAME if peer.tls else None
        return Client(peer.address, hostname=hostname, timeout=timeout_s, attempts=1, **certificates)

    def _certificates(self, peer: Peer) -> dict[str, bytes]:
        """What TLS needs: the peer's pinned certificate, fetched at first contact and after failures, and ours."""
        if not peer.tls:
            return {}
        if not self._tls:
            raise BadConfig(f"{peer.uri} speaks TLS, but this node has security.tls off: it could not be met back")
        return {
            "ca": self._certificate(peer),
            "cert": self._identity.certificate,
            "key": self._identity.tls_key,
        }

    def _certificate(self, peer: Peer) -> bytes:
        pinned = self._peers.certificate(peer)
        if pinned is not None and peer.state != "down":
            return pinned
        fetched = self._peers.fetch_certificate(peer)
        if fetched != pinned:
            self.on_new_certificate()  # from now on the peer is let in as well
        return fetched
