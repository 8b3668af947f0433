"""Who callers are and what they may do: the node's side of Flight's AccessPort.

Four kinds of principals: ``admin`` (this machine's owner, by the token in run.json), ``client`` (a bearer
token), ``peer`` (mTLS) and ``open`` (anyone on a loopback listener without TLS; may use the node, not
administer it).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping

from aios_node.engine.errors import Unauthenticated, Unauthorized
from aios_node.flight.ports import Principal, Right
from aios_node.node.grants import Grant, allowed, parse_grant
from aios_node.node.peers import PeerBook
from aios_node.node.tokens import TokenBook

OPEN_GRANTS = (
    *(Grant(f"{kind}/*", right) for kind in ("weights", "memory", "encode") for right in ("read", "write")),
    Grant("node/*", "read"),
)
CLIENT_GRANTS = (Grant("node/status", "read"),)  # what every known client may do beside its own grants


class Access:
    """Authenticates callers and checks their rights."""

    def __init__(self, tokens: TokenBook, peers: PeerBook, peer_rights: Iterable[str]) -> None:
        self._tokens = tokens
        self._peers = peers
        self._peer_grants = tuple(parse_grant(text) for text in peer_rights)
        self.owner_token = "aios_owner_" + secrets.token_urlsafe(32)

    def authenticate_token(self, token: str) -> Principal:
        """Whom a bearer token belongs to. Raises Unauthenticated."""
        if hmac.compare_digest(token.encode(), self.owner_token.encode()):
            return Principal("owner", "admin")
        return Principal(self._tokens.find(token).name, "client")

    def peer(self, node_id: str) -> Principal:
        """The peer of this node id. Raises Unauthenticated when it is not one of ours."""
        if self._peers.by_id(node_id) is None:
            raise Unauthenticated(f"node {node_id[:12]} is not a peer here: its owner must run `aios-node peers add`")
        return Principal(node_id, "peer")

    def check(self, principal: Principal, right: Right, resource: str) -> None:
        """Raise Unauthorized unless ``principal`` has ``right`` on ``resource``."""
        if principal.kind != "admin" and not allowed(self._grants(principal), right, resource):
            way = (
                "an open listener gives no such right: use the command line on the node's machine"
                if principal.kind == "open"
                else f"the node's owner can grant {resource}:{right}"
            )
            raise Unauthorized(f"{_who(principal)} lacks {right} on {resource}: {way}")

    def _grants(self, principal: Principal) -> Iterable[Grant]:
        if principal.kind == "open":
            return OPEN_GRANTS
        if principal.kind == "client":
            return (*CLIENT_GRANTS, *self._token_grants().get(principal.name, ()))
        peer = self._peers.by_id(principal.name)
        if peer is None:
            return ()
        return self._peer_grants if peer.rights is None else [parse_grant(text) for text in peer.rights]

    def _token_grants(self) -> Mapping[str, tuple[Grant, ...]]:
        return {name: tuple(parse_grant(text) for text in texts) for name, texts in self._tokens.names().items()}


def _who(principal: Principal) -> str:
    return {"open": "an anonymous caller", "client": f"token {principal.name!r}"}.get(
        principal.kind, f"peer {principal.name[:12]}"
    )
