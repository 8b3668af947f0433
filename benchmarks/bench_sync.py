"""A trained version as a delta against a full copy: bytes and time, for each precision.

The encoder is really adapted to the standard library's documentation; derived precisions are rebuilt with
frozen scales, as a node does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from aios_node.delta.codec.codecs import CODECS
from aios_node.engine.evolve.adapt import adapt
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.pairs import Document, make_pairs, split_pairs
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.folder import VersionFolder, write_folder
from aios_node.node import jobs
from aios_node.node.demo.documents import standard_library

ROOT = Path(__file__).resolve().parent.parent
STEPS = 40


def run() -> dict[str, object]:
    """Exact bytes; seconds of building and applying each package in this process."""
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    try:
        return measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> dict[str, object]:
    """Train, quantise both versions, and send each pair both ways."""
    source = import_folder(ROOT / ".cache" / "minilm")
    documents = [d for d in standard_library() if d.keeper == "workstation"][:300]
    split = split_pairs(make_pairs([Document(d.name, d.text) for d in documents]))
    trained = adapt(source.weights, source.files, split, LoRAConfig(steps=STEPS))
    old: dict[str, Mapping[str, Tensor]] = {"fp32": source.weights}
    new: dict[str, Mapping[str, Tensor]] = {"fp32": trained.weights}
    for quant in ("int8", "int4", "int2"):
        quantizer = ArrowQuantizer(preset(quant))
        old[quant] = quantizer.quantize(source.weights)
        new[quant] = quantizer.quantize(trained.weights, previous=old[quant])
    figures: dict[str, object] = {
        "held-out MRR before": round(trained.report.before.mrr, 3),
        "held-out MRR after": round(trained.report.after.mrr, 3),
    }
    for precision, weights in old.items():
        base = write_folder(folder / precision / "v1", weights, source.files)
        target = write_folder(folder / precision / "v2", new[precision], source.files, parents=[base.version])
        figures[precision] = compare(folder / precision, base, target)
    return figures


def compare(folder: Path, base: VersionFolder, target: VersionFolder) -> dict[str, object]:
    """One pair of versions."""
    delta = package(folder, base.path, target.path)
    full = package(folder, None, target.path)
    return {
        "delta bytes": delta["bytes"],
        "full bytes on the wire": full["bytes"],
        "raw bytes": delta["full_bytes"],
        "saved against full sync": {
            "value": round(1 - delta["bytes"] / full["bytes"], 4),
            "target": "> 0.8",
        },
        "ratio over everything": round(delta["full_bytes"] / delta["bytes"], 1),
        "ratio over the changed tensors": round(delta["changed_bytes"] / delta["bytes"], 2),
        "time of delta over time of full": round(delta["seconds"] / full["seconds"], 2),
        "delta seconds": round(delta["seconds"], 2),
        "full seconds": round(full["seconds"], 2),
    }


def package(folder: Path, base: Path | None, target: Path) -> dict[str, float]:
    """Build, apply and verify one package."""
    name = "delta" if base else "full"
    started = time.perf_counter()
    info = jobs.build_package(
        jobs.PackageJob(base, target, None, tuple(CODECS), folder / f"{name}.pkg"), lambda _fraction, _text: None
    )
    jobs.apply_package(
        jobs.ApplyJob(folder / f"{name}.pkg", base, folder / f"{name}-applied"), lambda _fraction, _text: None
    )
    seconds = time.perf_counter() - started
    return {
        "bytes": info.bytes,
        "full_bytes": info.full_bytes,
        "changed_bytes": info.changed_bytes,
        "seconds": seconds,
    }
