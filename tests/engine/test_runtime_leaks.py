"""What is opened is let go of: memory maps, files and threads."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

from aios_node.engine import ArrowEngine
from aios_node.engine.runtime.executor import DeviceExecutor


def maps_under(folder: Path) -> int:
    return sum(Path(area.path).is_relative_to(folder) for area in psutil.Process().memory_maps(grouped=False))


def test_maps_last_as_long_as_somebody_computes_on_them(tiny_versions: tuple[Path, Path]) -> None:
    old, new = tiny_versions
    engine = ArrowEngine.open(old, device="cpu")
    assert maps_under(old) > 0
    running = engine.snapshot
    engine.swap(new)
    assert maps_under(old) > 0
    assert running.encode(["still works"]).shape == (1, 16)
    del running
    assert maps_under(old) == 0
    assert maps_under(new) > 0
    engine.close()
    assert maps_under(new) == 0


def test_an_executor_keeps_no_version_after_its_answer(tiny_versions: tuple[Path, Path]) -> None:
    old, new = tiny_versions
    with ArrowEngine.open(old, device="cpu") as engine, DeviceExecutor() as executor:
        executor.submit_encode(engine, ["one"] * 3).result(60)
        engine.swap(new)
        # One more answer proves that the thread has left the turn before.
        executor.submit_encode(engine, ["two"]).result(60)
        assert maps_under(old) == 0


def test_opening_swapping_and_closing_many_times_leaves_nothing(tiny_versions: tuple[Path, Path]) -> None:
    def once() -> None:
        with ArrowEngine.open(tiny_versions[0]) as engine, DeviceExecutor() as executor:
            executor.submit_encode(engine, ["text"]).result(60)
            engine.swap(tiny_versions[1])

    once()
    process = psutil.Process()
    files, threads = process.num_fds(), threading.active_count()
    for _ in range(10):
        once()
    assert process.num_fds() == files
    assert threading.active_count() == threads
    assert maps_under(tiny_versions[0].parent) == 0


def test_failing_to_open_leaves_nothing(tiny_versions: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_versions[0].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    shard = next(broken.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"X")
    files = psutil.Process().num_fds()
    errors = []
    for _ in range(3):
        try:
            ArrowEngine.open(broken)
        except Exception as error:
            errors.append(type(error))
    assert len(errors) == 3
    assert psutil.Process().num_fds() == files
    assert maps_under(broken) == 0
