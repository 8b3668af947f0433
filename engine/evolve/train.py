"""Contrastive training of low-rank adapters on (question, document) pairs.

Knows vectors, batches and time; does not know where pairs come from or what becomes of the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.contrastive import drift, info_nce, symmetric_info_nce
from aios_node.engine.evolve.lora import Adapters
from aios_node.engine.evolve.pairs import Pair
from aios_node.engine.evolve.proximal import proximal_term
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, prefix_of
from aios_node.engine.nets.kernels import ROW_MULTIPLE
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.tokenizer import FastTokenizer

GRADIENT_NORM = 1.0
_BATCHES_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class Progress:
    """Where training stands, told after every step."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class TrainReport:
    """What training did. ``stopped`` is ``steps`` (all done) or ``time`` (max_seconds passed)."""

    steps: int
    pairs: int
    first_loss: float
    last_loss: float
    seconds: float
    stopped: str

    def to_json(self) -> dict[str, float | int | str]:
        """The figures by name."""
        return asdict(self)


ProgressCallback = Callable[[Progress], None]


class LoRATrainer:
    """Adapts an encoder so that questions find their documents, without moving away from stored vectors.

    The loss has three parts: InfoNCE inside the batch with fresh vectors on both sides; InfoNCE of
    fresh questions against the vectors that *all* training documents have now (what is stored stays
    findable); and an anchor, the cosine distance of fresh vectors from old ones. With ``prox_mu`` FedProx's term
    comes on top, the squared distance of weights from old ones. The same seed, pairs
    and machine (threads, torch) give the same weights to the bit, unless time ran out.

    Raises BadWeights for weights that are not this network's, BadRequest for quantised ones, BadConfig
    for settings that do not fit it.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        network: EncoderConfig,
        tokenizer: FastTokenizer,
        config: LoRAConfig | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        self._weights = weights
        self._config = config or LoRAConfig()
        self._device = device
        self._tokenizer = tokenizer
        self._base = SentenceEncoder(Encoder.build(network, weights, device=device), tokenizer, device)
        self._adapters = _adapters(self._config)
        self._net = Encoder.build(network, weights, device=device, wrap=self._adapters.wrap)
        self._prefix = prefix_of(weights)
        self._adapters.check(weights, self._prefix)

    def train(self, pairs: Sequence[Pair], progress: ProgressCallback | None = None) -> TrainReport:
        """Run all steps. ``progress`` is called after each; what it raises ends the training.

        Raises BadRequest with fewer than two documents to tell apart.
        """
        config = self._config
        data = _Data.prepare(self._sample(pairs), self._base, config)
        optimizer = torch.optim.AdamW(
            self._adapters.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        losses: list[float] = []
        start, elapsed = time.monotonic(), 0.0
        for step, rows in zip(range(config.steps), data.batches(config), strict=False):
            _set_rate(optimizer, learning_rate(config, step))
            losses.append(self._step(optimizer, data, rows))
            elapsed = time.monotonic() - start
            if progress:
                progress(Progress(step + 1, config.steps, losses[-1], elapsed))
            if elapsed > config.max_seconds:
                break
        stopped = "steps" if len(losses) == config.steps else "time"
        return TrainReport(len(losses), len(data.documents), losses[0], losses[-1], elapsed, stopped)

    def merge(self) -> dict[str, Tensor]:
        """The weights with what was learned; tensors that were not adapted are the same objects."""
        return self._adapters.merge(self._weights, self._prefix)

    def _sample(self, pairs: Sequence[Pair]) -> list[Pair]:
        """No more pairs than the steps can show: nothing is embedded in vain."""
        if len({pair.document for pair in pairs}) < 2:
            raise BadRequest(f"{len(pairs)} pairs are too few: at least two documents are needed to learn from")
        limit = self._config.steps * self._config.batch_size
        chosen = np.random.default_rng(self._config.seed).permutation(len(pairs))[:limit]
        return [pairs[index] for index in sorted(chosen)]

    def _step(self, optimizer: torch.optim.Optimizer, data: _Data, rows: NDArray[np.intp]) -> float:
        loss = self._loss(data, rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(self._adapters.parameters, GRADIENT_NORM)
        optimizer.step()
        return float(loss.detach())

    def _loss(self, data: _Data, rows: NDArray[np.intp]) -> torch.Tensor:
        config, chosen = self._config, torch.from_numpy(rows).to(self._device)
        questions = self._vectors([data.questions[row] for row in rows])
        documents = self._vectors([data.documents[row] for row in rows])
        excluded = data.siblings(chosen).to(self._device)  # [b, n]
        fresh = symmetric_info_nce(questions, documents, excluded[:, chosen], config.temperature)
        stored = info_nce(questions, data.old_documents, chosen, excluded, config.temperature)
        moved = drift(questions, data.old_questions[chosen]) + drift(documents, data.old_documents[chosen])
        loss = fresh + stored + config.anchor * moved
        return loss + proximal_term(self._adapters.squares, config.prox_mu) if config.prox_mu else loss

    def _vectors(self, rows: list[list[int]]) -> torch.Tensor:
        batch = self._tokenizer.pad(rows, ROW_MULTIPLE)
        return self._net(*(torch.from_numpy(part).to(self._device) for part in (batch.ids, batch.mask)))


def _adapters(config: LoRAConfig) -> Adapters:
    return Adapters(config.targets, config.first_layer, config.rank, config.alpha, config.seed)


def learning_rate(config: LoRAConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero; ``step`` counts from 0."""
    warm = config.warmup * config.steps
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    return config.learning_rate * rise * (1 + math.cos(math.pi * step / config.steps)) / 2


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass(frozen=True, eq=False)
class _Data:
    """Pairs as token ids, with the vectors that the unchanged network gives them."""

    questions: list[list[int]]
    documents: list[list[int]]
    old_questions: torch.Tensor  # [n, d]
    old_documents: torch.Tensor  # [n, d]
    sources: torch.Tensor  # int64 [n], the document that each pair came from

    @classmethod
    def prepare(cls, pairs: Sequence[Pair], base: SentenceEncoder, config: LoRAConfig) -> _Data:
        """Tokenise and embed all pairs; tensors lie on the encoder's device."""
        questions, documents = [pair.question for pair in pairs], [pair.answer for pair in pairs]
        limit = base.net.config.max_tokens
        question_tokens, document_tokens = min(config.question_tokens, limit), min(config.document_tokens, limit)
        return cls(
            questions=base.tokenizer.token_ids(questions, question_tokens),
            documents=base.tokenizer.token_ids(documents, document_tokens),
            old_questions=torch.from_numpy(base.encode(questions, question_tokens)).to(base.device),
            old_documents=torch.from_numpy(base.encode(documents, document_tokens)).to(base.device),
            sources=torch.tensor([pair.document for pair in pairs], device=base.device),
        )

    def siblings(self, chosen: torch.Tensor) -> torch.Tensor:
        """bool [b, n]: other pairs of the same source document, which are no fair negatives."""
        same = self.sources[chosen, None] == self.sources[None, :]
        same[torch.arange(len(chosen), device=chosen.device), chosen] = False
        return same

    def batches(self, config: LoRAConfig) -> Iterator[NDArray[np.intp]]:
        """Endless row numbers, epoch by epoch; rows of like length come together, to pad little."""
        random = np.random.default_rng(config.seed)
        lengths = np.array([len(row) for row in self.documents])
        size = min(config.batch_size, len(lengths))
        while True:
            order = random.permutation(len(lengths))
            cut: list[NDArray[np.intp]] = []
            for start in range(0, len(order), size * _BATCHES_SORTED_TOGETHER):
                part = order[start : start + size * _BATCHES_SORTED_TOGETHER]
                part = part[np.argsort(lengths[part], kind="stable")]
                cut += [part[at : at + size] for at in range(0, len(part) - size + 1, size)]
            yield from (cut[index] for index in random.permutation(len(cut)))
