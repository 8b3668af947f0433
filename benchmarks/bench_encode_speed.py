"""Encoding texts with MiniLM in every mode, against torch and ONNX Runtime in the same process.

Everybody gets the same texts in the same batches and the same number of threads, in interleaved rounds. Torch FP32 is
what sentence-transformers computes: functional linear, attention and layer norm. ONNX Runtime needs the ``bench``
extra; without it, its figures are left out and the result says so.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rivals_onnx
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray

from aios_node.engine.calibration.stdlib import standard_library
from aios_node.engine.devices import compute_threads
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, tensor_shapes
from aios_node.engine.nets.linear import Linear, Projection
from aios_node.engine.nets.measured import kernel_table
from aios_node.engine.nets.sentences import CPU_BATCH_TOKENS, length_batches
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.convert.huggingface import ModelSource, import_folder
from aios_node.engine.weights.folder import write_folder

ROOT = Path(__file__).resolve().parent.parent
TEXTS = 512
ROUNDS = 3
SINGLE = 60
"""Texts that are encoded one by one."""

BLOCK = 20
"""Single texts in a row before it is another's turn; threads that wait for work burn the cores for a while."""

PAUSE_S = 0.3

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Torch32:
    """The rival in plain torch: all threads on one batch after the other."""

    net: Encoder
    tokenizer: FastTokenizer

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector per text, float32 [n, d]."""
        rows = self.tokenizer.token_ids(texts, self.net.config.max_tokens)
        out = np.empty((len(texts), self.net.config.hidden_size), np.float32)
        for chosen in length_batches([len(row) for row in rows], CPU_BATCH_TOKENS):
            batch = self.tokenizer.pad([rows[index] for index in chosen])
            out[chosen] = self.net(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
        return out


def plain(_: str, linear: Linear) -> Projection:
    """A linear map as users of torch write it."""
    weight, bias, gelu = linear.weight, linear.bias, linear.activation == "gelu"
    return lambda x: F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)


def run() -> dict[str, object]:
    """Medians, and ratios within the same rounds."""
    threads = compute_threads()
    torch.set_num_threads(threads)
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    try:
        source = import_folder(ROOT / ".cache" / "minilm")
        config = EncoderConfig.from_bytes(source.files["config.json"])
        tokenizer = FastTokenizer.from_bytes(source.files["tokenizer.json"])
        write_models(folder, source, config)
        engines = open_engines(folder)
        cases: dict[str, Encode] = {name: engine.encode for name, engine in engines.items()}
        cases["torch FP32"] = Torch32(Encoder.build(config, source.weights, wrap=plain), tokenizer).encode
        notes = add_rivals(cases, folder, source, config, tokenizer, threads)
        figures = {**notes, "threads": threads, **measured(cases), "peak memory": memory(folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["kernels, microseconds by rows"] = kernel_table(folder)["microseconds"]
    return figures


def write_models(folder: Path, source: ModelSource, config: EncoderConfig) -> None:
    """MiniLM in four precisions, and a toy of two layers."""
    write_folder(folder / "fp32", source.weights, source.files)
    for quant in ("int8", "int4", "int2"):
        write_folder(folder / quant, ArrowQuantizer(preset(quant)).quantize(source.weights), source.files)
    raw = json.loads(source.files["config.json"])
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    files = {**source.files, "config.json": json.dumps({**raw, **shape}).encode()}
    small = tensor_shapes(EncoderConfig.from_bytes(files["config.json"]))
    random = np.random.default_rng(0)
    toy = {name: random.standard_normal(side).astype(np.float32) for name, side in small.items()}
    write_folder(folder / "toy", ArrowQuantizer(preset("int4")).quantize(toy), files)


def open_engines(folder: Path) -> dict[str, ArrowEngine]:
    """Our own cases."""
    engines = {f"FP32, {mode}": ArrowEngine.open(folder / "fp32", "cpu", mode=mode) for mode in ("float32", "bfloat16")}
    for quant in ("int8", "int4", "int2"):
        engines[f"{quant}, int8"] = ArrowEngine.open(folder / quant, "cpu", mode="int8")
        engines[f"{quant}, packed"] = ArrowEngine.open(folder / quant, "cpu", mode="packed")
    return engines


def add_rivals(
    cases: dict[str, Encode],
    folder: Path,
    source: ModelSource,
    config: EncoderConfig,
    tokenizer: FastTokenizer,
    threads: int,
) -> dict[str, object]:
    """ONNX Runtime's cases, where it is installed, with our batches; else a note."""
    try:
        rivals_onnx.check_installed()
    except rivals_onnx.NotInstalled as error:
        return {"ONNX Runtime": str(error)}
    rivals_onnx.BATCH_TOKENS = CPU_BATCH_TOKENS
    model = folder / "fp32.onnx"
    rivals_onnx.write_model(model, config, source.weights)
    cases["ORT FP32"] = rivals_onnx.OnnxEncoder(model, tokenizer, config.max_tokens, threads).encode
    for name in ("ORT dynamic INT8", "ORT MatMulNBits 4-bit g32"):
        target = folder / f"{len(cases)}.onnx"
        rivals_onnx.quantisers()[name](model, target)
        cases[name] = rivals_onnx.OnnxEncoder(target, tokenizer, config.max_tokens, threads).encode
    return {}


