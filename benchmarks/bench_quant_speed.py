"""How long rounding MiniLM takes, and how fast products come straight from packed codes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.int8 import Int8Linear, Rows
from aios_node.engine.nets.kernels import affine
from aios_node.engine.nets.packed import PackedMatrix
from aios_node.engine.quant.blocks import QuantizedTensor, QuantType
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import QuantizationConfig, presets
from aios_node.engine.weights.convert.huggingface import import_folder

MODEL = Path(__file__).resolve().parent.parent / ".cache" / "minilm"
PTQ_RUNS = 3
ROUNDS = 40
SHAPES = ((384, 384), (1536, 384), (384, 1536))
ROWS = (1, 4, 8, 32, 256)
FEW = 8
GROUP = 32


def run() -> dict[str, object]:
    """Medians of interleaved runs in one thread."""
    torch.set_num_threads(1)
    return {"rounding MiniLM": rounding(), "products": {f"{n}x{k}": products(n, k) for n, k in SHAPES}}


def rounding() -> dict[str, object]:
    """Seconds per preset, all tensors."""
    weights = import_folder(MODEL).weights
    found: dict[str, object] = {}
    for name in presets():
        times = []
        for _ in range(PTQ_RUNS):
            started = time.perf_counter()
            ArrowQuantizer(presets()[name]).quantize(weights)
            times.append(time.perf_counter() - started)
        found[name] = {"value": round(statistics.median(times), 2), "unit": "s", "target": "< 5"}
    return found


def products(outputs: int, inputs: int) -> dict[str, object]:
    """A product of some rows with one weight: microseconds of torch FP32, and how many times as fast others are."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    packed = {f"int{bits}": matrix(weight, bits) for bits in (8, 4, 2)}
    small = Int8Linear.of(torch.from_numpy(weight), torch.zeros(outputs))
    found: dict[str, object] = {}
    for rows in ROWS:
        x = random.standard_normal((rows, inputs)).astype(np.float32)
        medians = interleaved(candidates(x, weight, packed, small))
        rival = medians["torch FP32"]
        found[f"{rows} rows"] = {
            "torch FP32": {"value": round(1e6 * rival, 1), "unit": "us"},
            **{f"{name}, times as fast": round(rival / took, 2) for name, took in medians.items() if took != rival},
        }
        if rows == 1:
            found["GB/s of codes, 1 row"] = {
                name: round(part.codes.nbytes / medians[f"packed {name}"] / 1e9, 1) for name, part in packed.items()
            }
    return found


def matrix(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], bits: int) -> PackedMatrix:
    """A weight of 8 bits per channel, or of fewer in groups."""
    kind = cast("QuantType", f"int{bits}")
    recipe = QuantizationConfig(kind, symmetric=False, group_size=0 if bits == 8 else GROUP)
    stored = ArrowQuantizer(recipe).quantize({"x.weight": weight})["x.weight"]
    found = PackedMatrix.of(stored) if isinstance(stored, QuantizedTensor) else None
    if found is None:
        raise ValueError(f"a weight of {weight.shape} is not packed")
    return found


def candidates(
    x: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    packed: Mapping[str, PackedMatrix],
    small: Int8Linear,
) -> dict[str, Callable[[], object]]:
    """What is compared; quantising the rows counts."""
    rows, floats, bias = torch.from_numpy(x), torch.from_numpy(weight), torch.zeros(len(weight))
    half = [part.to(torch.bfloat16) for part in (rows, floats, bias)]
    zeros = bias.numpy().copy()
    zeros.flags.writeable = False
    found: dict[str, Callable[[], object]] = {
        "torch FP32": lambda: F.linear(rows, floats, bias),
        "oneDNN FP32": lambda: affine(rows, floats, bias),
        "torch BF16": lambda: F.linear(*half),
        "int8 (W8A8)": lambda: small.floats(Rows.of(x)),
    }
    for name, part in packed.items():
        if len(x) <= FEW:
            found[f"packed {name}"] = lambda part=part: part.times(x, zeros)
        else:
            found[f"packed {name}"] = lambda part=part: F.linear(rows, part.floats(), bias)
    return found


@torch.inference_mode()
def interleaved(cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS + 2):
        for name, work in cases.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[2:]) for name, found in times.items()}
