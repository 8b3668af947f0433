"""The examples run, as scripts of their own, against a real server."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flight_fakes import TENSORS, FakePorts, Serve

from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """What the example prints; it must end well and stay quiet on stderr."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def uri(serve: Serve) -> str:
    return serve.listener().uri


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_use_nothing_of_this_project(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.startswith(("aios_node", "flight", "engine", "memory"))]
    assert path.name in (ast.get_docstring(tree) or "")


def test_list_flights(uri: str) -> None:
    assert run("list_flights.py", uri).count("\n") == 2
    assert run("list_flights.py", uri, "memory/").startswith("memory/notes  version 1  3 records")


def test_fetch_rows(uri: str, fakes: FakePorts, tmp_path: Path) -> None:
    printed = run("fetch_rows.py", uri, "tiny")
    assert sorted(line.split()[0] for line in printed.splitlines()) == sorted(TENSORS)
    assert "float32[64, 48]" in printed
    version = fakes.weights.resolve("tiny", None).version
    assert run("fetch_rows.py", uri, "tiny", version[:12]) == printed


@pytest.mark.parametrize("quant", ["int8", "int4", "int2"])
def test_the_dequantisation_in_the_example_is_right(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fetch_rows

    from aios_node.engine.weights.layout import row_of

    weights = {"w": np.random.default_rng(0).normal(size=(6, 70)).astype(np.float32)}
    tensor = ArrowQuantizer(preset(quant)).quantize(weights)["w"]
    (row,) = row_of("w", tensor).to_pylist()
    np.testing.assert_array_equal(fetch_rows.tensor(row), tensor.dequantize())


def test_fetch_files(uri: str, fakes: FakePorts, tmp_path: Path) -> None:
    printed = run("fetch_files.py", uri, "tiny", str(tmp_path))
    shards = fakes.weights.resolve("tiny", None).shards
    assert printed.count("hash equal") == len(shards)
    for shard in shards:
        assert (tmp_path / shard.file).read_bytes() == shard.path.read_bytes()


def test_put_then_search(uri: str, fakes: FakePorts) -> None:
    assert run("put_memories.py", uri, "fresh", "first", "second") == "{'rows': 2, 'version': 1}\n"
    assert fakes.memory.rows["fresh"].column("text").to_pylist() == ["first", "second"]
    fakes.memory.incomplete = ("edge",)
    printed = run("search.py", uri, "notes", "red apples", "network")
    assert printed.splitlines()[-1] == "some nodes did not answer: edge"
    assert printed.count("here") == 3


def test_actions(uri: str) -> None:
    assert "versions  {model}" in run("actions.py", uri)
    assert run("actions.py", uri, "health") == '{\n  "status": "serving"\n}\n'
    assert '"tiny"' in run("actions.py", uri, "versions", '{"model": "tiny"}')


def test_encode(uri: str) -> None:
    printed = run("encode.py", uri, "--model=tiny", *[f"text {n}" for n in range(70)])
    assert printed.startswith("64 vectors by tiny, version 000000000000\n6 vectors by tiny")
    assert "shape (70, 4)" in printed
    assert "shape (2, 4)" in run("encode.py", uri, "a", "b")


def test_errors(uri: str) -> None:
    printed = run("errors.py", uri)
    for code in ("unknown_model", "unknown_table", "bad_request"):
        assert f"code {code}" in printed
    assert "there are: tiny" in printed
