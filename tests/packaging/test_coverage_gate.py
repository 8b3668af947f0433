"""The coverage gate: rooms are told apart, and a module that no test imports does not slip through."""

from __future__ import annotations

import json
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
