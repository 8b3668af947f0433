"""A node that cannot be reached, only dials: known by its key, in step in both directions, at once."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from aios_node.engine.errors import BadRequest, Unavailable
from aios_node.node.config.model import PeerEntry
from aios_node.node.demo.processes import DemoFailed, DemoNode, wait_until
from aios_node.node.identity import create_identity
from aios_node.node.peers import Peer, PeerBook
from aios_node.node.sync.calling import NewsCaller

PATIENCE_S = 60.0
ID = "ab" * 32


def active(node: DemoNode, model: str) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == model), None)


@pytest.fixture
def pair(make_node) -> tuple[DemoNode, DemoNode]:
    """A node under TLS that can be reached, and one behind a wall. Neither would ask again within the hour."""
    alpha, beta = make_node("alpha", tls="on", start=False), make_node("beta", tls="off", start=False)
    for node, key in ((alpha, ""), (beta, "  dial_only: true\n")):
        text = node.config.read_text()
        node.config.write_text(re.sub(r"(?m)^listen:\n", f"listen:\n{key}", text) + "\nsync:\n  interval_s: 3600\n")
        node.start()
    alpha.call("peers", "add", f"key:{beta.node_id}", "--cert", str(beta.folder / "keys" / "node.crt"))
    beta.call("peers", "add", alpha.peer_uri, "--fingerprint", alpha.node_id)
    return alpha, beta


def test_news_travel_both_ways_through_streams_that_one_side_dials(pair, weights_file) -> None:
    alpha, beta = pair
    assert beta.call("status")["peer_address"] is None
    assert list(beta.call("status")["ports"]) == ["client"]
    mine = beta.call("model", "import", str(weights_file("b.safetensors", 2, 0.0)), "--name", "mine")["version"]
    wait_until("news of the one that dials arriving", lambda: active(alpha, "mine") == mine, PATIENCE_S)
    for shift in (0.0, 0.001):
        file = weights_file(f"a{shift}.safetensors", 1, shift)
        theirs = alpha.call("model", "import", str(file), "--name", "theirs")["version"]
        wait_until(
            "news of the one that is dialled arriving",
            lambda theirs=theirs: active(beta, "theirs") == theirs,  # type: ignore[misc]
            PATIENCE_S,
        )
    (peer,) = alpha.call("peers", "list")["peers"]
    assert (peer["uri"], peer["node_id"], peer["state"]) == (f"key:{beta.node_id}", beta.node_id, "up")
    with pytest.raises(DemoFailed, match="only dials"):
        alpha.call("sync", "--peer", f"key:{beta.node_id}")
    assert alpha.call("sync")["failed"] == []


def test_another_node_cannot_use_its_place(pair, make_node, weights_file) -> None:
    alpha, _ = pair
    stranger = make_node("stranger", tls="on")
    stranger.call("peers", "add", alpha.peer_uri, "--fingerprint", alpha.node_id)
    stranger.call("model", "import", str(weights_file("s.safetensors", 3, 0.0)), "--name", "strange")
    assert "TLS refused" in stranger.call("sync")["failed"][0]["error"]
    assert active(alpha, "strange") is None


def test_a_peer_known_by_its_key_needs_its_certificate(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "other", [])
    book = PeerBook(tmp_path / "keys", (), tmp_path)
    with pytest.raises(BadRequest, match="--cert"):
        book.add(f"key:{identity.node_id}", None, None)
    peer = book.add(f"key:{identity.node_id}", None, tmp_path / "other" / "node.crt")
    assert (peer.node_id, peer.tls, peer.dialled) == (identity.node_id, True, False)
    assert book.roots() == {identity.node_id: identity.certificate}
    assert book.dialled() == []
    assert PeerBook(tmp_path / "keys", (), tmp_path).by_id(identity.node_id) is not None


def test_a_key_and_a_fingerprint_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different nodes"):
        PeerEntry(uri=f"key:{ID}", fingerprint="cd" * 32)
    with pytest.raises(BadRequest, match="uri"):
        PeerBook(tmp_path, (), tmp_path).add("key:short", None, None)


def test_only_another_number_is_news() -> None:
    """The first answer tells where the peer stands; a failure begins anew; a peer that is gone ends it."""
    answers = iter([4, 4, 5, 7, None])
    asked: list[int] = []
    news: list[str] = []
    stopping, gone = threading.Event(), threading.Event()
    peer = Peer("grpc://a:1", None, None)

    def find(uri: str) -> Peer | None:
        return None if gone.is_set() else peer

    def ask(peer: Peer, known: int) -> int:
        asked.append(known)
        answer = next(answers)
        if answer is None:
            gone.set()
            stopping.set()
            raise Unavailable("down")
        return answer

    caller = NewsCaller(find, ask, news.append, stopping)
    caller.stay("grpc://a:1")
    assert asked == [-1, 4, 4, 5, 7]
    assert news == ["grpc://a:1", "grpc://a:1"]
