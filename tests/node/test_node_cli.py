"""The command line on a node's folder, with the real MiniLM: import, quantise, look, search, train, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from aios_node.node.cli.app import run

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A node that has MiniLM and an INT8 and an INT4 of it."""
    folder = tmp_path_factory.mktemp("cli") / "node"
    config = str(folder / "node.yaml")
    assert run(["init", str(folder), "--name", "alpha"]) == 0
    assert run(["model", "import", str(minilm_folder), "--name", "minilm", "-c", config]) == 0
    for quant in ("int8", "int4"):
        assert run(["model", "quantize", "minilm", "--name", f"minilm.{quant}", "--quant", quant, "-c", config]) == 0
    assert run(["memory", "add", "a first memory", "--table", "docs", "-c", config]) == 0
    return folder


@pytest.fixture
def ask(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json and give what it answered."""

    def call(*arguments: str, fails: int = 0) -> Any:
        capsys.readouterr()
        code = run([*arguments, "--json", "-c", str(folder / "node.yaml")])
        said = capsys.readouterr()
        assert code == fails, said.err
        if fails:
            assert len(said.err.strip().splitlines()) == 1, said.err
            return said.err
        return json.loads(said.out)

    return call


def test_models_are_listed_with_their_origin(ask: Ask) -> None:
    models = {model["name"]: model for model in ask("model", "list")["models"]}
    assert models["minilm"]["quant"] == "none"
    assert models["minilm.int4"]["quant"] in {"int4", "mixed"}
    assert models["minilm.int4"]["derived_from"]["version"] == models["minilm"]["active"]
    assert models["minilm.int8"]["bytes"] < 0.27 * models["minilm"]["bytes"]


@pytest.mark.parametrize(("quant", "least"), [("int8", 0.999), ("int4", 0.96)])
def test_quantised_models_keep_their_meaning(ask: Ask, quant: str, least: float) -> None:
    result = ask("model", "validate", f"minilm.{quant}")
    assert result["hash_ok"]
    assert result["embedding"]["mean"] > least
    assert result["reference"] == "minilm"


def test_validation_goes_layer_by_layer(ask: Ask) -> None:
    result = ask("model", "validate", "minilm.int4")
    layers = result["layers"]
    assert [layer["name"] for layer in layers] == ["embeddings", *(f"encoder.layer.{index}" for index in range(6))]
    assert all(0 < layer["relative_error"] < 0.5 for layer in layers)
    embedding = result["embedding"]
    assert embedding["source"] == "built in"
    assert sum(embedding["histogram"]["counts"]) == embedding["texts"]
    assert embedding["farthest"][0]["cosine"] == pytest.approx(embedding["min"])
    assert 0.8 < embedding["spearman"] < 1
    assert 0.5 < embedding["overlap"] < 1
    assert result["bytes"] < 0.3 * result["reference_bytes"]
    assert result["weights"]["bits"] < 8
    assert (result["passed"], result["failures"], result["precisions"]) == (True, [], [])


def test_validation_on_texts_of_a_file(ask: Ask, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the text with number {number}"}) + "\n" for number in range(5)))
    embedding = ask("model", "validate", "minilm.int8", "--texts", str(texts))["embedding"]
    assert (embedding["texts"], embedding["source"]) == (5, str(texts))
    assert {each["text"][:20] for each in embedding["farthest"]} == {"the text with number"}
    assert "nowhere.txt" in ask("model", "validate", "minilm.int8", "--texts", str(tmp_path / "nowhere.txt"), fails=1)


def test_broken_limits_fail_with_a_sentence_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model", "validate", "minilm.int4", "-c", str(folder / "node.yaml"), "--json"]
    assert run([*command, "--min-cosine", "0.5", "--max-relative-error", "2"]) == 0
    capsys.readouterr()
    assert run([*command, "--min-cosine", "0.9999", "--max-relative-error", "0.1"]) == 1
    said = capsys.readouterr()
    failures = json.loads(said.out)["failures"]
    assert len(said.err.splitlines()) == len(failures) > 2
    assert "the mean cosine of the embeddings is 0.9" in said.err.splitlines()[0]
    assert "the relative error after encoder.layer.5 is 0." in said.err.splitlines()[-1]
    assert said.err.splitlines()[-1].endswith(", above 0.1")


def test_a_report_is_a_page_with_all_precisions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = folder / "report.html"
    assert run(["model", "validate", "minilm.int4", "-c", str(folder / "node.yaml"), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {report}" in said
    assert "encoder.layer.5 " in said
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert all(name in page for name in ("minilm.int8", "minilm.int4", "encoder.layer.5.output.dense.weight"))


@pytest.mark.parametrize("name", ["report.png", "no/such/folder/report.html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(ask: Ask, tmp_path: Path, name: str) -> None:
    assert str(tmp_path / name) in ask("model", "validate", "minilm", "--report", str(tmp_path / name), fails=2)


def test_a_model_without_origin_needs_a_reference_for_limits(ask: Ask) -> None:
    assert ask("model", "validate", "minilm")["hash_ok"]
    assert "--reference" in ask("model", "validate", "minilm", "--min-cosine", "0.9", fails=1)
    assert ask("model", "validate", "minilm", "--reference", "minilm")["embedding"]["min"] == pytest.approx(1)


def test_encode_gives_unit_vectors(ask: Ask) -> None:
    result = ask("encode", "hello world", "second")
    vectors = np.array(result["embeddings"])
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert result["model"] == "minilm"


def test_export_is_bit_exact(ask: Ask, tmp_path: Path, minilm_folder: Path) -> None:
    result = ask("model", "export", "minilm", str(tmp_path / "out"))
    assert "model.safetensors" in result["files"]
    original, exported = load_file(minilm_folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    kept = set(original) & set(exported)
    assert len(kept) >= 100
    assert all(original[name].tobytes() == exported[name].tobytes() for name in kept)
    assert "not an empty folder" in ask("model", "export", "minilm", str(tmp_path / "out"), fails=1)


def test_an_exported_version_comes_back_as_the_same_version(ask: Ask, tmp_path: Path) -> None:
    ask("model", "export", "minilm.int4", str(tmp_path / "out"), "--format", "parquet")
    again = ask("model", "import", str(tmp_path / "out"), "--name", "copy")
    shown, copy = ask("model", "show", "minilm.int4"), ask("model", "show", "copy")
    assert again["tensors"] == len(shown["tensors"])
    assert {t["name"]: t["sha256"] for t in shown["tensors"]} == {t["name"]: t["sha256"] for t in copy["tensors"]}


def test_versions_diff_activate_rollback(ask: Ask, minilm_folder: Path) -> None:
    first = ask("model", "import", str(minilm_folder), "--name", "half")["version"]
    second = ask("model", "import", str(minilm_folder), "--name", "half", "--quant", "fp16")["version"]
    shown = ask("model", "show", "half")
    assert shown["parents"] == [first]
    difference = ask("model", "diff", "half", first[:8], second[:8])
    assert difference["delta_bytes"] < difference["full_bytes"]
    assert difference["tensors"]
    assert ask("model", "rollback", "half")["active"] == first
    assert ask("model", "activate", "half", second[:8])["active"] == second
    assert "did you mean" in ask("model", "show", "haf", fails=1)
    assert "no version" in ask("model", "activate", "half", "ffffffff", fails=1)


def test_memories_are_added_found_exported_and_imported(ask: Ask, tmp_path: Path) -> None:
    for text in ("a tree of folders is copied", "threads wait for a barrier", "dates are parsed from text"):
        ask("memory", "add", text, "--table", "things", "--tag", "x", "--source", "test")
    hits = ask("memory", "search", "copy a directory", "--table", "things", "-k", "2")["hits"]
    assert hits[0]["text"] == "a tree of folders is copied"
    assert hits[0]["node"] == "alpha"
    found = ask("memory", "search", "copy", "--table", "things", "--filter", "text LIKE 'dates%'")["hits"]
    assert [hit["text"] for hit in found] == ["dates are parsed from text"]
    assert ask("memory", "export", str(tmp_path / "things.parquet"), "--table", "things")["rows"] == 3
    assert ask("memory", "import", str(tmp_path / "things.parquet"), "--table", "others")["rows"] == 3
    tables = {table["table"]: table for table in ask("memory", "stats")["tables"]}
    assert tables["others"]["rows"] == tables["things"]["rows"] == 3
    assert tables["others"]["space"] == tables["things"]["space"]


def test_training_judges_before_it_publishes(ask: Ask, tmp_path: Path) -> None:
    lines = [
        json.dumps({"source": f"module.function_{i}", "text": f"Function number {i} does task {i} of many.\n" * 3})
        for i in range(80)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    ask("memory", "import", str(tmp_path / "docs.jsonl"), "--table", "docs")
    before = ask("model", "show", "minilm")["version"]
    report = ask("train", "encoder", "minilm", "--table", "docs", "--steps", "2", "--dry-run")
    assert not report["published"]
    assert report["questions"] > 0
    assert 0 <= report["before"]["mrr"] <= 1
    assert ask("model", "show", "minilm")["version"] == before


def test_a_recipe_file(ask: Ask, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("quant: int8\nsymmetric: true\naxis: -1\ngroup_size: 64\n")
    result = ask("model", "quantize", "minilm", "--name", "mine", "--recipe", str(recipe))
    assert result["recipe"]["group_size"] == 64
    recipe.write_text("quant: int3\n")
    assert "quant is 'int3'" in ask("model", "quantize", "minilm", "--name", "mine", "--recipe", str(recipe), fails=2)
    assert "--quant int8, int4 or int2" in ask("model", "quantize", "minilm", "--name", "mine", fails=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model", "import", "/nowhere", "--name", "x"], "/nowhere does not exist"),
        (["model", "import", "/", "--name", "../x"], "not a model name"),
        (["model", "quantize", "nothing", "--name", "x", "--quant", "int8"], "neither a stored model nor a path"),
        (["memory", "search", "x", "--table", "nothing"], "no memory table 'nothing'"),
        (["memory", "search", "x", "--table", "docs", "--filter", "text LIKE"], "syntax error at line 1"),
        (["memory", "add"], "nothing to remember"),
        (["encode", "x", "--model", "nothing"], "no encoder 'nothing'"),
        (["token", "create", "bob"], "--allow"),
        (["peers", "remove", "grpc://h:1"], "was not added"),
    ],
)
def test_mistakes_are_told_in_one_line(ask: Ask, arguments: list[str], told: str) -> None:
    assert told in ask(*arguments, fails=1)
