"""kill -9 while versions are pruned, archived, rebuilt and restored: each stays stored or can be rebuilt to the bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios_node.delta.disk import Step

CHAIN = 9
MANY = 16
PRUNING = [Step.ARCHIVE, Step.NAME_ARCHIVE, Step.UNREGISTER, Step.REMOVE]
RESTORING = [Step.VERIFY, Step.RENAME, Step.SYNC_NAME, Step.REGISTER, Step.ACKNOWLEDGE, *PRUNING[2:]]


class Crasher:
    """The other end of ``archive_crash_child.py``, and what it has acknowledged for one store."""

    def __init__(self, process: subprocess.Popen[str], store: Path) -> None:
        self.process, self.store = process, store
        self.versions: list[str] = []

    def ask(self, do: str, **options: Any) -> tuple[list[dict[str, Any]], int]:
        """All lines that a child gave, and how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, "store": str(self.store), **options}) + "\n")
        self.process.stdin.flush()
        lines = []
        for text in self.process.stdout:
            line = json.loads(text)
            assert "error" not in line, line["error"]
            if "exit" in line:
                return lines, line["exit"]
            lines.append(line)
        raise AssertionError("the crash server itself ended")

    def grow(self, last: int, **how: Any) -> int:
        """Go on to version ``last``; returns how the child ended. What it told first is told again, the same."""
        begin = max(0, len(self.versions) - 1)
        parents = self.versions[begin - 1 : begin] if begin else []
        lines, status = self.ask("grow", first=begin, last=last, parents=parents, **how)
        told = [line["version"] for line in lines if "version" in line]
        assert told[: len(self.versions) - begin] == self.versions[begin:][: len(told)]
        self.versions = [*self.versions[:begin], *told] if len(told) else self.versions
        return status

    def examine(self) -> dict[str, Any]:
        (found,), status = self.ask("examine", versions=self.versions)
        assert status == 0
        return found


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("archive_crash_child.py")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        yield p
        assert p.stdin is not None
        p.stdin.close()


@pytest.fixture
def crasher(process: subprocess.Popen[str], tmp_path: Path) -> Crasher:
    return Crasher(process, tmp_path / "s")


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", PRUNING, ids=lambda step: step.name)
def test_killed_while_pruning_nothing_is_out_of_reach(crasher: Crasher, step: Step, nth: int) -> None:
    assert crasher.grow(CHAIN, step=step.name, nth=nth) == -9
    crasher.examine()
    assert crasher.grow(CHAIN) == 0
    found = crasher.examine()
    assert len(crasher.versions) == CHAIN
    assert found["stored"] < CHAIN
    assert found["stored"] + found["archived"] == CHAIN


@pytest.mark.parametrize("step", RESTORING, ids=lambda step: step.name)
def test_killed_while_restoring_nothing_is_out_of_reach(crasher: Crasher, step: Step) -> None:
    assert crasher.grow(CHAIN) == 0
    lines, status = crasher.ask("restore", step=step.name, nth=1)
    assert status == -9
    crasher.examine()
    lines, status = crasher.ask("restore")
    assert status == 0
    assert sum("restored" in line for line in lines) >= 2
    crasher.examine()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again_at_any_moment(crasher: Crasher, seed: int) -> None:
    choice = random.Random(seed)
    kills = 0
    last = 0
    while last < MANY:
        last = min(MANY, len(crasher.versions) + 6)
        how = {"kill_after": choice.randrange(1, 8), "moment": choice.randrange(1_000_000)}
        if crasher.versions and choice.random() < 0.4:
            kills += crasher.ask("restore", **how)[1] == -9
        else:
            kills += crasher.grow(last, **how) == -9
        last = len(crasher.versions)
        crasher.examine()
    assert kills >= 4
