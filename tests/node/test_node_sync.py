"""Sync between real nodes: full, delta, rollback, divergence, strangers, restarts."""

from __future__ import annotations

from typing import Any

import pytest

from aios_node.node.demo.processes import DemoNode, wait_until

PATIENCE_S = 60.0


def befriend(*nodes: DemoNode) -> None:
    """Everyone trusts everyone."""
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.call("peers", "add", other.peer_uri or other.uri, *fingerprint(other))


def fingerprint(node: DemoNode) -> list[str]:
    return ["--fingerprint", node.node_id] if node.peer_uri else []


def active(node: DemoNode, model: str) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == model), None)


def received(node: DemoNode) -> list[dict[str, Any]]:
    with node.owner() as client:
        found = next(iter(client.call("transfers")))["transfers"]
    return [one for one in found if one["direction"] == "received" and one["hash_ok"]]


@pytest.mark.parametrize("tls", ["on", "off"])
def test_full_sync_then_delta_then_rollback(make_node, weights_file, tls: str) -> None:
    alpha, beta = make_node("alpha", tls=tls), make_node("beta", tls=tls)
    befriend(alpha, beta)
    first = alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")["version"]
    wait_until("the first version arriving", lambda: active(beta, "m") == first, PATIENCE_S)
    second = alpha.call("model", "import", str(weights_file("b.safetensors", 1, 0.001)), "--name", "m")["version"]
    wait_until("the second version arriving", lambda: active(beta, "m") == second, PATIENCE_S)
    # Without identities both may have dialled: then a package comes in parts, over two links.
    full, delta = ([one for one in received(beta) if one["to"] == version] for version in (first, second))
    assert {(one["mode"], one["from"]) for one in full} == {("full", None)}
    assert {(one["mode"], one["from"]) for one in delta} == {("delta", first)}
    assert sum(one["bytes"] for one in delta) < sum(one["bytes"] for one in full) / 4
    assert beta.call("model", "rollback", "m")["active"] == first
    assert beta.call("model", "show", "m")["version"] == first


def test_news_flow_both_ways_in_one_visit(make_node, weights_file) -> None:
    alpha, beta = make_node("alpha", start=False), make_node("beta")
    theirs = beta.call("model", "import", str(weights_file("b.safetensors", 2, 0.0)), "--name", "theirs")["version"]
    ours = alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "ours")["version"]
    alpha.call("peers", "add", beta.uri)
    result = alpha.call("sync")  # the command itself, without a running node on this side
    assert result["failed"] == []
    assert {(one["direction"], one["to"]) for one in result["results"]} == {("sent", ours), ("received", theirs)}
    assert active(alpha, "theirs") == theirs
    assert active(beta, "ours") == ours


def test_diverged_versions_are_kept_side_by_side(make_node, weights_file) -> None:
    alpha, beta = make_node("alpha"), make_node("beta")
    mine = alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")["version"]
    yours = beta.call("model", "import", str(weights_file("b.safetensors", 2, 0.0)), "--name", "m")["version"]
    befriend(alpha, beta)
    for node, own in ((alpha, mine), (beta, yours)):
        wait_until("both heads arriving", lambda node=node: len(heads(node)) == 2, PATIENCE_S)  # type: ignore[misc]
        assert active(node, "m") == own


def heads(node: DemoNode) -> list[str]:
    return next(m["heads"] for m in node.call("status")["models"] if m["name"] == "m")


def test_a_stranger_is_not_let_in(make_node, weights_file) -> None:
    alpha, stranger = make_node("alpha", tls="on"), make_node("stranger", tls="on")
    stranger.call("peers", "add", alpha.peer_uri, "--fingerprint", alpha.node_id)
    stranger.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")
    failed = stranger.call("sync")["failed"]
    assert "TLS refused" in failed[0]["error"]
    assert active(alpha, "m") is None


def test_a_wrong_fingerprint_is_found_out(make_node) -> None:
    alpha, beta = make_node("alpha", tls="on"), make_node("beta", tls="on")
    beta.call("peers", "add", alpha.peer_uri, "--fingerprint", "ab" * 32)
    assert "check the fingerprint" in beta.call("sync")["failed"][0]["error"]


def test_derived_models_follow_their_source(make_node, weights_file) -> None:
    alpha = make_node("alpha")
    alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")
    first = alpha.call("model", "quantize", "m", "--name", "m.int8", "--quant", "int8")["version"]
    second = alpha.call("model", "import", str(weights_file("b.safetensors", 1, 0.001)), "--name", "m")["version"]
    wait_until("the derived model being rebuilt", lambda: active(alpha, "m.int8") != first, PATIENCE_S)
    shown = alpha.call("model", "show", "m.int8")
    assert shown["parents"] == [first]
    assert shown["derived_from"] == {"model": "m", "version": second}
    alpha.call("model", "rollback", "m")
    wait_until("the old derived model being served again", lambda: active(alpha, "m.int8") == first, PATIENCE_S)
    assert len(alpha.call("model", "show", "m.int8")["versions"]) == 2
