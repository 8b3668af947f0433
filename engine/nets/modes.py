"""In which arithmetic a network runs: what there is, and which one is taken when nobody says.

Knows no tensors and imports no torch. The measurements that it decides by are given (see measured).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast, get_args

from aios_node.engine.errors import BadConfig

Mode = Literal["float32", "bfloat16", "float16", "int8", "packed"]
"""``float32``: all weights as floats. ``bfloat16``, ``float16``: linear maps in 16 bits (float16 on accelerators).
``int8``: linear maps multiply 8-bit numbers, for many texts on a CPU. ``packed``: weights stay as small as in the
file, on a CPU."""

MODES: tuple[Mode, ...] = get_args(Mode)
REQUESTS = ("auto", *MODES)

VARIABLE = "AIOS_NODE_MODE"
"""Environment variable that replaces ``auto``."""

Timings = Mapping[str, float]
"""Microseconds per mode for one large product of this machine."""


def requested(mode: str, environment: Mapping[str, str] = os.environ) -> str:
    """The mode asked for, ``auto`` replaced by what the environment says.

    Raises BadConfig for one that does not exist.
    """
    name = environment.get(VARIABLE, "auto") if mode == "auto" else mode
    if name not in REQUESTS:
        where = f" (from {VARIABLE})" if mode == "auto" else ""
        raise BadConfig(f"mode {name!r:.40}{where} is unknown: use {', '.join(REQUESTS)}")
    return name


def check_mode(mode: str, *, on_cpu: bool) -> Mode:
    """A mode other than ``auto``, if it exists on this kind of device. Raises BadConfig."""
    if not on_cpu and mode in {"int8", "packed"}:
        raise BadConfig(f"mode {mode} runs on a CPU only: use float32, bfloat16 or float16, or device cpu")
    if on_cpu and mode == "float16":
        raise BadConfig("mode float16 runs on accelerators only: use bfloat16, int8 or float32 on a CPU")
    return cast("Mode", mode)


def automatic(*, on_cpu: bool, quantised: bool, timings: Timings) -> Mode:
    """What ``auto`` means: float32, or int8 for quantised weights on a CPU where that was measured to be faster."""
    faster = "int8" in timings and timings["int8"] < timings.get("float32", 0.0)
    return "int8" if on_cpu and quantised and faster else "float32"
