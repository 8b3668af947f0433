"""Operations on the node as a whole: health, status, metrics, encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aios_node import __version__
from aios_node.engine.errors import BadRequest
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore


class NoArgs(Args):
    """None."""


class EncodeArgs(Args):
    """Texts to embed."""

    texts: list[str]
    model: str | None = None


@operation("health", "{} -> {status}: serving, draining or stopped", None)
def health(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """Whether the node takes requests."""
    return {"status": core.state}


@operation("status", "{} -> {node, node_id, address, models, tables, peers, version}", "read", "node/status")
def status(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """What the node holds and whom it knows."""
    return {
        "node": core.config.node.name,
        "node_id": core.identity.node_id,
        "address": core.address,
        "peer_address": core.peer_address,
        "ports": core.ports,
        "state": core.state,
        "models": [model_summary(core, name) for name in core.store.models()],
        "tables": [core.memory_stats(name) for name in core.memory.tables()],
        "peers": [peer_summary(peer) for peer in core.peers.all()],
        "version": __version__,
    }


@operation("metrics", "{} -> {text} in Prometheus' format", "read", "node/metrics")
def metrics(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """All metrics of this process."""
    return {"text": core.metrics.text()}


@operation("drain", "{} -> {status}: finish what runs, take nothing new, then stop", "admin", "node/drain")
def drain(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """Stop the node gracefully."""
    core.request_stop()
    return {"status": core.state}


@operation("encode", "{texts, model?} -> {model, version, embeddings}", "admin", "node/encode")
def encode(core: NodeCore, args: EncodeArgs, _progress: Progress) -> dict[str, Any]:
    """Texts as vectors of unit length. For many texts use do_exchange, which sends Arrow data."""
    if not args.texts:
        raise BadRequest("there is no text to encode")
    model = core.models.encoder_name(args.model)
    vectors, version = core.models.encode(model, args.texts)
    return {"model": model, "version": version, "embeddings": vectors.tolist()}


def model_summary(core: NodeCore, name: str) -> dict[str, Any]:
    """One model as lists show it."""
    picture = core.store.picture
    state = picture.model(name)
    active = state.pointers.active
    facts = picture.facts[active] if active else None
    source = facts.derived_from if facts else None
    return {
        "name": name,
        "active": active,
        "heads": list(picture.heads(name)),
        "versions": len(state.members),
        "quant": facts.quant if facts else None,
        "bytes": facts.bytes if facts else 0,
        "kind": core.models.kind(name),
        "mode": core.models.mode(name),
        "derived_from": {"model": source.model, "version": source.version} if source else None,
    }


def peer_summary(peer: Any) -> dict[str, Any]:
    """One peer as lists show it."""
    return {
        "uri": peer.uri,
        "address": peer.address,
        "node_id": peer.node_id,
        "name": peer.name,
        "state": peer.state,
        "last_error": peer.last_error,
    }
