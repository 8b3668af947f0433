"""``model quantize`` with calibration: methods, targets, what is printed, and derived models that follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_encoder import write_encoder

from aios_node.engine.quant.recipe import preset
from aios_node.node.cli.app import run
from aios_node.node.config.load import load_config
from aios_node.node.core import NodeCore
from aios_node.node.derive import follow, outdated
from aios_node.node.jobs import QuantizeJob, quantize

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A node with a tiny encoder, and a file of calibration texts beside it."""
    root = tmp_path_factory.mktemp("quantize")
    source = write_encoder(root / "tiny", minilm_folder, 0)
    lines = [
        json.dumps({"text": f"the {n}th line is about {n % 9} small things and {n % 5} large ones"}) for n in range(60)
    ]
    (root / "texts.jsonl").write_text("\n".join(lines))
    assert run(["init", str(root / "node"), "--name", "alpha"]) == 0
    assert run(["model", "import", str(source), "--name", "tiny", "-c", str(root / "node" / "node.yaml")]) == 0
    return root


@pytest.fixture
def ask(node: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def call(*arguments: str, fails: int = 0) -> Any:
        capsys.readouterr()
        code = run([*arguments, "--json", "-c", str(node / "node" / "node.yaml")])
        said = capsys.readouterr()
        assert code == fails, said.err
        return said.err if fails else json.loads(said.out)

    return call


def test_gptq_with_texts_of_ones_own(ask: Ask, node: Path) -> None:
    texts = str(node / "texts.jsonl")
    plain = ask("model", "quantize", "tiny", "--name", "tiny.ptq", "--quant", "int2")
    made = ask(
        "model", "quantize", "tiny", "--name", "tiny.gptq", "--quant", "int2", "--method", "gptq", "--calib", texts
    )
    assert made["recipe"]["calibration"]["texts"] == 60
    assert made["bytes"] == plain["bytes"] < made["source_bytes"] / 5
    assert made["warnings"] == []
    assert plain["quality"]["mean"] < made["quality"]["mean"] <= 1
    assert not list((node / "node").rglob("quantizing/*")), "checkpoints of finished work stay behind"
    again = ask(
        "model", "quantize", "tiny", "--name", "tiny.again", "--quant", "int2", "--method", "gptq", "--calib", texts
    )
    hashes = [ask("model", "show", one)["tensors"] for one in ("tiny.gptq", "tiny.again")]
    assert [each["sha256"] for each in hashes[0]] == [each["sha256"] for each in hashes[1]]
    assert again["quality"] == made["quality"]


def test_a_size_is_kept(ask: Ask, node: Path) -> None:
    texts = str(node / "texts.jsonl")
    made = ask("model", "quantize", "tiny", "--name", "tiny.half", "--target-mb", "0.25", "--calib", texts)
    assert made["bytes"] <= 250_000
    bits = ask("model", "quantize", "tiny", "--name", "tiny.bits", "--target-bpw", "4.2", "--calib", texts)
    assert bits["recipe"]["target_bytes"] >= bits["bytes"]
    told = ask("model", "quantize", "tiny", "--name", "x", "--target-mb", "0.01", "--calib", texts, fails=2)
    assert "fewest bits" in told


def test_what_was_gained_is_said(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(node / "node" / "node.yaml")
    assert run(["model", "quantize", "tiny", "--name", "tiny.int4", "--quant", "int4", "-c", config]) == 0
    said = capsys.readouterr().out
    assert "x smaller" in said
    assert "% saved" not in said.splitlines()[0]
    assert "mean 0." in said
    assert "1st percentile" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quant", "int2", "--method", "gptq", "--calib", "/no/such/file"], "do not exist"),
        (["--target-mb", "1", "--target-bpw", "4"], "same thing"),
        (["--target-mb", "-1"], "--target-mb is -1"),
        (["--target-bpw", "99"], "--target-bpw is 99"),
        (["--target-mb", "1", "--group", "32"], "leave out --group"),
        (["--quant", "int2", "--group", "4"], "group_size"),
    ],
)
def test_wrong_wishes_fail_before_work_starts(ask: Ask, options: list[str], told: str) -> None:
    assert told in ask("model", "quantize", "tiny", "--name", "x", *options, fails=1 if "exist" in told else 2)


def test_options_beside_a_recipe_file_are_refused(ask: Ask, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("quant: int2\nsymmetric: false\nmethod: gptq\noptions: {texts: 10, speed: 3}\n")
    assert "speed" in ask("model", "quantize", "tiny", "--name", "x", "--recipe", str(recipe), fails=2)
    told = ask("model", "quantize", "tiny", "--name", "x", "--recipe", str(recipe), "--method", "gptq", fails=2)
    assert "says everything" in told


def test_a_network_that_cannot_run_is_told(ask: Ask, tmp_path: Path) -> None:
    save_file({"w": np.ones((32, 32), np.float32)}, tmp_path / "w.safetensors")
    source = str(tmp_path / "w.safetensors")
    assert "cannot be run" in ask(
        "model", "quantize", source, "--name", "x", "--quant", "int2", "--method", "gptq", fails=1
    )
    made = ask("model", "quantize", source, "--name", "w.int2", "--quant", "int2")
    assert made["quality"] is None


@pytest.mark.parametrize("measured", [True, False])
def test_vectors_are_compared_where_somebody_wants_to_know(node: Path, tmp_path: Path, measured: bool) -> None:
    """A derived model that is made again by itself does not pay for it."""
    recipe, steps = preset("int8").to_json(), list[str]()
    config = load_config(node / "node" / "node.yaml")
    with NodeCore.open(config) as core, core.store.pin(core.version("tiny", None)) as source:
        job = QuantizeJob(source, tmp_path / "made", recipe, None, (), None, tmp_path, measured=measured)
        made = quantize(job, lambda _part, what: steps.append(what))
    assert (made["quality"] is not None) == ("measuring" in steps) == measured


def test_a_derived_model_is_made_again_by_its_own_method(
    ask: Ask, node: Path, minilm_folder: Path, tmp_path: Path
) -> None:
    texts = str(node / "texts.jsonl")
    first = ask("model", "import", str(write_encoder(tmp_path / "v1", minilm_folder, 0)), "--name", "base")["version"]
    recipe = tmp_path / "tuned.yaml"
    recipe.write_text(
        "quant: int2\nsymmetric: false\ngroup_size: 16\nclip: mse\nscales: double4\nmethod: tuned\n"
        "options: {steps: 20, block_steps: 2, batch_tokens: 256}\n"
    )
    made = ask("model", "quantize", "base", "--name", "base.int2", "--recipe", str(recipe), "--calib", texts)
    newer = write_encoder(tmp_path / "v2", minilm_folder, 5, near=0.02)
    assert ask("model", "import", str(newer), "--name", "base")["version"] != first
    with NodeCore.open(load_config(node / "node" / "node.yaml")) as core:
        assert outdated(core, "base") == ["base.int2"]
        version = follow(core, "base", "base.int2")
        again = core.store.manifest(version).recipe
    assert again is not None
    assert again["calibration"] == made["recipe"]["calibration"]  # found again by its hash
    assert ask("model", "diff", "base.int2", made["version"])["ratio"] > 1
