"""The choice of an arithmetic, the table it is made by, and who may overrule it. No clocks: measurements are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios_node.engine.devices import Device
from aios_node.engine.errors import BadConfig
from aios_node.engine.nets import measured
from aios_node.engine.nets.measured import batch_timings, default_folder, kernel_table, measure_products
from aios_node.engine.nets.modes import automatic, check_mode, requested
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.runtime.snapshot import Snapshot
from aios_node.engine.weights.folder import write_folder

FAST = {"float32": 100.0, "int8": 10.0}
SLOW = {"float32": 100.0, "int8": 500.0}


@pytest.fixture
def quantised(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tmp_path: Path
) -> tuple[Path, Path]:
    """Two quantised versions of the tiny encoder."""
    made = []
    for seed in (1, 2):
        small = ArrowQuantizer(presets()["int4"]).quantize(tiny_weights(seed))
        made.append(write_folder(tmp_path / str(seed), small, tiny_files).path)
    return made[0], made[1]


@pytest.mark.parametrize(
    ("on_cpu", "is_quantised", "timings", "mode"),
    [
        (True, True, FAST, "int8"),
        (True, True, SLOW, "float32"),
        (True, True, {"float32": 1.0}, "float32"),
        (True, True, {}, "float32"),
        (True, False, FAST, "float32"),
        (False, True, FAST, "float32"),
    ],
)
def test_auto_takes_what_was_measured_to_be_fastest(
    on_cpu: bool, is_quantised: bool, timings: dict[str, float], mode: str
) -> None:
    assert automatic(on_cpu=on_cpu, quantised=is_quantised, timings=timings) == mode


def test_the_environment_replaces_auto_only() -> None:
    assert requested("auto", {}) == "auto"
    assert requested("auto", {"AIOS_NODE_MODE": "packed"}) == "packed"
    assert requested("int8", {"AIOS_NODE_MODE": "packed"}) == "int8"
    with pytest.raises(BadConfig, match=r"'fast' \(from AIOS_NODE_MODE\) is unknown: use auto, float32"):
        requested("auto", {"AIOS_NODE_MODE": "fast"})
    with pytest.raises(BadConfig, match="'int9' is unknown"):
        requested("int9", {})


@pytest.mark.parametrize(("mode", "on_cpu"), [("int8", False), ("packed", False), ("float16", True)])
def test_modes_for_another_device_are_refused(mode: str, on_cpu: bool) -> None:
    with pytest.raises(BadConfig, match=f"mode {mode} runs on"):
        check_mode(mode, on_cpu=on_cpu)
    assert check_mode(mode, on_cpu=not on_cpu) == mode


@pytest.mark.parametrize(("timings", "mode"), [(FAST, "int8"), (SLOW, "float32")])
def test_a_quantised_version_opens_in_the_measured_mode(
    quantised: tuple[Path, Path], timings: dict[str, float], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_NODE_MODE", raising=False)
    snapshot = Snapshot.open(quantised[0], Device("cpu"), timings=lambda: timings)
    assert snapshot.mode == mode
    assert snapshot.encode(["some text"]).shape == (1, 16)


def test_floats_are_opened_without_asking_for_measurements(tiny_versions: tuple[Path, Path]) -> None:
    def never() -> Any:
        raise AssertionError("nobody needs to measure")

    assert Snapshot.open(tiny_versions[0], Device("cpu"), timings=never).mode == "float32"


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "int8", "packed"])
def test_every_mode_gives_nearly_the_same_vectors_and_stays_after_a_swap(
    quantised: tuple[Path, Path], mode: str
) -> None:
    texts = ["a short text", "a somewhat longer text with ten words or even more"]
    with (
        ArrowEngine.open(quantised[0], device="cpu", mode=mode) as engine,
        ArrowEngine.open(quantised[1], device="cpu", mode="float32") as other,
    ):
        assert engine.mode == mode
        engine.swap(quantised[1])
        assert engine.mode == mode
        assert (engine.encode(texts) * other.encode(texts)).sum(axis=1).min() > 0.99


def test_bfloat16_minilm_is_near(minilm_version: Path) -> None:
    texts = ["Return the current working directory as a string.", "Bananas are yellow", "x"]
    with (
        ArrowEngine.open(minilm_version, device="cpu", mode="bfloat16") as half,
        ArrowEngine.open(minilm_version, device="cpu") as full,
    ):
        assert (half.encode(texts) * full.encode(texts)).sum(axis=1).min() > 0.999


def test_a_table_is_measured_once_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_for: list[str] = []

    def measure() -> dict[str, dict[str, float]]:
        measured_for.append("once")
        return {"256": FAST}

    assert batch_timings(tmp_path, measure=measure) == FAST
    assert batch_timings(tmp_path, measure=measure) == FAST
    monkeypatch.setattr(measured, "_in_memory", {})
    table = kernel_table(tmp_path, measure=measure)
    assert len(measured_for) == 1
    assert table["microseconds"] == {"256": FAST}
    assert table["machine"]["torch"] == torch.__version__
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == table
    monkeypatch.setattr(measured, "_in_memory", {})
    monkeypatch.setattr(measured, "machine", lambda: {"processor": "another"})
    batch_timings(tmp_path, measure=measure)
    assert len(measured_for) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"microseconds": {"256": {"int8": "fast"}}}',
        b'{"microseconds": {"256": {"int8": -1}}}',
        b'{"microseconds": {"256": {"int8": NaN}}}',
        b'{"microseconds": []}',
        b"[" * 5000,
        b" " * 70_000,
        b"\xff",
    ],
)
def test_a_damaged_table_is_measured_anew(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_timings(tmp_path, measure=lambda: {"256": SLOW})
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(content)
    monkeypatch.setattr(measured, "_in_memory", {})
    assert batch_timings(tmp_path, measure=lambda: {"256": FAST}) == FAST
    assert json.loads(file.read_bytes())["microseconds"] == {"256": FAST}


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert batch_timings(blocked, measure=lambda: {"256": FAST}) == FAST


def test_a_table_without_the_row_for_batches_decides_nothing(tmp_path: Path) -> None:
    assert batch_timings(tmp_path, measure=lambda: {"1": FAST}) == {}


def test_the_cache_folder_is_where_the_system_wants_it() -> None:
    assert default_folder({"XDG_CACHE_HOME": "/var/cache/me"}) == Path("/var/cache/me/aios-node")
    assert default_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "aios-node"
    assert default_folder({}) == Path.home() / ".cache" / "aios-node"


def test_measuring_gives_a_positive_number_for_every_mode_that_runs() -> None:
    found = measure_products()
    assert set(found) == {"1", "16", "256"}
    for row in found.values():
        assert {"float32", "bfloat16", "int8"} <= set(row)
        assert all(np.isfinite(value) and value > 0 for value in row.values())
