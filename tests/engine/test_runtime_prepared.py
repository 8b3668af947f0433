"""Getting a machine ready for few bits: models open at once, and again when it is done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios_node.engine.errors import Unavailable
from aios_node.engine.nets.modes import Timings
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.runtime import prepared
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.runtime.prepared import Preparation, compile_loops
from aios_node.engine.weights.folder import write_folder

FAST = {"float32": 100.0, "int8": 10.0}
SLOW = {"float32": 10.0, "int8": 100.0}
LONG = 60.0


def nobody() -> None:
    raise AssertionError("nobody was late")


@pytest.fixture
def versions(tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tmp_path: Path) -> list[Path]:
    """Two quantised versions of the tiny encoder."""
    made = [ArrowQuantizer(presets()["int4"]).quantize(tiny_weights(seed)) for seed in (1, 2)]
    return [write_folder(tmp_path / str(n), one, tiny_files).path for n, one in enumerate(made)]


def test_who_is_patient_is_told_and_work_is_done_once() -> None:
    done: list[int] = []

    def work() -> Timings:
        done.append(1)
        return FAST

    preparation = Preparation(nobody, work=work, patience_s=LONG)
    assert preparation.timings() == preparation.timings() == FAST
    preparation.close(LONG)
    assert done == [1]


def test_who_cannot_wait_is_told_later(versions: list[Path]) -> None:
    go = threading.Event()
    engines: list[ArrowEngine] = []

    def work() -> Timings:
        go.wait(LONG)
        return FAST

    def open_again() -> None:
        assert engines[0].reopen(versions[0])

    preparation = Preparation(open_again, work=work, patience_s=0.0)
    with ArrowEngine.open(versions[0], device="cpu", timings=preparation.timings) as engine:
        engines.append(engine)
        before = engine.encode(["some text"])
        assert engine.mode == "float32"
        go.set()
        preparation.close(LONG)
        assert engine.mode == "int8"
        assert (engine.encode(["some text"]) * before).sum() > 0.99


def test_a_machine_that_cannot_stays_with_float32(versions: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    def work() -> Timings:
        raise OSError("no compiler")

    preparation = Preparation(nobody, work=work, patience_s=LONG)
    with (
        caplog.at_level(logging.ERROR),
        ArrowEngine.open(versions[0], device="cpu", timings=preparation.timings) as engine,
    ):
        assert engine.mode == "float32"
    assert "run in float32" in caplog.text


def test_only_the_served_version_is_opened_again(versions: list[Path]) -> None:
    engine = ArrowEngine.open(versions[0], device="cpu", timings=lambda: SLOW)
    engine.swap(versions[1])
    served = engine.version
    assert not engine.reopen(versions[0])
    assert engine.version == served
    assert engine.reopen(versions[1])
    engine.close()
    with pytest.raises(Unavailable):
        engine.reopen(versions[1])


@pytest.mark.parametrize(("timings", "compiled"), [(FAST, 1), (SLOW, 0), ({}, 0)])
def test_loops_are_compiled_where_they_will_be_used(
    timings: Timings, compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(prepared, "batch_timings", lambda: timings)
    monkeypatch.setattr(prepared, "compile_loops", lambda: calls.append(1))
    assert prepared.prepare() == timings
    assert len(calls) == compiled


def test_a_tiny_block_needs_every_loop_of_a_real_one(
    versions: list[Path],
) -> None:
    """After it, encoding compiles nothing more: no loop has met arguments of another kind."""
    from aios_node.engine.nets import int8_kernels

    names = ("quantise", "rescale", "gelu_quantise", "add_norm", "attend")
    loops = [getattr(int8_kernels, name) for name in names]
    compile_loops()
    known = [len(loop.signatures) for loop in loops]
    assert min(known) > 0
    with ArrowEngine.open(versions[0], device="cpu", mode="int8") as engine:
        engine.encode(["some text", "another one, and longer", "word " * 30])
        engine.encode(["alone"])
    assert [len(loop.signatures) for loop in loops] == known
