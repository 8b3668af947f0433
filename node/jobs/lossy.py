"""Lossy versions in jobs: make one of an exact version, say what it lost, keep that for the next.

What is lost is reported as what a model's vectors and bytes say; retrieval figures come from the job that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios_node.delta.lossy.settings import LossySettings
    from aios_node.engine.quant.blocks import Tensor
    from aios_node.node.jobs.convert import ImportJob

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LossyPlan:
    """How to lose, and where to keep what is lost.

    ``residual``: folder of what the base lacks, or None. ``kept``: an empty folder for what the new version lacks.
    ``private``: whether that was made of noisy weights alone.
    """

    settings: LossySettings
    kept: Path
    residual: Path | None = None
    private: bool = False


@dataclass(frozen=True)
class LossyImportJob:
    """An import, made from the version in ``base``, which is its only parent."""

    load: ImportJob
    base: Path
    lossy: LossyPlan


class LossyMaker:
    """Makes weights lossy in memory: for jobs that judge them before they are written."""

    def __init__(self, plan: LossyPlan) -> None:
        self._plan = plan
        self.exact: Mapping[str, Tensor] = {}
        self._lost: dict[str, NDArray[np.float32]] = {}

    def __call__(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The lossy weights that lead from ``old`` to (almost) ``new``; ``exact`` is then ``new``."""
        from aios_node.delta.lossy.compress import compress
        from aios_node.engine.weights.folder import read_folder

        with ExitStack() as stack:
            plan = self._plan
            kept = stack.enter_context(read_folder(plan.residual).weights()) if plan.residual else None
            made = compress(old, new, plan.settings, kept)  # type: ignore[arg-type]  # plain float32 is what was kept
            self._lost = dict(made.residual)
            self.exact = new
            return dict(made.weights)

    def recipe(self, exact: Mapping[str, Any]) -> dict[str, Any]:
        """What the version's recipe says; of what lost nothing, nothing."""
        return self._plan.settings.recipe(exact) if self._lost else dict(exact)

    def keep(self) -> None:
        """Write what was lost."""
        if self._lost:
            keep_residual(self._plan, self._lost)


def keep_residual(plan: LossyPlan, lost: Mapping[str, NDArray[np.float32]]) -> None:
    """Write what a version lacks into ``plan.kept``."""
    from aios_node.engine.weights.folder import write_folder
    from aios_node.node.residuals import PRIVATE

    write_folder(plan.kept, lost, {}, recipe={PRIVATE: plan.private})


def import_lossy(job: LossyImportJob, progress: Progress) -> dict[str, Any]:
    """Read files and write them as a lossy version of what is there; returns what was lost (see ``figures``).

    The files say all that is wanted, so that what the base lacks is in the update anyway. Raises BadRequest where
    nothing can travel as an update.
    """
    from aios_node.delta.lossy.compress import compress
    from aios_node.engine.errors import BadRequest
    from aios_node.engine.weights.convert.detect import import_any
    from aios_node.engine.weights.folder import read_folder, write_folder

    progress(0.0, "reading")
    load, settings = job.load, job.lossy.settings
    source = import_any(load.src, load.format)
    with read_folder(job.base).weights() as base:
        made = compress(base, source.weights, settings)
        if not made.residual:
            raise BadRequest(
                "no tensor in these files is an unquantised float that changed and has kept its shape: "
                "import them without --lossy"
            )
        progress(0.2, "writing")
        recipe = settings.recipe({"method": "import"})
        written = write_folder(load.folder, made.weights, source.files, parents=load.parents, recipe=recipe)
        keep_residual(job.lossy, made.residual)
        progress(0.6, "measuring")
        with written.weights() as lossy:
            return figures(settings, base, source.weights, lossy, source.files)


def figures(
    settings: LossySettings,
    base: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    lossy: Mapping[str, Tensor],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """What a lossy version costs and saves, beside the settings.

    ``bytes``, ``exact_bytes``: of the deltas from the base; ``cosine_mean``, ``cosine_p1``: of the vectors of the
    built-in texts, None for what computes none; ``tensors``, ``update_error``, ``relative_error``: see lossy.loss.
    """
    from aios_node.delta.lossy.loss import loss
    from aios_node.engine.quant.agreement import agreement

    vectors = [_vectors(weights, files) for weights in (exact, lossy)]
    agreed = None if vectors[0] is None or vectors[1] is None else agreement(vectors[0], vectors[1])
    return {
        **settings.to_json(),
        **loss(base, exact, lossy).to_json(),
        "bytes": _delta_bytes(base, lossy),
        "exact_bytes": _delta_bytes(base, exact),
        "cosine_mean": agreed and agreed.mean,
        "cosine_p1": agreed and agreed.p1,
    }


def _vectors(weights: Mapping[str, Tensor], files: Mapping[str, bytes]) -> NDArray[np.float32] | None:
    """Vectors of the built-in texts; None where a version computes none."""
    from aios_node.engine.errors import AiosError
    from aios_node.engine.nets.config import EncoderConfig
    from aios_node.engine.nets.encoder import Encoder
    from aios_node.engine.nets.sentences import SentenceEncoder
    from aios_node.engine.tokenizer import FastTokenizer
    from aios_node.engine.weights.network import NetworkWeights
    from aios_node.node.jobs.probe import PROBE_TEXTS

    if not {"config.json", "tokenizer.json"} <= set(files):
        return None
    try:
        network = Encoder.build(EncoderConfig.from_bytes(files["config.json"]), NetworkWeights(weights))
        return SentenceEncoder(network, FastTokenizer.from_bytes(files["tokenizer.json"])).encode(PROBE_TEXTS)
    except AiosError:
        return None  # a model of another kind


class _Counter:
    """A writer that only counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self.bytes += len(data)


def _delta_bytes(base: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> int:
    from aios_node.delta.codec.diff import encode_to

    counter = _Counter()
    encode_to(base, target, counter)
    return counter.bytes
