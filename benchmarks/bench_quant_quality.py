"""What quantisation costs in quality: size against cosine, ranking and retrieval, rivals included.

Every precision is compared with the FP32 encoder on texts that calibration never saw (see corpus). Our own
precisions are measured as their stored weights say. Those that take long to make (tuned) come out of a folder of
version folders: ``run.py --models DIR quant-quality``.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rivals_onnx
from corpus import DOCUMENTED, Corpus, corpus, package_folder, sample
from numpy.typing import NDArray

from aios_node.engine.calibration.stdlib import standard_library as standard_library_texts
from aios_node.engine.evolve.pairs import Document, Pair, make_pairs
from aios_node.engine.evolve.retrieval import score
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.quant.agreement import agreement, cosines
from aios_node.engine.quant.recipe import QuantizationConfig, preset
from aios_node.engine.runtime.compare import open_stored
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.tuning.quantize import Network, quantize_model
from aios_node.engine.weights.convert.huggingface import ModelSource, import_folder
from aios_node.engine.weights.folder import read_folder, write_folder
from aios_node.node.demo.documents import standard_library
from aios_node.node.report.plots import Point, size_against_quality

ROOT = Path(__file__).resolve().parent.parent
TUNED = "int2 preset, tuned"
"""Name of the folder under ``--models`` with the tuned 2-bit model."""

GPTQ_TEXTS = 512
LARGEST_LOW = 12e6
"""Bytes that a model of few bits may take."""

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Candidate:
    """Something to measure: bytes of its tensors and of its files, and its answers."""

    name: str
    tensor_bytes: int
    disk_bytes: int
    encode: Encode
    rival: bool = False


@dataclass(frozen=True)
class Questions:
    """Questions and the texts that answer them, one each, out of documentation that calibration never saw."""

    asked: list[str]
    texts: list[str]

    @classmethod
    def of_packages(cls) -> Questions:
        """Names of documented functions and classes, asked as questions; PER_KIND of all packages together."""
        found = [document for name in DOCUMENTED for document in standard_library(package_folder(name))]
        pairs: dict[str, Pair] = {
            pair.answer: pair for pair in make_pairs([Document(each.name, each.text) for each in found])
        }
        chosen = [pairs[answer] for answer in sample(pairs)]
        return cls([pair.question for pair in chosen], [pair.answer for pair in chosen])


@dataclass(frozen=True)
class Measured:
    """All figures of one candidate."""

    candidate: Candidate
    quality: dict[str, Any]
    kinds: dict[str, dict[str, float]]
    retrieval: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """The reference's answers, which everything is compared with."""

    texts: Corpus
    questions: Questions
    reference: Vectors
    fp32_bytes: int

    def measure(self, candidate: Candidate) -> Measured:
        """Encode everything and compare."""
        print(f"   {candidate.name} ...", file=sys.stderr, flush=True)
        vectors = candidate.encode(self.texts.texts)
        asked, found = candidate.encode(self.questions.asked), candidate.encode(self.questions.texts)
        return Measured(
            candidate,
            agreement(self.reference, vectors).to_json(),
            dict(self._by_kind(cosines(self.reference, vectors))),
            dict(score(asked, found, range(len(asked))).to_json()),
        )

    def _by_kind(self, cosine: NDArray[np.float64]) -> Iterator[tuple[str, dict[str, float]]]:
        start = 0
        for kind, texts in self.texts.kinds.items():
            part = cosine[start : start + len(texts)]
            yield kind, {"mean": float(part.mean()), "p1": float(np.percentile(part, 1)), "min": float(part.min())}
            start += len(texts)


def run() -> dict[str, object]:
    """Every figure is a property of the files, not of the machine: there is nothing to repeat."""
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    try:
        return measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> dict[str, object]:
    """Make what can be made here, read the rest, measure all of it in one order."""
    source = import_folder(ROOT / ".cache" / "minilm")
    write_folder(folder / "FP32", source.weights, source.files)
    fp32 = stored("FP32", folder / "FP32")
    texts = corpus()
    bench = Bench(texts, Questions.of_packages(), fp32.encode(texts.texts), fp32.tensor_bytes)
    found = [bench.measure(fp32)]
    found += [bench.measure(candidate) for candidate in own(folder, source)]
    found += [bench.measure(stored(path.name, path)) for path in ready_made()]
    missing: dict[str, str] = {}
    try:
        found += [bench.measure(candidate) for candidate in rivals(folder, source, bench)]
    except rivals_onnx.NotInstalled as reason:
        missing["rivals"] = f"not measured: {reason}"
    return {**report(bench, found), **missing}


def stored(name: str, path: Path) -> Candidate:
    """A version folder, as its stored weights say."""
    disk = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return Candidate(name, read_folder(path).manifest.nbytes, disk, lambda texts: open_stored(path).encode(texts))


