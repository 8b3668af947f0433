"""Every decoder, under Hypothesis: damaged golden files and noise bring documented errors and no large allocation."""

from __future__ import annotations

import contextlib
import sqlite3
import tracemalloc
from pathlib import Path

import delta_targets
import node_targets
import privacy_targets
import pyarrow as pa
import pytest
from fuzz_target import Target
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.engine.errors import AiosError, BadConfig, Corrupt
from aios_node.memory.store import MemoryStore

TARGETS = {**delta_targets.TARGETS, **node_targets.TARGETS, **privacy_targets.TARGETS}
FOUND = sorted((Path(__file__).parent / "found").iterdir())
WORDS = [b"\xff" * 4, bytes(4), b"\0\0\0\x7f", b"\xff" * 8, b"[[[[", b'":{"', b"1e999", b"-1", b"\\u0000", b"9" * 25]


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid input after flips, cuts, insertions, overwritten words and pieces that come twice, anywhere."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "drop", "repeat"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place + 1 :]
            case "insert":
                data[place:place] = draw(st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=9)))
            case "overwrite":
                word = draw(st.sampled_from(WORDS))
                data[place : place + len(word)] = word
            case "drop":
                del data[place : place + draw(st.integers(1, 20))]
            case _:
                data[place:place] = data[place : place + draw(st.integers(1, 40))]
    return bytes(data)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(target.seeds), damaged(target.seeds), st.binary(max_size=200))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_read(name: str) -> None:
    """Otherwise the damage below would only meet the first check."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("odd", node_targets.ODD_YAML)
def test_texts_on_which_the_yaml_library_stumbles_are_refused(odd: bytes) -> None:
    with pytest.raises(BadConfig, match="not valid YAML"):
        TARGETS["config"].run(odd)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_only_documented_errors(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    damage = data.draw(inputs(target))
    with contextlib.suppress(AiosError):
        target.run(damage)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=20)
@given(data=st.data())
def test_memory_stays_within_what_is_declared(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    damage = data.draw(inputs(target))
    target.run(target.seeds[0])  # what is loaded late is not counted
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with contextlib.suppress(AiosError):
            target.run(damage)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = target.allowed + 20 * len(damage)
    assert peak <= allowed
    assert pa.total_allocated_bytes() - before <= allowed


@pytest.mark.parametrize("change", ["DELETE FROM meta WHERE key = 'version'", "UPDATE meta SET value = 'x'"])
def test_a_log_without_its_counters_is_refused(tmp_path: Path, change: str) -> None:
    with contextlib.closing(MemoryStore.open(tmp_path)) as store:
        store.add(text="one")
    with contextlib.closing(sqlite3.connect(tmp_path / "default" / "memory.sqlite")) as database:
        database.execute(change)
        database.commit()
    with contextlib.closing(MemoryStore.open(tmp_path)) as store, pytest.raises(Corrupt, match="damaged"):
        store.scan()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_fuzzing_found_stays_fixed(path: Path) -> None:
    with pytest.raises(AiosError):
        TARGETS[path.name.rpartition("-")[0]].run(path.read_bytes())
