"""Accelerators that are full, before and while they compute. All of them are fakes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aios_node.engine.devices import Device
from aios_node.engine.errors import BadConfig
from aios_node.engine.nets.lowbit import build_encoder
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.runtime.placement import CPU, RESERVE, Rescue, TorchMemory, out_of_memory, place
from aios_node.engine.runtime.snapshot import Snapshot

GPU = Device("cuda")


def full() -> Exception:
    """A new error every time: one that was raised holds on to everything that was open then."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


@dataclass
class Watch:
    """A device with this much memory."""

    free: int | None = 2**40
    let_go_of: list[Device] = field(default_factory=list)

    def free_and_total(self, device: Device) -> tuple[int, int] | None:
        assert device.kind != "cpu"
        return None if self.free is None else (self.free, 2**40)

    def let_go(self, device: Device) -> None:
        self.let_go_of.append(device)


@dataclass(frozen=True)
class Sentences:
    """An encoder that fails with ``errors``, one per call, as long as there are any for batches of this size."""

    device: str
    errors: dict[int, list[Exception]] = field(default_factory=dict)
    most_tokens: int | None = None
    calls: list[int] = field(default_factory=list)

    @property
    def batch_tokens(self) -> int:
        return self.most_tokens or 800

    def encode(self, texts: Sequence[str]) -> Any:
        self.calls.append(self.batch_tokens)
        if errors := self.errors.get(self.batch_tokens):
            raise errors.pop(0)
        return np.full((len(texts), 1), self.batch_tokens if self.device != "cpu" else -1, np.float32)


def rescue_of(errors: dict[int, list[Exception]]) -> tuple[Rescue, Any, Watch]:
    on_gpu: Any = Sentences("cuda:0", errors)
    watch = Watch()
    on_cpu: Any = Sentences("cpu")
    return Rescue(on_gpu, GPU, lambda: replace(on_cpu), watch), on_gpu, watch


@pytest.mark.parametrize(
    ("free", "device"), [(RESERVE + 100, GPU), (RESERVE + 99, CPU), (0, CPU), (None, GPU), (2**40, GPU)]
)
def test_a_model_that_does_not_fit_goes_to_the_cpu(
    free: int | None, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert place(GPU, 100, Watch(free)) == device
    assert ("it runs on the CPU" in caplog.text) == (device == CPU)
    assert place(CPU, 2**60, Watch(0)) == CPU


def test_torch_is_asked_in_the_way_of_each_device() -> None:
    asked: list[Any] = []
    gpu = SimpleNamespace(mem_get_info=lambda index: (10 + index, 20), empty_cache=lambda: asked.append("cuda"))
    mps = SimpleNamespace(recommended_max_memory=lambda: 100, driver_allocated_memory=lambda: 30)
    watch = TorchMemory(SimpleNamespace(cuda=gpu, xpu=SimpleNamespace(), mps=mps))
    assert watch.free_and_total(Device("cuda", 1)) == (11, 20)
    assert watch.free_and_total(Device("rocm")) == (10, 20)
    assert watch.free_and_total(Device("xpu")) is None
    assert watch.free_and_total(Device("mps")) == (70, 100)
    watch.let_go(Device("rocm"))
    watch.let_go(Device("xpu"))
    assert asked == ["cuda"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (full(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_smaller_batches_come_before_the_cpu() -> None:
    rescue, on_gpu, watch = rescue_of({800: [full()]})
    assert rescue.encode(["a", "b"]).tolist() == [[100], [100]]
    assert rescue.encode(["c"]).tolist() == [[800]]
    assert on_gpu.calls == [800, 100, 800]
    assert rescue.device == GPU
    assert watch.let_go_of == [GPU]


def test_when_smaller_batches_do_not_help_the_cpu_takes_over_for_good(caplog: pytest.LogCaptureFixture) -> None:
    rescue, on_gpu, watch = rescue_of({800: [full()], 100: [full()]})
    with caplog.at_level(logging.WARNING):
        assert rescue.encode(["a"]).tolist() == [[-1]]
    assert rescue.device == CPU
    assert rescue.encode(["a"]).tolist() == [[-1]]
    assert on_gpu.calls == [800, 100]
    assert watch.let_go_of == [GPU, GPU, GPU]
    assert "moves from cuda:0 to the CPU" in caplog.text


def test_of_many_requests_that_fail_together_none_fails_and_one_builds() -> None:
    many = 12
    rescue, _, _ = rescue_of({800: [full() for _ in range(many)], 100: [full() for _ in range(many)]})
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(rescue.encode, [["a"]] * many))
    assert [vectors.tolist() for vectors in found] == [[[-1]]] * many


@pytest.mark.parametrize("errors", [{800: [RuntimeError("other")]}, {800: [full()], 100: [RuntimeError("other")]}])
def test_other_errors_are_not_hidden(errors: dict[int, list[Exception]]) -> None:
    rescue, _, _ = rescue_of(errors)
    with pytest.raises(RuntimeError, match="other"):
        rescue.encode(["a"])
    assert rescue.device == GPU


def test_a_version_without_room_is_opened_on_the_cpu(tiny_versions: tuple[Path, Path]) -> None:
    snapshot = Snapshot.open(tiny_versions[0], GPU, watch=Watch(0))
    assert snapshot.device == snapshot.computes_on == CPU
    assert snapshot.encode(["text"]).shape == (1, 16)


def test_memory_that_runs_out_while_opening_moves_it_to_the_cpu(tiny_versions: tuple[Path, Path]) -> None:
    built: list[str] = []

    def build(*parts: Any, device: str) -> Any:
        built.append(device)
        if device != "cpu":
            raise full()
        return build_encoder(*parts, device=device)

    watch = Watch()
    snapshot = Snapshot.open(tiny_versions[0], GPU, "float16", watch=watch, build=build)
    assert built == ["cuda:0", "cpu"]
    assert snapshot.device == CPU
    assert snapshot.mode == "float32"
    assert watch.let_go_of == [GPU]
    with ArrowEngine.open(tiny_versions[0], device="cpu") as engine:
        np.testing.assert_allclose(snapshot.encode(["text"]), engine.encode(["text"]), atol=1e-6)


def test_other_failures_while_opening_are_not_hidden(tiny_versions: tuple[Path, Path]) -> None:
    def build(*_: Any, device: str) -> Any:
        raise RuntimeError(f"no driver for {device}")

    with pytest.raises(RuntimeError, match="no driver for cuda:0"):
        Snapshot.open(tiny_versions[0], GPU, watch=Watch(), build=build)
    with pytest.raises(BadConfig, match="int8 runs on a CPU only"):
        Snapshot.open(tiny_versions[0], GPU, "int8", watch=Watch())