def own(folder: Path, source: ModelSource) -> Iterator[Candidate]:
    """What takes seconds or a few minutes to make: rounding that looks at weights alone, and plain GPTQ."""
    network, texts = Network.of(source.files), standard_library_texts(GPTQ_TEXTS)
    for name, recipe in recipes().items():
        made = quantize_model(source.weights, recipe, network=network, texts=texts)
        write_folder(folder / name, made.weights, source.files, recipe=made.recipe.to_json())
        yield stored(name, folder / name)


def recipes() -> dict[str, QuantizationConfig]:
    """The presets; rounding and GPTQ without a search for the best clip; scales of 4 bits, embeddings included."""
    plain = {"symmetric": False, "axis": 0, "clip": "minmax"}
    small = {"symmetric": False, "axis": 0, "clip": "mse", "scales": "double4"}
    rows = ["*embed*", {**plain, "quant": "int8", "group_size": 0}]
    halved = ["*embed*", {**small, "quant": "int4", "group_size": 32}]
    asked: dict[str, dict[str, Any]] = {
        "plain rounding 4-bit g32": {**plain, "quant": "int4", "group_size": 32, "overrides": [rows]},
        "plain rounding 2-bit g32": {**plain, "quant": "int2", "group_size": 32, "overrides": [rows]},
        "plain rounding 2-bit g16": {**plain, "quant": "int2", "group_size": 16, "overrides": [rows]},
        **{
            f"plain GPTQ {bits}-bit g32": {
                **plain,
                "quant": f"int{bits}",
                "group_size": 32,
                "overrides": [rows],
                "method": "gptq",
                "options": {"texts": GPTQ_TEXTS, "drift": 0.0, "sweeps": 0},  # as published
            }
            for bits in (4, 2)
        },
        "4-bit g32, 4-bit scales": {**small, "quant": "int4", "group_size": 32},
        "2-bit g16, 4-bit scales": {**small, "quant": "int2", "group_size": 16, "overrides": [halved]},
    }
    presets = {f"{bits} preset": preset(bits) for bits in ("int8", "int4", "int2")}
    for bits in ("int4", "int2"):
        presets[f"{bits} preset, GPTQ"] = replace(presets[f"{bits} preset"], method="gptq", options={})
    presets["up to 11.3 MB, GPTQ"] = replace(presets["int2 preset, GPTQ"], target_bytes=11_300_000)
    return presets | {name: QuantizationConfig.from_json(recipe) for name, recipe in asked.items()}


def ready_made() -> list[Path]:
    """The version folders under ``--models``."""
    named = os.environ.get("AIOS_BENCH_MODELS")
    return sorted(path.parent for path in Path(named).glob("*/manifest.json")) if named else []


def rivals(folder: Path, source: ModelSource, bench: Bench) -> Iterator[Candidate]:
    """ONNX Runtime's quantisers on the same weights. Raises unless its FP32 model says the same as ours."""
    rivals_onnx.check_installed()
    logging.disable(logging.WARNING)  # advice of the quantisers, the same every time
    config = EncoderConfig.from_bytes(source.files["config.json"])
    tokenizer = FastTokenizer.from_bytes(source.files["tokenizer.json"])
    fp32, made = folder / "fp32.onnx", folder / "rival.onnx"
    rivals_onnx.write_model(fp32, config, source.weights)
    some = bench.texts.texts[::20]
    encoder = rivals_onnx.OnnxEncoder(fp32, tokenizer, config.max_tokens)
    difference = float(np.abs(encoder.encode(some) - bench.reference[::20]).max())
    if difference > 1e-5:
        raise RuntimeError(f"the ONNX model differs from ours by {difference}: nothing can be said about rivals")
    for name, quantise in rivals_onnx.quantisers().items():
        quantise(fp32, made)
        encoder = rivals_onnx.OnnxEncoder(made, tokenizer, config.max_tokens)
        disk = made.stat().st_size + sum(map(len, source.files.values()))  # it needs a tokeniser as well
        yield Candidate(name, rivals_onnx.tensor_bytes(made), disk, encoder.encode, rival=True)


def report(bench: Bench, found: Sequence[Measured]) -> dict[str, object]:
    """Tables for people, everything for programs, and a plot."""
    return {
        "texts": bench.texts.to_json(),
        **bars(bench, found),
        "quality": quality_table(bench, found),
        "cosine by kind of text: mean / p1 / min": kind_table(found),
        "retrieval": retrieval_table(found),
        "precisions": [everything(bench, each) for each in found],
        "plots": {"size": plot(found)},
    }


