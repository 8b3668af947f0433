"""The choice of a device, with a torch that claims to have what the test says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aios_node.engine.devices import Device, available, choose, compute_threads, use_threads
from aios_node.engine.errors import BadConfig


def fake_torch(*, gpus: int = 0, hip: str | None = None, xpus: int = 0, mps: bool = False) -> Any:
    return SimpleNamespace(
        version=SimpleNamespace(hip=hip),
        cuda=SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus),
        xpu=SimpleNamespace(is_available=lambda: xpus > 0, device_count=lambda: xpus),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({}, Device("cpu")),
        ({"gpus": 2}, Device("cuda")),
        ({"gpus": 1, "hip": "6.2"}, Device("rocm")),
        ({"xpus": 1}, Device("xpu")),
        ({"mps": True}, Device("mps")),
        ({"gpus": 1, "xpus": 1, "mps": True}, Device("cuda")),
    ],
)
def test_auto_takes_the_best_there_is(machine: dict[str, Any], expected: Device) -> None:
    assert choose("auto", torch=fake_torch(**machine)) == expected


def test_this_machine_has_at_least_a_cpu() -> None:
    assert available(torch)["cpu"] == 1
    assert str(choose("cpu")) == "cpu"
    assert choose("auto").kind in available(torch)


def test_a_torch_without_xpu_support_has_none() -> None:
    old = fake_torch(gpus=1)
    del old.xpu
    assert available(old) == {"cuda": 1, "cpu": 1}


@pytest.mark.parametrize(
    ("requested", "machine", "expected", "torch_name"),
    [
        ("cuda:1", {"gpus": 2}, Device("cuda", 1), "cuda:1"),
        ("CUDA", {"gpus": 2}, Device("cuda"), "cuda:0"),
        ("rocm:1", {"gpus": 2, "hip": "6.2"}, Device("rocm", 1), "cuda:1"),
        ("xpu", {"xpus": 1}, Device("xpu"), "xpu:0"),
        ("mps", {"mps": True}, Device("mps"), "mps"),
    ],
)
def test_devices_by_name(requested: str, machine: dict[str, Any], expected: Device, torch_name: str) -> None:
    device = choose(requested, torch=fake_torch(**machine))
    assert device == expected
    assert device.torch_name == torch_name


@pytest.mark.parametrize("requested", ["gpu", "", "cuda:x", "cuda:-1", "auto:1", "cpu:0x"])
def test_names_that_mean_nothing_are_refused(requested: str) -> None:
    with pytest.raises(BadConfig, match="unknown"):
        choose(requested, torch=fake_torch(gpus=8))


@pytest.mark.parametrize("requested", ["cuda", "cuda:2", "rocm", "mps", "cpu:1"])
def test_a_device_that_is_not_there_is_refused_with_what_is(requested: str) -> None:
    machine = {"gpus": 2} if requested == "cuda:2" else {}
    with pytest.raises(BadConfig, match=r"there are .*cpu"):
        choose(requested, torch=fake_torch(**machine))


def test_rocm_and_cuda_are_not_confused() -> None:
    with pytest.raises(BadConfig, match="rocm:0"):
        choose("cuda", torch=fake_torch(gpus=1, hip="6.2"))


@pytest.mark.parametrize(("content", "cores"), [("100000 100000\n", 1), ("50000 100000\n", 1)])
def test_a_containers_quota_bounds_the_threads(tmp_path: Path, content: str, cores: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    assert compute_threads(quota_file=quota) == cores


@pytest.mark.parametrize("content", ["max 100000\n", "nonsense", "1 0\n", None])
def test_without_a_readable_quota_all_cores_count(tmp_path: Path, content: str | None) -> None:
    quota = tmp_path / "cpu.max"
    if content is not None:
        quota.write_text(content)
    assert compute_threads(quota_file=quota) == len(os.sched_getaffinity(0))


def test_threads_as_asked() -> None:
    before = torch.get_num_threads()
    try:
        assert use_threads(1) == 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    with pytest.raises(BadConfig, match="threads is 0"):
        compute_threads(0)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_quietly_unless_told_otherwise(given: str | None, expected: str) -> None:
    code = "import aios_node.engine.nets.encoder, os; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == expected
