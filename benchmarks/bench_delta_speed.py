"""How fast deltas are made and applied at 1 % changed, beside memcpy, zstd and rivals; and the memory it takes.

Speeds count raw bytes of the target. All are medians of interleaved runs in this process, on the cores that it may
use; ratios to memcpy and to zstd level 1 say more than the megabytes. The PULSE formats are timed as they are written
here, with NumPy, which says nothing about their makers' code. Peak memory is measured in processes of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from delta_memory import DENSITY, SIDES
from delta_pairs import CODES, FLOATS, synthetic
from delta_parts import changed_parts, parts_of
from delta_rivals import Rival, rivals, versions

from aios_node import delta
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.weights.stored import stored_parts

ROUNDS = 5
COPIES = 4
"""Tensors of a version: four of four million numbers each."""
MEASURED = ("XOR planes + zstd 1", "PULSE, flat", "PULSE patch 3, exponent classes", "z4ai", "XOR + zipnn")
JUDGED = "bfloat16"
_COLUMNS = ("codec", "encode MB/s", "of memcpy", "of zstd 1", "apply MB/s", "of memcpy", "of zstd 1")

Work = Callable[[], object]


def run() -> dict[str, object]:
    """Tables of speeds for every precision, and memory."""
    others, missing = rivals()
    figures: dict[str, Any] = {"rivals": versions(), "missing": "; ".join(missing) or "none"}
    for precision in (*FLOATS, *CODES):
        speeds = _speeds(precision, [each for each in others if each.name in MEASURED])
        encode, apply = speeds["ours"]
        wanted = (">= 400", ">= 800") if precision == JUDGED else ("", "")
        figures[f"{precision}.encode"] = _figure(encode, wanted[0])
        figures[f"{precision}.apply"] = _figure(apply, wanted[1])
        figures[f"{precision}: speed at {100 * DENSITY:g} % changed"] = _table(speeds)
    for form in ("memory", "files"):
        for precision in SIDES:
            for work, most in _peak(form, precision).items():
                name = f"peak memory beside inputs and outputs, {form}.{precision} {work}"
                figures[name] = {"value": most, "unit": "MiB", "target": "<= 64"}
    return figures


def _speeds(precision: str, others: list[Rival]) -> dict[str, tuple[float, float]]:
    """MB of raw bytes a second by codec: made, applied."""
    pair = synthetic(precision, DENSITY)
    base = {f"{number}": _copy(pair.base) for number in range(COPIES)}
    target = {f"{number}": _copy(pair.target) for number in range(COPIES)}
    works = _works(base, target, others)
    raw = sum(sum(part.size for part in stored_parts(tensor)) for tensor in target.values())
    for encode, apply in works.values():
        encode()
        apply()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, (encode, apply) in works.items():
            seconds[name].append((_seconds(encode), _seconds(apply)))
    return {
        name: (raw / 1e6 / statistics.median(made), raw / 1e6 / statistics.median(applied))
        for name, (made, applied) in ((name, zip(*pairs, strict=True)) for name, pairs in seconds.items())
    }


def _works(
    base: Mapping[str, Tensor], target: Mapping[str, Tensor], others: list[Rival]
) -> dict[str, tuple[Work, Work]]:
    """What is timed: name -> make, apply."""
    old, new = changed_parts(parts_of(base), parts_of(target))
    plain = np.concatenate([part.data for part in new.values()])
    room = np.empty_like(plain)
    packed = zstandard.ZstdCompressor(level=1).compress(plain.data)
    blob = delta.encode(base, target)
    works: dict[str, tuple[Work, Work]] = {
        "memcpy": (lambda: np.copyto(room, plain), lambda: np.copyto(room, plain)),
        "zstd 1, full copy": (
            lambda: zstandard.ZstdCompressor(level=1).compress(plain.data),
            lambda: zstandard.ZstdDecompressor().decompress(packed),
        ),
        "ours": (lambda: delta.encode(base, target), lambda: delta.apply(base, blob)),
    }
    for rival in others:
        if rival.takes(new):
            works[rival.name] = _work(rival, old, new)
    return works


def _work(rival: Rival, old: Any, new: Any) -> tuple[Work, Work]:
    data = rival.encode(old, new)
    return lambda: rival.encode(old, new), lambda: rival.decode(old, data)


def _copy(tensor: Tensor) -> Tensor:
    """Memory of its own, so that nothing lies in a cache because it was just read under another name."""
    if not isinstance(tensor, QuantizedTensor):
        return tensor.copy()
    layout = (tensor.shape, tensor.dtype, tensor.quant_type, tensor.axis, tensor.group_size)
    return QuantizedTensor(tensor.codes.copy(), tensor.scales.copy(), tensor.zero_points.copy(), *layout)


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _figure(speed: float, target: str) -> dict[str, Any]:
    return {"value": round(speed), "unit": "MB/s", **({"target": target} if target else {})}


def _table(speeds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    copied, squeezed = speeds["memcpy"], speeds["zstd 1, full copy"]
    rows = []
    for name, both in speeds.items():
        cells = [(round(speed), speed / copied[way], speed / squeezed[way]) for way, speed in enumerate(both)]
        rows.append([name, *(float(f"{cell:.3g}") for row in cells for cell in row)])
    return {"columns": list(_COLUMNS), "rows": rows}


def _peak(form: str, precision: str) -> dict[str, float]:
    script = Path(__file__).with_name("delta_memory.py")
    done = subprocess.run(
        [sys.executable, script, form, precision], check=True, capture_output=True, text=True, timeout=600
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
