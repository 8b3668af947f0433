"""Operations on peers, tokens and transfers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from aios_node.engine.errors import BadRequest
from aios_node.node.operations.general import NoArgs, peer_summary
from aios_node.node.operations.registry import Args, Progress, operation
from aios_node.node.sync.calling import HELD_S

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore
    from aios_node.node.peers import Peer


class SyncArgs(Args):
    """Which peer and which model; none: all."""

    peer: str | None = None
    model: str | None = None


class NewsArgs(Args):
    """The number of news that the caller knows; another one is answered at once."""

    since: int = -1


class PeerAddArgs(Args):
    """A peer to trust."""

    uri: str
    fingerprint: str | None = None
    certificate: Path | None = None


class DiscoverArgs(Args):
    """How long to listen, where the node does not listen anyway."""

    wait_s: float = Field(3.0, ge=0.0, le=60.0)


class PeerArgs(Args):
    """A peer."""

    uri: str


class TokenCreateArgs(Args):
    """A client and its rights."""

    name: str
    allow: list[str]


class TokenArgs(Args):
    """A client."""

    name: str


@operation(
    "sync",
    "{peer?, model?} -> {results: [{peer, model, from, to, mode, bytes, full_bytes, hash_ok}], failed}",
    "admin",
    "node/sync",
    long=True,
)
def sync(core: NodeCore, args: SyncArgs, progress: Progress) -> dict[str, Any]:
    """Visit peers now; returns what was transferred, and which peers could not be reached."""
    peers = [_dialled(core, args.peer)] if args.peer else core.peers.dialled()
    results: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for index, peer in enumerate(peers):
        progress(index / len(peers), peer.uri)
        visit = core.sync.visit(peer, model=args.model)
        results += [record.to_json() for record in visit.records]
        if visit.error:
            failed.append({"peer": peer.uri, "error": visit.error})
    return {"results": results, "failed": failed}


@operation("news", "{since?} -> {news}: waits up to 20 s for another number than `since`", "read", "node/status")
def news(core: NodeCore, args: NewsArgs, _progress: Progress) -> dict[str, Any]:
    """How many times a version was activated here: what peers that cannot be reached wait for."""
    return {"news": core.sync.wait_for_news(args.since, HELD_S)}


@operation("transfers", "{} -> {transfers}: the last ones, oldest first", "read", "node/transfers")
def transfers(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """What was transferred since the node started."""
    return {"transfers": [record.to_json() for record in core.sync.history.all()]}


@operation("peers_list", "{} -> {peers}", "admin", "node/peers")
def peers_list(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """All peers."""
    return {"peers": [peer_summary(peer) for peer in core.peers.all()]}


@operation("peers_add", "{uri, fingerprint?, certificate?} -> {peer}", "admin", "node/peers")
def peers_add(core: NodeCore, args: PeerAddArgs, _progress: Progress) -> dict[str, Any]:
    """Trust a peer from now on."""
    discovered = core.config.discovery.mdns
    peer = core.peers.add(args.uri, args.fingerprint, args.certificate, discovered=discovered)
    core.peers_changed()
    return {"peer": peer_summary(peer)}


@operation(
    "peers_discover", "{wait_s?} -> {nodes: [{node_id, name, uris, peer, self}]}", "admin", "node/peers", long=True
)
def peers_discover(core: NodeCore, args: DiscoverArgs, _progress: Progress) -> dict[str, Any]:
    """Nodes that announce themselves on the local network. Listing them makes nobody a peer."""
    from aios_node.node.discovery.service import look_around, summary

    found = look_around(core, args.wait_s) if core.discovery is None else core.discovery.all()
    return {"nodes": [summary(one) for one in found]}


@operation("peers_remove", "{uri} -> {removed}", "admin", "node/peers")
def peers_remove(core: NodeCore, args: PeerArgs, _progress: Progress) -> dict[str, Any]:
    """Forget a peer that was added by command."""
    core.peers.remove(args.uri)
    core.peers_changed()
    return {"removed": args.uri}


@operation("token_create", "{name, allow} -> {name, token, allow}", "admin", "node/tokens")
def token_create(core: NodeCore, args: TokenCreateArgs, _progress: Progress) -> dict[str, Any]:
    """Make a token; this is the only time it can be read."""
    secret = core.tokens.create(args.name, args.allow)
    return {"name": args.name, "token": secret, "allow": args.allow}


@operation("token_list", "{} -> {tokens: [{name, allow}]}", "admin", "node/tokens")
def token_list(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """Names and rights, never secrets."""
    return {"tokens": [{"name": name, "allow": allow} for name, allow in core.tokens.names().items()]}


@operation("token_revoke", "{name} -> {revoked}", "admin", "node/tokens")
def token_revoke(core: NodeCore, args: TokenArgs, _progress: Progress) -> dict[str, Any]:
    """Forget a token at once."""
    core.tokens.revoke(args.name)
    return {"revoked": args.name}


def _dialled(core: NodeCore, text: str) -> Peer:
    peer = core.peers.find(text)
    if not peer.dialled:
        raise BadRequest(f"{peer.uri} only dials: it syncs when it calls, at the latest after its sync.interval_s")
    return peer
