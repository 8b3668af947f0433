"""A secure sum of three real nodes over mutual TLS: trained, masked, added up, published, and synced back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_encoder import write_encoder

from aios_node.node.demo.processes import DemoNode, wait_until

PATIENCE_S = 60.0
WILLING = "\nprivacy: {sums: [tiny], sums_least: 3, clip_norm: 0.5}\n"


def active(node: DemoNode) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == "tiny"), None)


@pytest.mark.slow
def test_three_nodes_train_together(make_node, minilm_folder: Path, tmp_path: Path) -> None:
    nodes = [make_node(name, tls="on", config=WILLING) for name in ("alpha", "beta", "gamma")]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.call("peers", "add", other.peer_uri, "--fingerprint", other.node_id)
    source = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    first = nodes[0].call("model", "import", str(source), "--name", "tiny")["version"]
    for node in nodes[1:]:
        wait_until("the model arriving", lambda node=node: active(node) == first, PATIENCE_S)  # type: ignore[misc]
    for node in nodes:
        lines = [
            json.dumps({"source": f"{node.name} and item {n}", "text": f"item {n} of {node.name} is in room {n % 7}"})
            for n in range(70)
        ]
        (tmp_path / f"{node.name}.jsonl").write_text("\n".join(lines))
        node.call("memory", "import", str(tmp_path / f"{node.name}.jsonl"), "--table", "notes")
    made = nodes[0].call("train", "together", "tiny", "--steps", "1", "--noise-multiplier", "0.5")
    assert made["contributors"] == sorted(node.node_id for node in nodes)
    assert made["from"] == first
    assert made["privacy"]["epsilon"] > 0
    for node in nodes:
        wait_until("the sum arriving", lambda node=node: active(node) == made["version"], PATIENCE_S)  # type: ignore[misc]
