"""Bad input, through a plain pyarrow client and through files: one clear error, nothing changed, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from safetensors.numpy import save_file

from aios_node.node.cli.app import run
from aios_node.node.demo.processes import DemoNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNode]:
    """A plain node that accepts requests of at most 1 MB."""
    node = DemoNode("alpha", "edge", tmp_path_factory.mktemp("bad") / "alpha")
    node.init("off")
    node.config.write_text(node.config.read_text().replace("request_mb: 64", "request_mb: 1"))
    node.start()
    yield node
    node.stop()


@pytest.fixture
def client(node: DemoNode) -> Iterator[Any]:
    with fl.connect(node.uri) as client:
        yield client


def told(error: fl.FlightError) -> dict[str, Any]:
    """The error as JSON; nothing of Python's inner life may be in it."""
    assert "Traceback" not in str(error)
    assert ".py" not in str(error)
    extra = json.loads(error.extra_info)
    assert {"code", "message", "retryable", "id"} <= set(extra)
    return extra


def put(client: Any, rows: pa.Table) -> None:
    writer, reader = client.do_put(fl.FlightDescriptor.for_path("memory", "notes"), rows.schema)
    with writer:
        writer.write_table(rows, max_chunksize=1000)
        writer.done_writing()
        reader.read()


def fetch(client: Any, descriptor: fl.FlightDescriptor) -> pa.Table:
    info = client.get_flight_info(descriptor)
    return client.do_get(info.endpoints[0].ticket).read_all()


def rows_of(client: Any, table: str) -> int:
    try:
        return fetch(client, fl.FlightDescriptor.for_path("memory", table)).num_rows
    except fl.FlightError:
        return 0


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (pa.table({"text": [1, 2]}), "bad_request"),
        (pa.table({"embedding": [[1.0, float("nan")]]}), "bad_request"),
        (pa.table({"embedding": [[0.0, 0.0]]}), "bad_request"),
        (pa.table({"embedding": [[1.0, 2.0], [1.0]]}), "bad_request"),
        (pa.table({"source": ["x"]}), "bad_request"),
        (pa.table({"text": ["x"], "modality": ["smell"]}), "bad_request"),
        (pa.table({"text": ["x"], "colour": ["red"]}), "bad_request"),
        (pa.table({"text": ["x" * 100_000] * 30}), "too_large"),
    ],
)
def test_rows_that_do_not_fit(client: Any, rows: pa.Table, code: str) -> None:
    before = rows_of(client, "notes")
    with pytest.raises(fl.FlightError) as caught:
        put(client, rows)
    assert told(caught.value)["code"] == code
    assert rows_of(client, "notes") == before


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"{}", "bad_request"),
        (b"nonsense", "bad_request"),
        (json.dumps({"v": 1, "op": "fly"}).encode(), "bad_request"),
        (json.dumps({"v": 9, "op": "search"}).encode(), "bad_request"),
        (json.dumps({"v": 1, "op": "search", "table": "../x", "vector": [1.0]}).encode(), "bad_request"),
        (json.dumps({"v": 1, "op": "search", "table": "nothing", "vector": [1.0]}).encode(), "unknown_table"),
        (json.dumps({"v": 1, "op": "weights", "model": "nothing"}).encode(), "unknown_model"),
        (json.dumps({"v": 1, "op": "search", "table": "t", "text": "x", "wrong": 1}).encode(), "bad_request"),
    ],
)
def test_commands_that_make_no_sense(client: Any, command: bytes, code: str) -> None:
    with pytest.raises(fl.FlightError) as caught:
        fetch(client, fl.FlightDescriptor.for_command(command))
    assert told(caught.value)["code"] == code


@pytest.mark.parametrize(
    ("action", "body", "code"),
    [
        ("fly", b"", "bad_request"),
        ("versions", b"{}", "bad_request"),
        ("versions", b'{"model": "nothing"}', "unknown_model"),
        ("versions", b'{"model": "m", "colour": 1}', "bad_request"),
        ("memory_get", b"[", "bad_request"),
        ("drain", b"", "unauthorized"),
        ("model_import", b'{"src": "/etc", "name": "x"}', "unauthorized"),
    ],
)
def test_actions_that_are_refused(client: Any, action: str, body: bytes, code: str) -> None:
    with pytest.raises(fl.FlightError) as caught:
        list(client.do_action(fl.Action(action, body)))
    assert told(caught.value)["code"] == code


def test_a_forged_ticket(client: Any) -> None:
    with pytest.raises(fl.FlightError) as caught:
        client.do_get(fl.Ticket(b"forged")).read_all()
    assert told(caught.value)["code"] == "bad_request"


def write_weights(path: Path, **tensors: Any) -> Path:
    save_file({name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}, path)
    return path


def not_a_number(folder: Path) -> Path:
    return write_weights(folder / "m.safetensors", good=[1.0], bad=[1.0, float("nan")])


def cut_off(folder: Path) -> Path:
    path = write_weights(folder / "m.safetensors", good=np.ones((64, 64)))
    path.write_bytes(path.read_bytes()[:-100])
    return path


def lying_shape(folder: Path) -> Path:
    path = folder / "m.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return path


def not_parquet(folder: Path) -> Path:
    path = folder / "m.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    return path


def pickle_bomb(folder: Path) -> Path:
    import pickle

    path = folder / "m.bin"
    path.write_bytes(pickle.dumps(print))
    return path


@pytest.mark.parametrize("make", [not_a_number, cut_off, lying_shape, not_parquet, pickle_bomb])
def test_files_that_lie(node: DemoNode, tmp_path: Path, capsys: Any, make: Callable[[Path], Path]) -> None:
    before = node.call("model", "list")
    assert run(["model", "import", str(make(tmp_path)), "--name", "bad", "-c", str(node.config)]) == 1
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "internal error" not in said
    assert node.call("model", "list") == before


def test_a_manifest_that_reaches_out(node: DemoNode, tmp_path: Path, capsys: Any) -> None:
    source = write_weights(tmp_path / "m.safetensors", a=np.ones((8, 8)))
    node.call("model", "import", str(source), "--name", "fine")
    node.call("model", "export", "fine", str(tmp_path / "out"), "--format", "parquet")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    manifest["files"]["../../evil"] = {"sha256": "0" * 64, "bytes": 1}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    (tmp_path / "out" / "manifest.json").write_text(text)
    assert run(["model", "import", str(tmp_path / "out"), "--name", "bad", "-c", str(node.config)]) == 1
    assert "evil" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