def measured(cases: Mapping[str, Encode]) -> dict[str, object]:
    """Throughput, latency and agreement of all cases."""
    texts = list(standard_library(TEXTS).texts)
    vectors = {name: encode(texts) for name, encode in cases.items()}
    seconds = batched(cases, texts)
    single = one_by_one(cases, texts[:SINGLE])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    halves = {name: [1000 * float(np.percentile(times, q)) for q in (50, 95, 99)] for name, times in single.items()}
    return {
        "texts per second": {name: round(TEXTS / value) for name, value in medians.items()},
        "ratios": ratios(medians, {name: row[0] for name, row in halves.items()}),
        "one text, ms p50": {name: round(row[0], 2) for name, row in halves.items()},
        "one text, ms p95": {name: round(row[1], 2) for name, row in halves.items()},
        "one text, ms p99": {name: round(row[2], 2) for name, row in halves.items()},
        "cosine to stored weights": agreements(vectors),
        "texts per second by texts in a call": by_size(cases, texts),
        "seconds": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
    }


def batched(cases: Mapping[str, Encode], texts: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of every round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, encode in cases.items():
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def one_by_one(cases: Mapping[str, Encode], texts: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of every text."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for start in range(0, len(texts), BLOCK):
        for name, encode in cases.items():
            time.sleep(PAUSE_S)
            encode(texts[start : start + 1])
            for text in texts[start : start + BLOCK]:
                started = time.perf_counter()
                encode([text])
                seconds[name].append(time.perf_counter() - started)
    return seconds


def by_size(cases: Mapping[str, Encode], texts: Sequence[str]) -> dict[str, object]:
    """Throughput of calls with few and many texts, of the cases that people choose between."""
    found: dict[str, object] = {}
    for size in (1, 8, 64, 256):
        for name in ("int4, int8", "int4, packed", "ORT dynamic INT8"):
            if name in cases:
                times = []
                for start in range(0, 256, 64):
                    started = time.perf_counter()
                    cases[name](texts[start : start + size])
                    times.append(time.perf_counter() - started)
                found[f"{size}: {name}"] = round(size / statistics.median(times))
    return found


def ratios(batch: Mapping[str, float], single: Mapping[str, float]) -> dict[str, object]:
    """The bars, for the 8-bit mode of each precision."""
    found: dict[str, object] = {}
    for quant in ("int8", "int4", "int2"):
        ours = f"{quant}, int8"
        faster = {"value": round(batch["torch FP32"] / batch[ours], 2), "unit": "times as fast", "target": ">= 3"}
        found[f"{quant} to torch FP32"] = faster
        if rival := batch.get("ORT dynamic INT8"):
            found[f"{quant} to ORT INT8"] = {
                "value": round(rival / batch[ours], 2), "unit": "times as fast", "target": ">= 1"
            }  # fmt: skip
            share = round(single[ours] / single["ORT dynamic INT8"], 2)
            found[f"{quant}, one text"] = {"value": share, "unit": "of ORT INT8's time", "target": "<= 1.2"}
    return found


def agreements(vectors: Mapping[str, Vectors]) -> dict[str, object]:
    """The 8-bit mode against its stored weights as floats, with which the packed mode computes; others against FP32."""
    found: dict[str, object] = {}
    for name in vectors:
        quant, _, mode = name.partition(", ")
        stored = f"{quant}, packed" if mode == "int8" else "FP32, float32"
        if mode in {"int8", "bfloat16"} or name == "ORT dynamic INT8":
            cosine = (vectors[name] * vectors[stored]).sum(axis=1)
            target = {"target": ">= 0.995"} if mode == "int8" else {}
            found[name] = {
                "mean": {"value": round(float(cosine.mean()), 5), **target},
                "p1": round(float(np.percentile(cosine, 1)), 5),
                "least": round(float(cosine.min()), 5),
            }
    return found


def memory(folder: Path) -> dict[str, object]:
    """Peak memory of fresh processes, in MiB above importing and above the libraries' own start."""
    found: dict[str, object] = {}
    for quant, mode in (
        ("fp32", "float32"),
        ("int8", "int8"),
        ("int8", "packed"),
        ("int4", "packed"),
        ("int2", "packed"),
    ):
        size = sum(file.stat().st_size for file in (folder / quant).glob("*.parquet")) / 2**20
        strict, started = (peak(folder / quant, mode, toy) for toy in ("", str(folder / "toy")))
        target = {"target": f"<= {size + 25:.0f}"} if mode == "packed" else {}
        over = {
            "over imports": strict["peak"] - strict["imports"],
            "over started": started["peak"] - started["started"],
        }
        found[f"{quant}, {mode}"] = {
            "file": {"value": round(size, 1), "unit": "MiB"},
            **{name: {"value": round(value, 1), "unit": "MiB", **target} for name, value in over.items()},
        }
    return found


def peak(folder: Path, mode: str, toy: str) -> Any:
    """What peak_memory says."""
    script = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), mode, toy], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
