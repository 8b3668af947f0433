"""Whose versions a node takes: signatures, the trust list, and what a merge makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_memory_nodes import CREATED, befriend, commit, nodes, quiet, visit

from aios_node.delta.envelope import Envelope, seal
from aios_node.node.core import NodeCore
from aios_node.node.identity import create_identity, load_identity
from aios_node.node.merging import Way, meeting, merge_heads
from aios_node.node.sync.service import Visit

START = np.zeros(64, np.float32)


@pytest.fixture
def mallory(tmp_path: Path) -> Path:
    """Keys of somebody whom nobody trusts."""
    create_identity(tmp_path / "mallory", [])
    return tmp_path / "mallory"


def arrived(found: Visit) -> list[str]:
    assert found.error is None
    return [one.result.to_version for one in found.records if one.result.direction == "received" and one.result.hash_ok]


def test_what_a_peer_signed_is_taken(tmp_path: Path) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        befriend(alpha, beta)
        version = commit(beta, START)
        assert arrived(visit(alpha, beta)) == [version]
        assert alpha.store.active("m") == version
        assert alpha.publisher_of("m", version) == beta.identity.node_id


def test_what_a_stranger_signed_is_refused_whoever_brings_it(tmp_path: Path, mallory: Path) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        befriend(alpha, beta)
        commit(beta, START, author=mallory)
        assert arrived(visit(alpha, beta)) == []
        assert arrived(visit(beta, alpha)) == []
        assert alpha.store.models() == ()


def test_a_named_publisher_is_trusted_through_others(tmp_path: Path, mallory: Path) -> None:
    known = load_identity(mallory, []).node_id
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        security = alpha.config.security.model_copy(update={"publishers": (known,)})
        alpha.config = alpha.config.model_copy(update={"security": security})
        befriend(alpha, beta)
        version = commit(beta, START, author=mallory)
        assert arrived(visit(alpha, beta)) == [version]


def unsigned(_core: NodeCore, _version: str) -> bytes | None:
    return None


def for_another_version(core: NodeCore, _version: str) -> bytes:
    sign = core.identity.sign
    return seal(
        "m", "ab" * 32, publisher="x", created_at=CREATED, public_key=core.identity.node_id, sign=sign
    ).to_bytes()


def with_a_strangers_signature(core: NodeCore, version: str) -> bytes:
    def sign(_message: bytes) -> bytes:
        return b"\0" * 64

    return seal("m", version, publisher="x", created_at=CREATED, public_key=core.identity.node_id, sign=sign).to_bytes()


def with_another_time(core: NodeCore, version: str) -> bytes:
    sign = core.identity.sign
    genuine = seal("m", version, publisher="x", created_at=CREATED, public_key=core.identity.node_id, sign=sign)
    members = json.loads(genuine.to_bytes()) | {"created_at": "2027-01-01T00:00:00.000Z"}
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("forge", [unsigned, for_another_version, with_a_strangers_signature, with_another_time])
def test_forged_envelopes_are_refused_and_not_fetched_again(
    tmp_path: Path, forge: Callable[[NodeCore, str], bytes | None]
) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        befriend(alpha, beta)
        version = commit(beta, START, envelope=lambda version: forge(beta, version))
        first = visit(alpha, beta)
        assert arrived(first) == []
        assert alpha.store.models() == ()
        assert [one for one in visit(alpha, beta).records if one.result.bytes] == [], version[:12]


def test_a_strangers_head_never_gets_into_a_merge(tmp_path: Path, mallory: Path) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        befriend(alpha, beta)
        base = commit(alpha, START)
        assert arrived(visit(beta, alpha)) == [base]
        mine = commit(alpha, START + 1, base)
        commit(beta, START + 1000, base, author=mallory)
        visit(alpha, beta)
        assert alpha.store.heads("m") == (mine,)
        assert meeting(alpha, "m") == ()


def test_a_peer_that_merges_a_stranger_vouches_for_it(tmp_path: Path, mallory: Path) -> None:
    """A signature tells who made a version: here the trusted peer did, and alpha sees of what."""
    with nodes(tmp_path, ["alpha", "beta"]) as (alpha, beta):
        befriend(alpha, beta)
        beta.peers.add("grpc+tls://mallory:1", load_identity(mallory, []).node_id, None)
        base = commit(beta, START)
        heads = [commit(beta, START + 1, base), commit(beta, START + 3, base, author=mallory)]
        made = merge_heads(beta, "m", heads, Way("fedavg", {}), quiet)["version"]
        assert arrived(visit(alpha, beta)) == [made]
        assert alpha.store.manifest(made).parents == tuple(sorted(heads))
        envelope = alpha.store.envelope("m", made)
        assert envelope is not None
        assert Envelope.from_bytes(envelope).public_key == beta.identity.node_id
