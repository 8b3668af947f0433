"""kill -9 at every named step and at random moments: a store holds what it acknowledged, and nothing half-made.

A twin that never crashes tells every state a store may be in. A crashed store must be in the state of the
last acknowledged change or of the one after it, with every hash right, and must go on from there.
"""

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

CHANGES = 14
MANY = 60
ROUND = 6  # changes that one child attempts before it is replaced, if it was not killed
STORE_STEPS = list(Step)[: list(Step).index(Step.CREATE_TRANSFER)]
STAGING_STEPS = list(Step)[len(STORE_STEPS) :]


class Crasher:
    """The other end of ``crash_child.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, do: str, store: Path, **options: Any) -> tuple[list[dict[str, Any]], int]:
        """All lines that a child gave, and how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, "store": str(store), **options}) + "\n")
        self.process.stdin.flush()
        lines = []
        for text in self.process.stdout:
            line = json.loads(text)
            assert "error" not in line, line["error"]
            if "exit" in line:
                return lines, line["exit"]
            lines.append(line)
        raise AssertionError("the crash server itself ended")

    def twin(self, store: Path, seed: int, changes: int) -> list[dict[str, Any]]:
        """Every state from the empty store on, of one that never crashes."""
        lines, status = self.ask("work", store, seed=seed, first=0, last=changes)
        assert status == 0
        return [{}, *(line["state"] for line in lines)]

    def crash(self, store: Path, states: list[dict[str, Any]], done: int, **how: Any) -> tuple[int, bool]:
        """Go on from change ``done`` until killed or replaced; returns how far the store is, and if it was killed."""
        last = min(done + ROUND, len(states) - 1)
        lines, status = self.ask("work", store, first=done, last=last, **how)
        assert status in {0, -9}
        acknowledged = done + len(lines)
        (found,), status_of_look = self.ask("look", store)
        assert status_of_look == 0
        possible = states[acknowledged : acknowledged + 2]
        assert found["state"] in possible
        return acknowledged + possible.index(found["state"]), status == -9

    def finish(self, store: Path, states: list[dict[str, Any]], done: int, seed: int) -> None:
        """Whatever happened before, the rest goes through and ends where the twin ended."""
        lines, status = self.ask("work", store, seed=seed, first=done, last=len(states) - 1)
        assert status == 0
        assert (lines[-1]["state"] if lines else states[done]) == states[-1]
        self.ask("look", store)


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    script = Path(__file__).with_name("crash_child.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Crasher(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("step", STORE_STEPS, ids=lambda step: step.name)
def test_killed_at_a_step_the_store_goes_on(crasher: Crasher, tmp_path: Path, step: Step) -> None:
    seed, done, killed = 5, 0, False
    states = crasher.twin(tmp_path / "twin", seed, CHANGES)
    while not killed:
        assert done < CHANGES
        done, killed = crasher.crash(tmp_path / "s", states, done, seed=seed, step=step.name, nth=1)
    crasher.finish(tmp_path / "s", states, done, seed)


@pytest.mark.parametrize("step", STAGING_STEPS, ids=lambda step: step.name)
def test_killed_at_a_step_a_transfer_goes_on(crasher: Crasher, tmp_path: Path, step: Step) -> None:
    receive_with_a_kill(crasher, tmp_path / "s", seed=1, step=step.name, nth=1)


def receive_with_a_kill(crasher: Crasher, store: Path, *, seed: int, **how: Any) -> None:
    """What was acknowledged as durable is never missing again; what arrives in the end is the package."""
    first, status = crasher.ask("receive", store, seed=seed, round=0, **how)
    assert status == -9
    (found,), _ = crasher.ask("staged", store)
    if first and "missing" in first[-1]:
        acknowledged = expand(first[0]["missing"]) - expand(first[-1]["missing"])
        assert found["missing"] is not None
        assert not acknowledged & expand(found["missing"])
    again, status = crasher.ask("receive", store, seed=seed, round=1)
    assert status == 0
    assert again[-1] == {"same": True}
    if found["missing"] is not None:
        assert again[0]["missing"] == found["missing"]


def expand(ranges: list[list[int]]) -> set[int]:
    return {index for first, stop in ranges for index in range(first, stop)}


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(12))
def test_killed_again_and_again_at_steps(crasher: Crasher, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    states = crasher.twin(tmp_path / "twin", seed, MANY)
    done = kills = 0
    while done < MANY:
        step, nth = choice.choice(STORE_STEPS), choice.choice([1, 1, 2, 3])
        done, killed = crasher.crash(tmp_path / "s", states, done, seed=seed, step=step.name, nth=nth)
        kills += killed
    assert kills >= 6
    crasher.finish(tmp_path / "s", states, done, seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(100, 112))
def test_killed_again_and_again_at_any_moment(crasher: Crasher, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    states = crasher.twin(tmp_path / "twin", seed, MANY)
    done = kills = 0
    while done < MANY:
        moment = choice.randrange(1_000_000)
        lines = choice.randrange(1, 4)
        done, killed = crasher.crash(tmp_path / "s", states, done, seed=seed, kill_after=lines, moment=moment)
        kills += killed
    assert kills >= 6
    crasher.finish(tmp_path / "s", states, done, seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(30))
def test_transfers_killed_at_any_step(crasher: Crasher, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    step = choice.choice([Step.WRITE_CHUNK, Step.SYNC_CHUNKS, Step.WRITE_JOURNAL, Step.SYNC_JOURNAL])
    most = {Step.WRITE_CHUNK: 60}.get(step, 4)
    receive_with_a_kill(crasher, tmp_path / "s", seed=seed, step=step.name, nth=choice.randint(1, most))
