"""One adaptation from start to end: measure, train, merge, measure again.

Works on mappings and bytes, so that a worker process can run it on a folder that it opens itself.
Does not decide whether the result is published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.pairs import Split
from aios_node.engine.evolve.retrieval import Scores, score
from aios_node.engine.evolve.train import LoRATrainer, ProgressCallback, TrainReport
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.tokenizer import FastTokenizer

Finish = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Sequence[str]], dict[str, Tensor]]
"""(old weights, new weights, names of tensors that were trained, whatever came of it) -> weights to judge and keep"""


@dataclass(frozen=True)
class AdaptReport:
    """Held-out retrieval before and after, and how far the vectors moved.

    ``stored``: new questions against documents embedded by the old model, as right after a swap.
    ``similarity_*``: cosine between old and new vectors of held-out questions and documents.
    """

    before: Scores
    after: Scores
    stored: Scores
    question_similarity: float
    document_similarity: float
    training: TrainReport

    @property
    def similarity(self) -> float:
        """Mean cosine between old and new vectors over all held-out texts."""
        return (self.question_similarity + self.document_similarity) / 2

    @property
    def better(self) -> bool:
        """Whether held-out questions find more with documents embedded anew, and no less without."""
        return (
            self.after.mrr > self.before.mrr
            and self.after.recall_at_1 >= self.before.recall_at_1
            and self.stored.mrr >= self.before.mrr
        )

    def to_json(self) -> dict[str, Any]:
        """The figures by name, for logs, tables and metadata."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "stored": self.stored.to_json(),
            "question_similarity": self.question_similarity,
            "document_similarity": self.document_similarity,
            "similarity": self.similarity,
            "better": self.better,
            "training": self.training.to_json(),
        }


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """New weights (untouched tensors are the same objects as before) and what they are worth."""

    weights: dict[str, Tensor]
    report: AdaptReport


def adapt(
    weights: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    split: Split,
    config: LoRAConfig | None = None,
    progress: ProgressCallback | None = None,
    *,
    device: str = "cpu",
    finish: Finish | None = None,
) -> AdaptResult:
    """Adapt an encoder to pairs and judge it by held-out ones.

    ``finish`` may change what was learned, for example add noise to it, before it is judged.
    ``files`` are the version's small files (``config.json`` and ``tokenizer.json`` are read). Held-out
    questions are asked of all documents, those learned from included. Raises BadRequest for quantised
    weights, missing files, or too few pairs; whatever ``progress`` raises ends it.
    """
    network = EncoderConfig.from_bytes(_file(files, "config.json"))
    tokenizer = FastTokenizer.from_bytes(_file(files, "tokenizer.json"))
    exam = _Exam.of(split)
    weights = dict(weights)  # a lazy mapping reads tensors anew: below, the same object means unchanged
    old = exam.sit(SentenceEncoder(Encoder.build(network, weights, device=device), tokenizer, device))
    trainer = LoRATrainer(weights, network, tokenizer, config, device=device)
    training = trainer.train(split.train, progress)
    merged = trainer.merge()
    if finish is not None:
        merged = finish(
            weights, merged, [name for name in weights if name in merged and merged[name] is not weights[name]]
        )
    new = exam.sit(SentenceEncoder(Encoder.build(network, merged, device=device), tokenizer, device))
    report = AdaptReport(
        before=score(old.questions, old.documents, exam.answers),
        after=score(new.questions, new.documents, exam.answers),
        stored=score(new.questions, old.documents, exam.answers),
        question_similarity=_cosine(old.questions, new.questions),
        document_similarity=_cosine(old.documents[exam.held_out], new.documents[exam.held_out]),
        training=training,
    )
    return AdaptResult(merged, report)


def examine(weights: Mapping[str, Tensor], files: Mapping[str, bytes], split: Split) -> Scores:
    """What held-out questions find with these weights. Raises BadRequest as ``adapt`` does."""
    network = EncoderConfig.from_bytes(_file(files, "config.json"))
    tokenizer = FastTokenizer.from_bytes(_file(files, "tokenizer.json"))
    exam = _Exam.of(split)
    found = exam.sit(SentenceEncoder(Encoder.build(network, weights), tokenizer))
    return score(found.questions, found.documents, exam.answers)


@dataclass(frozen=True, eq=False)
class _Vectors:
    questions: NDArray[np.float32]
    documents: NDArray[np.float32]


@dataclass(frozen=True)
class _Exam:
    """Held-out questions, all documents, and the row of each question's document."""

    questions: list[str]
    documents: list[str]
    answers: list[int]

    @classmethod
    def of(cls, split: Split) -> _Exam:
        if not split.held_out:
            raise BadRequest("no pairs are held out: give more documents, or hold out a larger share")
        rows: dict[str, int] = {}
        for pair in (*split.train, *split.held_out):
            rows.setdefault(pair.answer, len(rows))
        return cls(
            [pair.question for pair in split.held_out], list(rows), [rows[pair.answer] for pair in split.held_out]
        )

    @property
    def held_out(self) -> list[int]:
        return sorted(set(self.answers))

    def sit(self, encoder: SentenceEncoder) -> _Vectors:
        return _Vectors(encoder.encode(self.questions), encoder.encode(self.documents))


def _cosine(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    return float((old * new).sum(axis=1).mean())


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise BadRequest(f"this version has no {name}: it is no encoder that can be adapted")
    return files[name]
