"""Real nodes pass chunks on: the source of a version sends far less than a copy to each peer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios_node.node.demo.processes import DemoNode, wait_until

PEERS = 4
CAP_MBIT = 16
PATIENCE_S = 180.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[DemoNode]]:
    """A source and its peers, all capped, all of whom know each other."""
    found = [DemoNode(name, "local", tmp_path / name) for name in ("source", *(f"peer-{n}" for n in range(PEERS)))]
    try:
        for node in found:
            node.init("off")
            text = node.config.read_text()
            node.config.write_text(text.replace("limits:\n", f"limits:\n  bandwidth_mbit: {CAP_MBIT}\n"))
            node.start(details=False)
        for node in found:
            for other in found:
                if other is not node:
                    ask(node, "peers_add", uri=other.uri)
        yield found
    finally:
        for node in found:
            node.stop()


def ask(node: DemoNode, action: str, **arguments: Any) -> dict[str, Any]:
    with node.owner() as client:
        return list(client.call(action, arguments))[-1]


def transfers(node: DemoNode, direction: str) -> list[dict[str, Any]]:
    return [one for one in ask(node, "transfers")["transfers"] if one["direction"] == direction]


def total(nodes: list[DemoNode], direction: str) -> int:
    """Bytes of chunks, those of transfers that failed too."""
    return sum(one["bytes"] for node in nodes for one in transfers(node, direction))


def active(node: DemoNode) -> str | None:
    return next((model["active"] for model in ask(node, "status")["models"]), None)


def test_the_source_sends_less_than_two_copies(nodes: list[DemoNode], tmp_path: Path) -> None:
    source, *peers = nodes
    assert f"bandwidth_mbit: {CAP_MBIT}" in source.config.read_text()
    noise = np.random.default_rng(1).normal(size=(1024, 1024)).astype(np.float32)
    save_file({"layer.weight": noise}, tmp_path / "m.safetensors")
    version = ask(source, "model_import", src=str(tmp_path / "m.safetensors"), name="m")["version"]
    wait_until("all peers having it", lambda: all(active(peer) == version for peer in peers), PATIENCE_S)
    size = max(one["bytes"] + one["resumed_bytes"] for one in transfers(peers[0], "received"))
    assert size >= 64 * 16 * 1024
    wait_until("all sessions telling what came", lambda: total(peers, "received") >= PEERS * size, PATIENCE_S)
    wait_until("all transfers ending", lambda: total(nodes, "sent") >= total(peers, "received"), PATIENCE_S)
    sent = total([source], "sent")
    assert sent <= 2 * size, f"the source sent {sent / size:.2f} copies to {PEERS} peers"
    print(f"{PEERS} peers: the source sent {sent / size:.2f} copies, the peers {total(peers, 'sent') / size:.2f}")
