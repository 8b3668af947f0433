"""The demo from start to end, as a newcomer runs it: three processes, mTLS, a really trained delta."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_story(minilm_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aios_node.node", "demo", "--json", "--keep", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["search"]["nodes"] == ["cloud", "edge", "workstation"]
    assert all(answer["complete"] for answer in told["search"]["answers"])
    assert told["training"]["after"]["mrr"] > told["training"]["before"]["mrr"]
    assert {one["mode"] for one in told["first_sync"]} == {"full"}
    deltas = {(one["node"], one["model"]): one for one in told["delta_sync"]}
    assert set(deltas) == {("cloud", "minilm"), ("edge", "minilm.int4"), ("workstation", "minilm.int8")}
    for one in deltas.values():
        assert one["mode"] == "delta"
        assert one["hash_ok"]
        assert one["bytes"] < 0.2 * one["full_bytes"]
    assert all(swap["failed"] == 0 and swap["requests"] > 0 for swap in told["swap"].values())
