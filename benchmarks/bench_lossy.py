"""What lossy versions save and lose: bytes and model quality by method, on fine-tuned MiniLM, and over ten versions.

The pairs are those of ``benchmarks/trained_pairs.py``; the change of each is sent exactly and by every lossy method.
"cosine" is that of the vectors of the exact and the lossy version over the built-in texts; for scale, "not sent at all"
compares the exact version with its base. "MRR" is what questions about the standard library find among its texts.
Error feedback is shown on the ten checkpoints of the small model that is trained from scratch: every step from one
to the next is added to what the last lossy version has and made lossy; the last one is compared with the exact one.
``AIOS_BENCH_PAIRS`` names some pairs only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from delta_measure import encoded
from trained_pairs import MODEL, RECIPES, Recipe, base_weights, checkpoints, tuned
from trained_versions import pair

from aios_node.delta.lossy.compress import compress
from aios_node.delta.lossy.loss import loss
from aios_node.delta.lossy.settings import LossySettings
from aios_node.engine.evolve.pairs import Document, make_pairs
from aios_node.engine.evolve.retrieval import score
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.quant.agreement import agreement
from aios_node.engine.quant.blocks import Tensor, dense
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.lowrank import Factors, factor_names
from aios_node.engine.weights.network import NetworkWeights
from aios_node.node.demo.documents import standard_library
from aios_node.node.jobs.probe import PROBE_TEXTS

METHODS = {
    "top_k, 1 %": LossySettings("top_k"),
    "top_k, 10 %": LossySettings("top_k", share=0.1),
    "int8": LossySettings("int8"),
    "int4": LossySettings("int4"),
    "sign": LossySettings("sign"),
}
PAIRS = (
    ("lora-63", "float32"),
    ("selective-63", "float32"),
    ("full-63", "float32"),
    ("full-63", "bfloat16"),
    ("full-15", "bfloat16"),
)
ASKED, TOKENS = 200, 64
SCRATCH = "scratch"

Weights = Mapping[str, Tensor]
_COLUMNS = ["sent", "bytes", "times smaller than exactly", "missing of the update", "cosine", "cosine, p1", "MRR"]


def run() -> dict[str, object]:
    """Exact bytes and quality; nothing here depends on the speed of the machine."""
    known = (*dict.fromkeys(name for name, _ in PAIRS), SCRATCH)
    wanted = os.environ.get("AIOS_BENCH_PAIRS", ",".join(known)).split(",")
    exam, figures = Exam.of(), dict[str, object]()
    for recipe in RECIPES:
        for name, precision in PAIRS:
            if recipe.name == name and name in wanted:
                print(f"   {name} {precision}", flush=True)
                rows = list(_rows(recipe, precision, exam))
                figures[f"{name}, {precision}"] = {"columns": _COLUMNS, "rows": rows}
    if SCRATCH in wanted:
        figures["from scratch, nine updates after each other"] = _feedback()
    return figures


@dataclass(frozen=True)
class Exam:
    """What every version is asked: vectors of the built-in texts, and questions about documents."""

    network: EncoderConfig
    tokenizer: FastTokenizer
    questions: list[str]
    documents: list[str]

    @classmethod
    def of(cls) -> Exam:
        source = import_folder(MODEL)
        library = [one for one in standard_library() if one.keeper != "workstation"]  # the others were learned from
        pairs = make_pairs([Document(one.name, one.text) for one in library])
        chosen = pairs[:: max(1, len(pairs) // ASKED)][:ASKED]
        return cls(
            EncoderConfig.from_bytes(source.files["config.json"]),
            FastTokenizer.from_bytes(source.files["tokenizer.json"]),
            [one.question for one in chosen],
            [one.answer for one in chosen],
        )

    def sit(self, weights: Weights) -> tuple[np.ndarray[Any, Any], float]:
        """Vectors of the built-in texts, and mean reciprocal rank."""
        encoder = SentenceEncoder(Encoder.build(self.network, NetworkWeights(weights)), self.tokenizer)
        vectors = encoder.encode(list(PROBE_TEXTS))
        questions, documents = (encoder.encode(texts, TOKENS) for texts in (self.questions, self.documents))
        return vectors, score(questions, documents, list(range(len(self.questions)))).mrr


def _rows(recipe: Recipe, precision: str, exam: Exam) -> Iterator[list[object]]:
    base, exact = pair(recipe, precision)
    whole = len(encoded(base, exact))
    (before, first), (after, mrr) = exam.sit(base), exam.sit(exact)
    unsent = agreement(after, before)
    yield ["not sent at all", 0, None, 1.0, _short(unsent.mean), _short(unsent.p1), _short(first)]
    yield ["exactly", whole, 1.0, 0.0, 1.0, 1.0, _short(mrr)]
    if recipe.kind == "lora":
        told = len(encoded(*_told(recipe)))
        yield ["exactly, as factors", told, _times(whole / told), 0.0, 1.0, 1.0, _short(mrr)]
    for name, settings in METHODS.items():
        made = dict(compress(base, exact, settings).weights)
        size, missing = len(encoded(base, made)), loss(base, exact, made).update_error
        vectors, found = exam.sit(made)
        agreed = agreement(after, vectors)
        quality = [_short(each) for each in (missing, agreed.mean, agreed.p1, found)]
        yield [name, size, _times(whole / size), *quality]


def _told(recipe: Recipe) -> tuple[Weights, Weights]:
    """A merged adapter in float32, with its factors beside it as a node keeps them."""
    base, target = base_weights(), dict[str, Tensor]()
    _, stored = tuned(recipe)
    for name, tensor in base.items():
        if set(names := factor_names(name)) <= set(stored):
            factors = Factors.of(*(dense(stored[each]).astype(np.float32) for each in names))
            target |= {name: factors.add(tensor.ravel()).reshape(tensor.shape), **factors.stored(name)}
    return base, {**base, **target}


def _feedback() -> dict[str, Any]:
    """Bytes of nine lossy updates, and what is missing in the end with and without error feedback."""
    chain = [{name: tensor.astype(np.float32) for name, tensor in one.items()} for one in checkpoints()]
    exact = sum(len(encoded(old, new)) for old, new in pairwise(chain))
    rows: list[list[object]] = [["exactly", exact, 0.0, 0.0]]
    for name, settings in METHODS.items():
        size, missing = _sent(chain, settings, fed=True)
        _, unfed = _sent(chain, settings, fed=False)
        rows.append([name, size, _short(missing), _short(unfed)])
    columns = ["sent", "bytes", "missing of all updates, with error feedback", "without"]
    return {"columns": columns, "rows": rows}


def _sent(chain: list[dict[str, np.ndarray[Any, Any]]], settings: LossySettings, *, fed: bool) -> tuple[int, float]:
    held: dict[str, Any] = chain[0]
    size, residual = 0, None
    for old, new in pairwise(chain):
        target = {name: tensor + (new[name] - old[name]) for name, tensor in held.items()}
        made = compress(held, target, settings, residual if fed else None)
        weights, residual = dict(made.weights), dict(made.residual)
        size += len(encoded(held, weights))
        held = dict(NetworkWeights(weights))
    gap = sum(float(np.square(held[name] - tensor, dtype=np.float64).sum()) for name, tensor in chain[-1].items())
    way = sum(float(np.square(chain[0][name] - one, dtype=np.float64).sum()) for name, one in chain[-1].items())
    return size, float(np.sqrt(gap / way))


def _short(value: float) -> float:
    return round(value, 5)


def _times(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    print(run())
