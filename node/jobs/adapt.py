"""An encoder and a table's texts -> adapted version folder, with the evidence for or against publishing it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios_node.engine.evolve.adapt import Finish
    from aios_node.engine.quant.blocks import Tensor
    from aios_node.node.jobs.lossy import LossyMaker, LossyPlan
    from aios_node.node.privacy import PrivacyPlan

Progress = Callable[[float, str], None]
LEAST_SIMILARITY = 0.9  # mean cosine between old and new vectors: below, stored rows would be lost to new questions


@dataclass(frozen=True)
class AdaptJob:
    """``documents``: JSON lines from ``document_line``; ``steps``: None for the measured default.

    ``prox_mu``: how strongly weights are held near the parent's (FedProx). ``privacy``: noise for what is learned.
    ``lossy``: how few bits the update gets, after the noise.
    """

    base: Path
    folder: Path
    documents: Path
    steps: int | None
    seed: int
    parent: str
    prox_mu: float = 0.0
    privacy: PrivacyPlan | None = None
    lossy: LossyPlan | None = None


def document_line(document: Mapping[str, str]) -> bytes:
    """A titled text as one line for the job."""
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def adapt_encoder(job: AdaptJob, progress: Progress) -> dict[str, Any]:
    """Train, judge by held-out questions, and write the version where it is better."""
    from aios_node.delta.factors import without_costly_factors
    from aios_node.delta.merge.samples import learned
    from aios_node.delta.privacy.ledger import RECIPE_KEY
    from aios_node.engine.evolve.adapt import adapt, examine
    from aios_node.engine.evolve.config import LoRAConfig
    from aios_node.engine.evolve.pairs import make_pairs, split_pairs
    from aios_node.engine.weights.folder import read_folder, write_folder
    from aios_node.node.jobs.lossy import LossyMaker, figures

    split = split_pairs(make_pairs(list(read_documents(job.documents))), seed=job.seed)
    config = LoRAConfig(seed=job.seed, prox_mu=job.prox_mu)
    if job.steps is not None:
        config = replace(config, steps=job.steps)
    source = read_folder(job.base)
    files = {name: source.read_file(name) for name in source.files}
    progress(0.0, "measuring")
    with source.weights() as weights:
        noise = _Noise(job.privacy) if job.privacy else None
        maker = LossyMaker(job.lossy) if job.lossy else None
        result = adapt(
            weights,
            files,
            split,
            config,
            lambda at: progress(at.step / at.steps, f"loss {at.loss:.3f}"),
            finish=_in_turn(noise, maker),
        )
        report = _verdict(result.report.to_json()) | ({"privacy": noise.told()} if noise else {})
        if job.lossy and maker:
            told = figures(job.lossy.settings, weights, maker.exact, result.weights, files)
            exact = examine(maker.exact, files, split).to_json()
            report["lossy"] = {**told, "exact": exact, "fed_back": job.lossy.residual is not None}
        if report["better"]:
            how = {"method": "lora-merged", **asdict(config), "documents": len(split.train)}
            if job.privacy:
                how[RECIPE_KEY] = job.privacy.entry
            if maker:
                how = maker.recipe(how)
                maker.keep()
            recipe = learned(how, source.manifest.recipe, len(split.train))
            made = without_costly_factors(weights, result.weights)
            write_folder(job.folder, made, files, parents=[job.parent], recipe=recipe, reuse=source)
    return {**report, "questions": len(split.held_out)}


def _in_turn(noise: _Noise | None, maker: LossyMaker | None) -> Finish | None:
    """Noise first: what is lost of noisy weights is as private as they are."""
    if maker is None:
        return noise

    def finish(old: Mapping[str, Tensor], new: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
        return maker(old, noise(old, new, trained) if noise else new)

    return finish


class _Noise:
    """Makes what was learned private, before it is judged. Only trained tensors pass, and no factors of them."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan, self._length = plan, 0.0

    def __call__(
        self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], trained: Sequence[str]
    ) -> dict[str, Tensor]:
        from aios_node.delta.privacy.differential.mechanism import make_private
        from aios_node.engine.weights.names import OPTIMIZER
        from aios_node.engine.weights.network import NetworkWeights

        network = frozenset(NetworkWeights(old))
        base = {name: tensor for name, tensor in old.items() if name in network or name.startswith(OPTIMIZER)}
        chosen = network.intersection(trained)
        target = {name: new[name] if name in chosen else tensor for name, tensor in base.items()}
        made = make_private(base, target, chosen, self._plan.grid)
        self._length = made.length
        return made.weights

    def told(self) -> dict[str, Any]:
        """For the owner of the data alone: the length of the update before clipping is not private."""
        return {**self._plan.entry, "update_norm": self._length}


def _verdict(report: dict[str, Any]) -> dict[str, Any]:
    """Whether it may be published, and why not."""
    before, after, stored = (report[key]["mrr"] for key in ("before", "after", "stored"))
    reason = ""
    if report["similarity"] < LEAST_SIMILARITY:
        reason = f"vectors moved too far (mean cosine {report['similarity']:.3f}, at least {LEAST_SIMILARITY})"
    elif not report["better"]:
        reason = f"held-out MRR {before:.3f} -> {after:.3f} ({stored:.3f} with stored vectors) is not better"
    return {**report, "better": not reason, "reason": reason}


def read_documents(path: Path) -> Iterator[Any]:
    """What ``document_line`` wrote, as documents to learn from."""
    from aios_node.engine.evolve.pairs import Document

    with path.open("rb") as file:
        for line in file:
            value = json.loads(line)
            yield Document(value["title"] or value["text"].split("\n", 1)[0], value["text"])