def bars(bench: Bench, found: Sequence[Measured]) -> dict[str, object]:
    """The figures that were promised, with their targets."""
    by_name = {each.candidate.name: each for each in found}
    int8, int4, exact = by_name["int8 preset"], by_name["int4 preset, GPTQ"], by_name["FP32"]
    share = int8.candidate.tensor_bytes / bench.fp32_bytes
    return {
        "int8 preset": {
            "cosine mean": target(int8.quality["mean"], ">= 0.9995"),
            "bytes of FP32": target(share, "<= 0.255"),
            "largest loss of a retrieval figure": target(largest_loss(exact, int8), "< 0.02"),
        },
        "int4 preset, GPTQ": {"cosine mean": target(int4.quality["mean"], ">= 0.99")},
        **two_bits(by_name.get(TUNED)),
        **best_small(found),
    }


def two_bits(tuned: Measured | None) -> dict[str, object]:
    """The model whose linear maps all have 2 bits, where there is one (``--models``)."""
    if tuned is None:
        return {}
    return {
        TUNED: {
            "files MB": target(tuned.candidate.disk_bytes / 1e6, "<= 12"),
            "cosine mean": target(tuned.quality["mean"], ">= 0.95, goal 0.98"),
            "cosine p1": target(tuned.quality["p1"], ">= 0.90"),
            "spearman": target(tuned.quality["spearman"], ">= 0.97, goal 0.99"),
        }
    }


def largest_loss(exact: Measured, other: Measured) -> float:
    """The largest relative loss among recall at 1, recall at 10 and mean reciprocal rank."""
    names = ("recall_at_1", "recall_at_10", "mrr")
    return max(1 - other.retrieval[name] / exact.retrieval[name] for name in names)


def best_small(found: Sequence[Measured]) -> dict[str, object]:
    """The best model of our own whose files fit the promised size, if any does."""
    small = [each for each in found if not each.candidate.rival and each.candidate.disk_bytes <= LARGEST_LOW]
    if not small:
        return {}
    best = max(small, key=lambda each: each.quality["mean"])
    return {
        "best up to 12 MB on disk": {
            "name": best.candidate.name,
            "cosine mean": target(best.quality["mean"], ">= 0.95, goal 0.985"),
            "cosine p1": target(best.quality["p1"], ">= 0.90"),
            "spearman": target(best.quality["spearman"], ">= 0.97, goal 0.99"),
        }
    }


def target(value: float, promised: str) -> dict[str, object]:
    """A figure with its target."""
    return {"value": round(value, 5), "target": promised}


def quality_table(bench: Bench, found: Sequence[Measured]) -> dict[str, object]:
    """One row per candidate: sizes and agreement over all texts."""
    columns = ["precision", "tensors MB", "files MB", "of FP32", "mean", "p1", "min", "spearman", "overlap@10"]
    rows = [
        [
            each.candidate.name,
            f"{each.candidate.tensor_bytes / 1e6:.2f}",
            f"{each.candidate.disk_bytes / 1e6:.2f}",
            f"{each.candidate.tensor_bytes / bench.fp32_bytes:.2%}",
            *(f"{each.quality[key]:.4f}" for key in ("mean", "p1", "min", "spearman")),
            f"{each.quality['overlap']:.3f}",
        ]
        for each in found
    ]
    return {"columns": columns, "rows": rows}


def kind_table(found: Sequence[Measured]) -> dict[str, object]:
    """One row per candidate, one column per kind of text."""
    kinds = list(found[0].kinds)
    rows = [
        [each.candidate.name, *("{mean:.4f} / {p1:.4f} / {min:.4f}".format(**each.kinds[kind]) for kind in kinds)]
        for each in found
    ]
    return {"columns": ["precision", *kinds], "rows": rows}


def retrieval_table(found: Sequence[Measured]) -> dict[str, object]:
    """How well questions find their documentation with each candidate's own vectors."""
    keys = ("recall_at_1", "recall_at_10", "mrr")
    rows = [[each.candidate.name, *(f"{each.retrieval[key]:.4f}" for key in keys)] for each in found]
    return {"columns": ["precision", "recall@1", "recall@10", "MRR"], "rows": rows}


def everything(bench: Bench, each: Measured) -> dict[str, object]:
    """All figures of a candidate, unrounded."""
    return {
        "name": each.candidate.name,
        "rival": each.candidate.rival,
        "tensor_bytes": each.candidate.tensor_bytes,
        "disk_bytes": each.candidate.disk_bytes,
        "of_fp32": each.candidate.tensor_bytes / bench.fp32_bytes,
        "cosine": each.quality,
        "kinds": each.kinds,
        "retrieval": each.retrieval,
    }


def plot(found: Sequence[Measured]) -> str:
    """Size of the files against mean cosine; rivals are marked."""
    points = [
        Point(each.candidate.name, each.candidate.disk_bytes / 1e6, each.quality["mean"], each.candidate.rival)
        for each in found
    ]
    return size_against_quality(points, "Size against quality of MiniLM in many precisions", alone=True)
