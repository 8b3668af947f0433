"""``model modes``, and models that are opened before the machine is ready for few bits."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import write_encoder

from aios_node.engine.nets import measured
from aios_node.engine.runtime import prepared
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.node.cli.app import run
from aios_node.node.config.load import load_config
from aios_node.node.core import NodeCore

FAST = {"float32": 100.0, "bfloat16": 50.0, "int8": 10.0}
LONG = 60.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A node with a tiny encoder in 4 bits."""
    root = tmp_path_factory.mktemp("modes")
    config = root / "node" / "node.yaml"
    source = write_encoder(root / "tiny", minilm_folder, 0)
    assert run(["init", str(root / "node"), "--name", "alpha"]) == 0
    assert run(["model", "import", str(source), "--name", "tiny.int4", "--quant", "int4", "-c", str(config)]) == 0
    return config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AIOS_NODE_MODE", raising=False)
    monkeypatch.setattr(measured, "_in_memory", {})
    monkeypatch.setattr(measured, "measure_products", lambda: {"1": FAST, "256": FAST})
    return tmp_path / "aios-node"


def modes(config: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert run(["model", "modes", *more, "-c", str(config)]) == 0
    return capsys.readouterr().out


def test_the_table_its_file_and_the_choice_are_told(
    config: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = json.loads(modes(config, capsys, "--json"))
    assert told["microseconds"] == {"1": FAST, "256": FAST}
    assert (told["configured"], told["quantised"], told["variable"]) == ("auto", "int8", "AIOS_NODE_MODE")
    assert told["models"] == [{"name": "tiny.int4", "mode": None}]
    file = Path(told["file"])
    assert file.parent == cache
    table = json.loads(file.read_text())
    table["microseconds"]["256"]["int8"] = 1e6  # as somebody who knows better edits it
    file.write_text(json.dumps(table))
    monkeypatch.setattr(measured, "_in_memory", {})
    assert json.loads(modes(config, capsys, "--json"))["quantised"] == "float32"
    monkeypatch.setenv("AIOS_NODE_MODE", "packed")
    shown = modes(config, capsys)
    assert str(file) in shown.replace("\n", "")
    assert "quantised models run in packed" in shown
    assert "1000000.0" in shown


def test_a_node_answers_while_the_machine_gets_ready(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, opened_again = threading.Event(), threading.Event()
    reopen = ArrowEngine.reopen

    def slow() -> dict[str, float]:
        go.wait(LONG)
        return FAST

    def watched(engine: ArrowEngine, path: Path) -> bool:
        changed = reopen(engine, path)
        opened_again.set()
        return changed

    monkeypatch.setattr(ArrowEngine, "reopen", watched)
    monkeypatch.setattr(prepared, "Preparation", partial(prepared.Preparation, work=slow, patience_s=0.0))
    with NodeCore.open(load_config(config)) as core:
        before, version = core.models.encode("tiny.int4", ["a text"])
        assert core.models.mode("tiny.int4") == "float32"
        go.set()
        assert opened_again.wait(LONG)
        assert core.models.mode("tiny.int4") == "int8"
        after, same = core.models.encode("tiny.int4", ["a text"])
        assert same == version
        assert (before * after).sum() > 0.99
