"""A node as a process: starting, refusing, stopping, being killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from aios_node.engine.errors import Unauthenticated, Unauthorized
from aios_node.flight.client import Client
from aios_node.node.demo.processes import DemoNode


def cli(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    where = ["-c", str(config)] if config else []
    command = [sys.executable, "-m", "aios_node.node", *arguments, *where]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command told, which must be one line and no traceback."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_starts_with_nothing_and_stops_on_sigterm(make_node) -> None:
    node: DemoNode = make_node()
    assert node.uri.startswith("grpc://127.0.0.1:")
    status = node.call("status")
    assert (status["node"], status["address"], status["models"], status["tables"]) == ("alpha", node.uri, [], [])
    refused = cli("run", config=node.config)
    assert refused.returncode == 1
    assert "is in use by process" in one_line(refused)
    assert node.stop() == 0
    assert not (node.folder / "data" / "run.json").exists()
    assert node.call("status")["address"] is None


def test_it_starts_with_peers_that_are_down(make_node) -> None:
    node: DemoNode = make_node(start=False)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        free = busy.getsockname()[1]
    node.config.write_text(node.config.read_text().replace("peers: []", f"peers: [{{uri: 'grpc://127.0.0.1:{free}'}}]"))
    node.start()
    result = cli("sync", "--json", config=node.config)
    assert result.returncode == 0
    assert "cannot be reached" in json.loads(result.stdout)["failed"][0]["error"]
    assert cli("sync", config=node.config).returncode == 1
    assert node.stop() == 0


def test_commands_do_the_same_with_and_without_a_running_node(make_node, weights_file) -> None:
    node: DemoNode = make_node(start=False)
    source = str(weights_file("m.safetensors", 1, 0.0))
    direct = node.call("model", "import", source, "--name", "m")
    node.start()
    running = node.call("model", "import", source, "--name", "again")
    assert {**running, "model": "m"} == direct
    shown = [node.call("model", "show", "m")]
    node.stop()
    shown.append(node.call("model", "show", "m"))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_acknowledged_survives(make_node, sign: signal.Signals) -> None:
    node: DemoNode = make_node()
    with Client(node.uri) as client:
        rows = pa.table({"id": ["a", "b"], "text": ["one", "two"]})
        assert client.put("notes", rows)["rows"] == 2
    os.kill(node.pid, sign)
    node.wait()
    node.start()
    with Client(node.uri) as client:
        found = next(iter(client.call("memory_get", {"table": "notes", "ids": ["b", "a"]})))["rows"]
    assert [row["text"] for row in found] == ["two", "one"]


def test_a_stalled_reader_does_not_hold_up_the_end(make_node, tmp_path: Path) -> None:
    node: DemoNode = make_node(start=False)
    node.config.write_text(node.config.read_text().replace("  keys_dir: keys\n", "  keys_dir: keys\n  grace_s: 1\n"))
    node.start()
    client = fl.connect(node.uri)
    rows = pa.table({"id": [str(i) for i in range(2000)], "text": ["x" * 20_000] * 2000})
    with Client(node.uri) as ours:
        ours.put("big", rows)
    info = client.get_flight_info(fl.FlightDescriptor.for_path("memory", "big"))
    reader = client.do_get(info.endpoints[0].ticket)
    reader.read_chunk()  # and then nothing more is read
    assert node.stop() == 0
    client.close()


def test_a_port_in_use_and_wrong_configurations(make_node) -> None:
    node: DemoNode = make_node(start=False)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = cli("run", "--port", str(busy.getsockname()[1]), config=node.config)
    assert taken.returncode == 1
    assert "is in use" in one_line(taken)
    text = node.config.read_text()
    for wrong, told in (
        (text.replace("  port: 0", "  prot: 0"), "did you mean 'port'?"),
        (text.replace('"127.0.0.1"', '"0.0.0.0"'), "--insecure"),
    ):
        node.config.write_text(wrong)
        done = cli("run", config=node.config)
        assert done.returncode == 2
        assert told in one_line(done)
    assert cli("run", config=node.folder / "nothing.yaml").returncode == 2


def test_wrong_use_exits_with_2() -> None:
    assert cli("fly").returncode == 2
    assert cli("model", "import").returncode == 2


def test_a_read_only_folder(make_node) -> None:
    """Root may write anywhere, so a file in the folder's place stands for a folder that refuses."""
    node: DemoNode = make_node(start=False)
    (node.folder / "data").rmdir()
    (node.folder / "data").write_text("not a folder")
    done = cli("run", config=node.config)
    assert done.returncode == 1
    assert str(node.folder / "data") in one_line(done)


def test_under_tls_clients_need_tokens_with_rights(make_node) -> None:
    node: DemoNode = make_node(tls="on")
    token = node.call("token", "create", "bob", "--allow", "memory/notes:write")["token"]
    rows = pa.table({"text": ["one"]})
    with node.client(token) as client:
        assert client.put("notes", rows)["rows"] == 1
        with pytest.raises(Unauthorized, match="lacks read on memory/notes"):
            client.search("notes", vector=[1.0, 0.0])
        with pytest.raises(Unauthorized):
            client.put("other", rows)
        with pytest.raises(Unauthorized):
            next(iter(client.call("drain")))
    with Client(node.uri, ca=node.certificate) as client, pytest.raises(Unauthenticated):
        client.status()
    with node.client("aios_wrong") as client, pytest.raises(Unauthenticated):
        client.status()
    node.call("token", "revoke", "bob")
    with node.client(token) as client, pytest.raises(Unauthenticated):
        client.status()


@pytest.mark.parametrize("arguments", [["status"], ["model", "list"], ["memory", "stats"], ["token", "list"]])
def test_every_listing_has_json(make_node, arguments: Sequence[str]) -> None:
    node: DemoNode = make_node(start=False)
    assert isinstance(node.call(*arguments), dict)
