"""How far a candidate encoder's answers are from a reference's: layer by layer and vector by vector.

Compares what two networks compute from the same texts; knows nothing of names, versions or thresholds. The
weights are compared elsewhere (quant.validate), the meaning of the vectors' differences too (quant.agreement).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.kernels import ROW_MULTIPLE
from aios_node.engine.nets.sentences import CPU_BATCH_TOKENS, SentenceEncoder, length_batches
from aios_node.engine.quant.distance import Distance
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.folder import read_folder

Progress = Callable[[int, int], None]
"""Told how many texts are done, and how many there are."""


@dataclass(frozen=True)
class LayerError:
    """What a layer gives, against the reference's: all real tokens of all texts as one long vector."""

    name: str
    relative_error: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Answers:
    """Errors of the embeddings and of each block after them, and both networks' vectors, float32 [texts, d]."""

    layers: tuple[LayerError, ...]
    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]


def open_stored(path: Path) -> SentenceEncoder:
    """The encoder in a version folder as its stored weights say, computed in float32 on the CPU.

    Independent of the arithmetic that this machine would choose to serve it with. Raises as Snapshot.open.
    """
    folder = read_folder(path)
    for name in ("config.json", "tokenizer.json"):
        if name not in folder.manifest.files:
            raise BadWeights(f"version {folder.version[:12]} has no {name}: it cannot be run, only stored")
    config = EncoderConfig.from_bytes(folder.read_file("config.json"))
    tokenizer = FastTokenizer.from_bytes(folder.read_file("tokenizer.json"))
    with folder.weights() as weights:
        return SentenceEncoder(Encoder.build(config, weights), tokenizer)


@torch.inference_mode()
def compare_answers(
    reference: SentenceEncoder, candidate: SentenceEncoder, texts: Sequence[str], progress: Progress | None = None
) -> Answers:
    """Run both encoders on the same texts, cut to what both take.

    Raises BadRequest for no texts, BadWeights unless both have the same layers and make the same tokens.
    """
    rows = _same_rows(reference, candidate, texts)
    layers = [Distance() for _ in range(_same_layers(reference, candidate) + 1)]
    vectors = [np.empty((len(texts), reference.dimension), np.float32) for _ in range(2)]
    done = 0
    for chosen in length_batches([len(row) for row in rows], CPU_BATCH_TOKENS):
        batch = reference.tokenizer.pad([rows[index] for index in chosen], ROW_MULTIPLE)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        states = [list(encoder.net.states(ids, mask)) for encoder in (reference, candidate)]
        for layer, before, after in zip(layers, *states, strict=True):
            layer.add(before[mask.bool()].numpy(), after[mask.bool()].numpy())
        for encoder, out, given in zip((reference, candidate), vectors, states, strict=True):
            out[chosen] = encoder.net.pool(given[-1], mask).numpy()
        done += len(chosen)
        if progress is not None:
            progress(done, len(texts))
    return Answers(tuple(map(_error, _names(len(layers)), layers)), *vectors)


def _same_rows(reference: SentenceEncoder, candidate: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        raise BadRequest("there are no texts to compare answers on")
    limit = min(encoder.net.config.max_tokens for encoder in (reference, candidate))
    rows = reference.tokenizer.token_ids(texts, limit)
    if rows != candidate.tokenizer.token_ids(texts, limit):
        raise BadWeights("the two models make different tokens of the same text: their layers cannot be compared")
    return rows


def _same_layers(reference: SentenceEncoder, candidate: SentenceEncoder) -> int:
    counts = [(len(each.net.blocks), each.dimension) for each in (reference, candidate)]
    if counts[0] != counts[1]:
        raise BadWeights(
            f"a model of {counts[1][0]} layers of width {counts[1][1]} cannot be compared with one of "
            f"{counts[0][0]} layers of width {counts[0][1]}"
        )
    return counts[0][0]


def _names(count: int) -> list[str]:
    return ["embeddings", *(f"encoder.layer.{index}" for index in range(count - 1))]


def _error(name: str, distance: Distance) -> LayerError:
    return LayerError(name, distance.relative_error, distance.cosine)
