"""The coverage gate: rooms are told apart, and a module that no test imports does not slip through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GATE = ROOT / "scripts" / "check_coverage.py"


def room_of(name: str, rooms: Iterable[str]) -> str:
    return max((room for room in rooms if name.startswith(f"{room}/")), key=len)


def report(percent: dict[str, int], *, without: str = "") -> dict[str, Any]:
    """A coverage report over all modules of the tree; each room has the given percentage."""
    tops = {room.split("/")[0] for room in percent}
    names = [str(path.relative_to(ROOT)) for top in tops for path in (ROOT / top).rglob("*.py")]
    return {"files": {name: {"summary": summary(percent[room_of(name, percent)])} for name in names if name != without}}


def summary(covered: int) -> dict[str, int]:
    return {"num_statements": 80, "num_branches": 20, "covered_lines": covered - 10, "covered_branches": 10}


def gate(tmp_path: Path, content: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "coverage.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return subprocess.run([sys.executable, str(GATE), str(file)], capture_output=True, text=True, check=False)


ENOUGH = {"engine/quant": 91, "engine/weights": 91, "delta": 91, "memory": 91, "engine": 86, "flight": 86, "node": 86}


def test_enough_everywhere_passes(tmp_path: Path) -> None:
    done = gate(tmp_path, report(ENOUGH))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" ok") == len(ENOUGH)


@pytest.mark.parametrize("room", ["delta", "memory", "node"])
def test_one_room_at_its_threshold_fails(tmp_path: Path, room: str) -> None:
    done = gate(tmp_path, report(ENOUGH | {room: ENOUGH[room] - 1}))
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if "TOO LOW" in line] == [room]


def test_a_module_that_is_not_in_the_report_fails(tmp_path: Path) -> None:
    done = gate(tmp_path, report(ENOUGH, without="engine/errors.py"))
    assert done.returncode == 1
    assert "not measured at all: engine/errors.py" in done.stdout


def test_wrong_use_is_told() -> None:
    done = subprocess.run([sys.executable, str(GATE)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: check_coverage.py FILE" in done.stderr


SERVER = """
import pyarrow as pa
import pyarrow.flight as fl

class Server(fl.FlightServerBase):
    def do_action(self, context, action):
        yield b"first"
        yield b"second"

    def do_get(self, context, ticket):
        schema = pa.schema([("n", pa.int64())])
        return fl.GeneratorStream(schema, self.numbers(schema))

    def numbers(self, schema):
        for n in range(2):
            yield pa.record_batch([[n]], schema=schema)

with Server("grpc://127.0.0.1:0") as server, fl.connect(("127.0.0.1", server.port)) as client:
    assert len(list(client.do_action("any"))) == 2
    assert client.do_get(fl.Ticket(b"any")).read_all().num_rows == 2
"""


def test_what_flight_calls_from_its_own_threads_is_measured(tmp_path: Path) -> None:
    """Without the plugin, the bodies of all three methods count as never run."""
    script = tmp_path / "server.py"
    script.write_text(SERVER, encoding="utf-8")
    settings = tmp_path / "settings.toml"
    settings.write_text('[tool.coverage.run]\nbranch = true\nplugins = ["trace_flight_threads"]\n', encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment = kept | {"PYTHONPATH": str(ROOT / "scripts"), "COVERAGE_FILE": str(tmp_path / ".coverage")}
    for verb, *arguments in (["run", "server.py"], ["json", "--include=server.py", "-o", "found.json"]):
        command = [sys.executable, "-m", "coverage", verb, f"--rcfile={settings}", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["files"].values()
    assert found["missing_lines"] == []
