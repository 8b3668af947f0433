"""Version folder -> quantised version folder, by a recipe of any method."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.delta.offers import Source
from aios_node.engine.errors import NotFound

if TYPE_CHECKING:
    from aios_node.engine.calibration.cache import CalibrationCache
    from aios_node.engine.calibration.sets import CalibrationSet
    from aios_node.engine.quant.recipe import QuantizationConfig
    from aios_node.engine.weights.folder import VersionFolder

Progress = Callable[[float, str], None]
WRITING = 0.95
"""The share of the work that is done when only writing is left."""

SPIN = "100000"
"""How often a compute thread looks for new work before it sleeps: training gives it some thousand times a second."""

KEPT_WORK = 8
"""Unfinished pieces of work whose checkpoints are kept; the oldest go."""


@dataclass(frozen=True)
class QuantizeJob:
    """``recipe`` is a QuantizationConfig as JSON; ``previous``: the version whose scales stay frozen.

    ``texts``: a file to calibrate with, instead of the recipe's own texts or the default ones. ``scratch``: where
    calibration texts and checkpoints are kept. ``target_bpw``: bits per weight, all tensors together, instead of the
    recipe's bytes. ``measured``: whether the result's vectors are compared with the source's.
    """

    source_folder: Path
    folder: Path
    recipe: Mapping[str, Any]
    source: Source | None
    parents: tuple[str, ...]
    previous: Path | None
    scratch: Path
    texts: Path | None = None
    target_bpw: float | None = None
    measured: bool = True


def quantize(job: QuantizeJob, progress: Progress) -> dict[str, Any]:
    """Write the quantised version to ``job.folder``; returns source_bytes, recipe, warnings and quality.

    ``quality`` is the agreement of the vectors of some texts with the source's (see validate.quality), None where that
    was not asked for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # heard if this worker has not computed with torch before
    from aios_node.engine.quant.recipe import QuantizationConfig
    from aios_node.engine.tuning.quantize import Network, needs_texts, quantize_model
    from aios_node.engine.weights.folder import read_folder, write_folder
    from aios_node.engine.weights.network import NetworkWeights

    source = read_folder(job.source_folder)
    recipe = _with_target(job, QuantizationConfig.from_json(job.recipe), source)
    files = {name: source.read_file(name) for name in source.files}
    network = Network.of(files) if needs_texts(recipe) else None
    texts = _texts(job, recipe, progress) if needs_texts(recipe) else None
    work = _work_folder(job, recipe, source, texts)
    warnings: list[str] = []
    with ExitStack() as stack:
        weights = NetworkWeights(stack.enter_context(source.weights()))
        old = read_folder(job.previous) if job.previous else None
        made = quantize_model(
            weights,
            recipe,
            network=network,
            texts=texts,
            previous=stack.enter_context(old.weights()) if old else None,
            work=work,
            progress=lambda part, what: progress(WRITING * part, what),
            warn=warnings.append,
        )
        progress(WRITING, "writing")
        write_folder(
            job.folder,
            made.weights,
            files,
            parents=job.parents,
            recipe=made.recipe.to_json(),
            derived_from={"model": job.source.model, "version": job.source.version} if job.source else None,
            reuse=old,
        )
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "source_bytes": source.manifest.nbytes,
        "recipe": made.recipe.to_json(),
        "warnings": warnings,
        "quality": _quality(job, progress),
    }


def _quality(job: QuantizeJob, progress: Progress) -> dict[str, float] | None:
    from aios_node.node.jobs.validate import quality

    if not job.measured:
        return None
    progress(0.97, "measuring")
    return quality(job.source_folder, job.folder)


def _with_target(job: QuantizeJob, recipe: QuantizationConfig, source: VersionFolder) -> QuantizationConfig:
    from aios_node.engine.quant.budget import bytes_for
    from aios_node.engine.quant.dtypes import count_of
    from aios_node.engine.weights.network import is_beside_network

    if job.target_bpw is None:
        return recipe
    tensors = (entry for entry in source.manifest.tensors if not is_beside_network(entry.name))
    count = sum(count_of(entry.shape) for entry in tensors)
    return replace(recipe, target_bytes=bytes_for(job.target_bpw, count))


def _texts(job: QuantizeJob, recipe: QuantizationConfig, progress: Progress) -> CalibrationSet:
    """What to calibrate with: the file that was given, the texts that the recipe names, or the default ones."""
    from aios_node.engine.calibration.cache import CalibrationCache
    from aios_node.engine.calibration.load import load_texts
    from aios_node.engine.calibration.sets import MAX_TEXTS

    progress(0.0, "reading calibration texts")
    cache = CalibrationCache(job.scratch / "calibration")
    if job.texts is not None:
        given = load_texts(job.texts, limit=MAX_TEXTS)
        cache.put(given)
        return given
    if recipe.calibration is None:
        return cache.standard_library()
    return _named(cache, recipe.calibration)


def _named(cache: CalibrationCache, calibration: Mapping[str, Any]) -> CalibrationSet:
    """The texts that a recipe was carried out with; Python's own may have changed since and are read again."""
    try:
        return cache.get(str(calibration["sha256"]))
    except NotFound:
        if str(calibration["source"]).startswith("standard library"):
            return cache.standard_library()
        raise NotFound(
            f"the calibration texts {calibration['source']!r:.200} of this recipe are not kept here: "
            f"quantise again with --calib FILE"
        ) from None


def _work_folder(
    job: QuantizeJob, recipe: QuantizationConfig, source: VersionFolder, texts: CalibrationSet | None
) -> Path | None:
    """Where checkpoints of exactly this work lie: same source, recipe, texts, program and threads."""
    if texts is None:
        return None
    import torch

    from aios_node import __version__
    from aios_node.engine.weights.names import canonical_json

    key = canonical_json(
        {
            "source": source.version,
            "previous": job.previous.name if job.previous else None,
            "recipe": recipe.to_json(),
            "texts": texts.sha256,
            "program": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    )
    root = job.scratch / "quantizing"
    folder = root / hashlib.sha256(key).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted((one for one in root.iterdir() if one != folder), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in others[KEPT_WORK - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
