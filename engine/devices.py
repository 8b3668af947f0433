"""Devices: which processor the engine computes on, and with how many threads.

Knows torch only by the few questions it asks of it, and imports it only when a question needs it.
It does not know what is computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from aios_node.engine.errors import BadConfig

DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]

KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
"""Every kind there is, best first: the order of the automatic choice."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Device:
    """One processor. ROCm answers to torch's ``cuda`` names, and is told apart for people only."""

    kind: DeviceKind
    index: int = 0

    @property
    def torch_name(self) -> str:
        """What ``torch.device`` takes."""
        if self.kind in {"cpu", "mps"}:
            return self.kind
        return f"{'cuda' if self.kind == 'rocm' else self.kind}:{self.index}"

    def __str__(self) -> str:
        return self.kind if self.kind in {"cpu", "mps"} else f"{self.kind}:{self.index}"


def available(torch: Any) -> dict[DeviceKind, int]:
    """Count the processors of each kind that this build of torch can use here, best kind first."""
    return {kind: count for kind in KINDS if (count := _COUNTERS[kind](torch)) > 0}


def choose(requested: str = "auto", *, torch: Any = None) -> Device:
    """Turn a name (``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...) into a device that exists here.

    Raises BadConfig for a name that means nothing and for a device that this machine lacks.
    """
    name, _, index = requested.strip().lower().partition(":")
    if name == "cpu" and not index:
        return Device("cpu")
    if name not in {"auto", *KINDS} or (index and not index.isdecimal()) or (name == "auto" and index):
        raise BadConfig(f"device {requested!r} is unknown: use auto, {', '.join(KINDS)}, or one with :number")
    here = available(_torch() if torch is None else torch)
    if name == "auto":
        return Device(next(iter(here)))
    return _existing(requested, name, int(index or 0), here)


def compute_threads(requested: int | None = None, *, quota_file: Path = CPU_QUOTA) -> int:
    """How many threads to compute with: what was asked for, or every core this process may use.

    Counts the scheduler's affinity mask and a container's CPU quota (cgroup v2), whichever is
    smaller: more threads than cores make matrix products slower, not faster.
    """
    if requested is not None:
        if requested < 1:
            raise BadConfig(f"threads is {requested}: use 1 or more")
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(quota_file) or cores))


def wait_quietly() -> None:
    """Let torch's threads sleep while they wait for each other; call before torch is first imported.

    By default they spin. Alone on a machine that gains little; where several processes share the cores
    (nodes, workers) it makes all of them several times slower. An environment that says how wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_threads(requested: int | None = None) -> int:
    """Set torch's number of compute threads for this process and return it."""
    count = compute_threads(requested)
    _torch().set_num_threads(count)
    return count


def _existing(requested: str, name: str, index: int, here: dict[DeviceKind, int]) -> Device:
    for kind, count in here.items():
        if kind == name and index < count:
            return Device(kind, index)
    found = ", ".join(str(Device(kind, number)) for kind, count in here.items() for number in range(count))
    raise BadConfig(f"device {requested!r} is not on this machine: there are {found}")


def _quota(quota_file: Path) -> int | None:
    """Whole cores allowed by a cgroup's ``cpu.max`` ("max 100000" or "150000 100000")."""
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _torch() -> Any:
    wait_quietly()
    import torch

    return torch


def _cuda_like(torch: Any, *, hip: bool) -> int:
    """CUDA and ROCm builds share an interface; only ``torch.version.hip`` tells which it is."""
    is_hip = getattr(torch.version, "hip", None) is not None
    return int(torch.cuda.device_count()) if is_hip == hip and torch.cuda.is_available() else 0


def _xpu(torch: Any) -> int:
    return int(torch.xpu.device_count()) if hasattr(torch, "xpu") and torch.xpu.is_available() else 0


_COUNTERS: dict[DeviceKind, Callable[[Any], int]] = {
    "cuda": lambda torch: _cuda_like(torch, hip=False),
    "rocm": lambda torch: _cuda_like(torch, hip=True),
    "xpu": _xpu,
    "mps": lambda torch: int(torch.backends.mps.is_available()),
    "cpu": lambda torch: 1,
}
