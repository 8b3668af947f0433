"""kill -9 and torn writes: a memory store holds everything it acknowledged, and nothing half-made."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aios_node.memory import MemoryStore

CHILD = Path(__file__).parent / "memory_crash_child.py"
MANY = 200

State = dict[str, str | None]


def _child_program() -> Any:
    spec = importlib.util.spec_from_file_location("memory_crash_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


vector_of = _child_program().vector_of


class Crasher:
    """The other end of ``memory_crash_child.py``, and what it has acknowledged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.sure: State = {}
        self.open: dict[int, State] = {}  # by thread: begun, not acknowledged

    def crash(self, folder: Path, seed: int, *, after: int, at: str) -> int:
        """Let a child write until ``after`` lines of kind ``at``, kill it; returns how much it acknowledged."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "seed": seed}) + "\n")
        self.process.stdin.flush()
        child, acknowledged = 0, 0
        for line in self.lines():
            child = line.get("pid", child)
            acknowledged += self.note(line)
            after -= at in line
            if after == 0 and at in line:
                os.kill(child, signal.SIGKILL)
            if "exit" in line:
                assert line["exit"] == -signal.SIGKILL
                return acknowledged
        raise AssertionError("the crash server itself ended")

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        return map(json.loads, self.process.stdout)

    def note(self, line: dict[str, Any]) -> bool:
        """Learn from one line; returns whether it acknowledges a change."""
        if "ready" in line:
            self.sure["first"] = "memory 0"
        if "begin" in line:
            self.open[line["thread"]] = line["begin"]
        if "done" in line:
            self.sure |= self.open.pop(line["thread"])
        return "done" in line

    def check(self, store: MemoryStore) -> None:
        """What was acknowledged is there; what was only begun is there as a whole or not at all."""
        rows = store.scan(columns=["id", "text", "embedding"]).read_all().to_pylist()
        found = {row["id"]: row["text"] for row in rows}
        for row in rows:
            assert row["embedding"] == pytest.approx(vector_of(row["text"]), abs=1e-6)
        for changes in self.open.values():
            before = all(found.get(name) == self.sure.get(name) for name in changes)
            after = all(found.get(name) == text for name, text in changes.items())
            assert before or after, f"half of a change is there: {changes}"
            self.sure |= {name: found.get(name) for name in changes}
        self.open.clear()
        assert found == {name: text for name, text in self.sure.items() if text is not None}
        stats = store.stats()
        assert stats.rows == stats.embedded == len(found)

    def check_search(self, store: MemoryStore) -> None:
        """Every row is the nearest to its own vector, also after reopening."""
        for name, text in random.Random(0).sample(sorted(self.sure.items()), min(10, len(self.sure))):
            if text is not None:
                hits = store.search(vector=vector_of(text), k=1)
                assert hits.column("similarity").to_pylist() == [pytest.approx(1, abs=1e-6)]
                assert vector_of(hits.column("text").to_pylist()[0]) == vector_of(text), name


@pytest.fixture
def crasher() -> Iterator[Crasher]:
    process = subprocess.Popen(
        [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield Crasher(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        process.stdout.close()


def _rounds(crasher: Crasher, folder: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    acknowledged = 0
    for seed in range(rounds):
        at = chance.choice(["begin", "done", "ready"])
        acknowledged += crasher.crash(folder, seed, after=1 if at == "ready" else chance.randint(1, 60), at=at)
        with MemoryStore.open(folder) as store:
            crasher.check(store)
            crasher.check_search(store)
    assert acknowledged > rounds


def test_a_killed_store_holds_what_it_acknowledged(crasher: Crasher, tmp_path: Path) -> None:
    _rounds(crasher, tmp_path / "memory", 8)


@pytest.mark.faults
def test_a_store_killed_many_times_holds_what_it_acknowledged(crasher: Crasher, tmp_path: Path) -> None:
    _rounds(crasher, tmp_path / "memory", MANY)


def _acknowledged_sizes(folder: Path, count: int) -> list[int]:
    """Add ``count`` memories; returns the log's length at each acknowledgement. Left as a killed process leaves it."""
    wal = folder / "default" / "memory.sqlite-wal"
    sizes = []
    with MemoryStore.open(folder) as store:
        store.add_table(_empty())
        for number in range(count):
            text = f"memory {number}"
            store.add(id=f"m{number:03}", text=text, embedding=vector_of(text))
            sizes.append(wal.stat().st_size)
        shutil.copytree(folder, folder.with_name("killed"), ignore=shutil.ignore_patterns("*-shm"))
    return sizes


def _empty() -> Any:
    return pa.table({"text": pa.array([], pa.string())})


@pytest.mark.parametrize("cuts", [20, pytest.param(300, marks=pytest.mark.faults)])
def test_a_torn_tail_of_the_log_costs_nothing_acknowledged(tmp_path: Path, cuts: int) -> None:
    """Power was lost: of what was written after the last fsync, any part may be there, or noise in its place."""
    sizes = _acknowledged_sizes(tmp_path / "memory", 40)
    assert sizes == sorted(sizes)
    chance = random.Random(cuts)
    for number in range(cuts):
        folder = Path(shutil.copytree(tmp_path / "killed", tmp_path / f"cut{number}"))
        wal = folder / "default" / "memory.sqlite-wal"
        cut = chance.randint(sizes[0], sizes[-1])
        data = wal.read_bytes()
        tail = [b"", chance.randbytes(5000), b"\0" * (len(data) - cut)][number % 3]
        wal.write_bytes(data[:cut] + tail)
        with MemoryStore.open(folder) as store:
            texts = store.scan(columns=["text"]).read_all().column("text").to_pylist()
            assert len(texts) >= sum(size <= cut for size in sizes)
            assert texts == [f"memory {n}" for n in range(len(texts))]
            assert store.add(text="memory 999", embedding=vector_of("memory 999"))
            assert store.stats().embedded == len(texts) + 1
        shutil.rmtree(folder)


FILL = """
import json, resource, sys
from aios_node.engine.errors import ResourceError
from aios_node.memory import MemoryStore

store = MemoryStore.open(sys.argv[1])
store.add(id="first", text="memory 0", embedding=[1.0, 2.0])
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
done = ["first"]
try:
    while True:
        done.append(store.add(text="x" * 50_000, embedding=[1.0, len(done)]))
except ResourceError as error:
    refused = error.code
readable = store.stats().rows
found = store.search(vector=[1.0, 1.0], k=10_000).column("id").to_pylist()
assert sorted(found) == sorted(done), "what was refused is found"
resource.setrlimit(resource.RLIMIT_FSIZE, before)
print(json.dumps([done, refused, readable]))
"""


def test_a_disk_that_takes_no_more_bytes_loses_nothing(tmp_path: Path) -> None:
    """The file system itself refuses to let the log grow: the caller is told, all that was stored stays."""
    folder = tmp_path / "memory"
    finished = subprocess.run(
        [sys.executable, "-c", FILL, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    done, refused, readable = json.loads(finished.stdout)
    assert refused in ("storage_error", "storage_full")
    assert len(done) == readable > 1
    with MemoryStore.open(folder) as store:
        assert store.scan(columns=["id"]).read_all().column("id").to_pylist() == done
        assert store.add(text="room again")
