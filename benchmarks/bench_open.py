"""Opening MiniLM for use, against safetensors' own loader in the same process."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.folder import write_folder

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".cache" / "minilm"
RUNS = 15


def milliseconds(work: Callable[[], object]) -> float:
    """One call."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def run() -> dict[str, object]:
    """Medians over interleaved runs, files in the page cache; ratios against load_file."""
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    try:
        source = import_folder(MODEL)
        write_folder(folder / "fp32", source.weights, source.files)
        for quant in ("int8", "int4"):
            weights = ArrowQuantizer(preset(quant)).quantize(source.weights)
            write_folder(folder / quant, weights, source.files)
        cases: dict[str, Callable[[], object]] = {
            "safetensors load_file": lambda: sum(t.sum() for t in load_file(MODEL / "model.safetensors").values()),
            "open": lambda: ArrowEngine.open(folder / "fp32", device="cpu").close(),
            "open and encode one text": lambda: first_answer(folder / "fp32"),
            "open int8": lambda: ArrowEngine.open(folder / "int8", device="cpu").close(),
            "open int4": lambda: ArrowEngine.open(folder / "int4", device="cpu").close(),
        }
        torch.set_num_threads(2)
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(RUNS + 1):
            for name, work in cases.items():
                times[name].append(milliseconds(work))
        medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rival = medians["safetensors load_file"]
    figures: dict[str, object] = {name: {"value": round(value, 1), "unit": "ms"} for name, value in medians.items()}
    figures["open"] = {"value": round(medians["open"], 1), "unit": "ms", "target": "< 100 ms"}
    figures["ratio"] = {
        "value": round(medians["open"] / rival, 2),
        "unit": "of load_file with every value touched once",
    }
    return figures


def first_answer(path: Path) -> None:
    """What a user waits for."""
    with ArrowEngine.open(path, device="cpu") as engine:
        engine.encode(["a text"])
