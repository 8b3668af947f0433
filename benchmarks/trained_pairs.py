"""Really trained pairs of versions, made once and kept in ``.cache/delta-pairs``: run as ``trained_pairs.py``.

MiniLM is fine-tuned on questions and documents of Python's standard library with AdamW: as LoRA that is merged, in a
few layers, and in all of them, each at three intensities. They differ in nothing but the learning rate, which was
chosen so that about 3, 15 and 63 % of the bfloat16 weights of the trained layers change. And a small language model
is trained from scratch on the same documents in mixed precision (bfloat16 weights, float32 master copy, optimiser in
float32), with ten successive checkpoints. The same seed, torch and processor give the same bits.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import dense
from aios_node.engine.weights.names import FACTORS

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "delta-pairs"
MODEL = ROOT / ".cache" / "minilm"
SEED = 0
STEPS = 24
BATCH = 16
SELECTED = ("encoder.layer.4.", "encoder.layer.5.")
"""What is trained when only a few layers are."""

Weights = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning of MiniLM."""

    kind: str  # lora, selective or full
    percent: int  # of bfloat16 weights in the trained layers, about
    rate: float  # of AdamW

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.percent}"


RECIPES = (
    Recipe("lora", 3, 2e-6),
    Recipe("lora", 15, 1.5e-5),
    Recipe("lora", 63, 2e-4),
    Recipe("selective", 3, 2.5e-7),
    Recipe("selective", 15, 1.8e-6),
    Recipe("selective", 63, 2.3e-5),
    Recipe("full", 3, 2.5e-7),
    Recipe("full", 15, 1.8e-6),
    Recipe("full", 63, 2.8e-5),
)
CHECKPOINTS = 10
FIRST, EVERY = 60, 6
"""The scratch model's steps before its first checkpoint, and between two."""


def base_weights() -> Weights:
    """MiniLM as it is, float32."""
    from aios_node.engine.weights.convert.huggingface import import_folder

    return {name: np.asarray(tensor) for name, tensor in import_folder(MODEL).weights.items()}


def tuned(recipe: Recipe) -> tuple[Weights, Weights]:
    """The float32 tensors that a fine-tuning changed, as they are then; and the factors of a LoRA run, bfloat16."""
    path = CACHE / f"{recipe.name}.npz"
    if not path.is_file():
        _make(recipe, path)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    factors = {name: array for name, array in arrays.items() if name.startswith(FACTORS)}
    return {name: array for name, array in arrays.items() if name not in factors}, factors


def checkpoints() -> list[Weights]:
    """The scratch model's ten checkpoints, bfloat16."""
    if not (CACHE / f"scratch-{CHECKPOINTS - 1}.npz").is_file():
        for number, weights in enumerate(_from_scratch()):
            _save(CACHE / f"scratch-{number}.npz", {name: array.view(np.uint16) for name, array in weights.items()})
    return [_checkpoint(CACHE / f"scratch-{number}.npz") for number in range(CHECKPOINTS)]


def _checkpoint(path: Path) -> Weights:
    with np.load(path) as stored:
        return {name: stored[name].view(ml_dtypes.bfloat16) for name in stored.files}


def as_bfloat16(weights: Mapping[str, NDArray[Any]]) -> Weights:
    """The same tensors, rounded to bfloat16."""
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in weights.items()}


def _make(recipe: Recipe, path: Path) -> None:
    base = base_weights()
    new = _lora(recipe) if recipe.kind == "lora" else _fine_tuned(recipe)
    changed = {name: new[name] for name in base if not np.array_equal(new[name], base[name])}
    factors = {name: array for name, array in new.items() if name.startswith(FACTORS)}
    _save(path, {**changed, **factors})


def _save(path: Path, arrays: Weights) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part.npz")
    np.savez(draft, **arrays)
    draft.replace(path)


def _pairs() -> Any:
    from aios_node.engine.evolve.pairs import Document, make_pairs
    from aios_node.node.demo.documents import standard_library

    documents = [each for each in standard_library() if each.keeper == "workstation"]
    return make_pairs([Document(each.name, each.text) for each in documents])


def _lora(recipe: Recipe) -> Weights:
    """The project's own trainer and merge, which keeps the factors beside the tensors."""
    from aios_node.engine.evolve.config import LoRAConfig
    from aios_node.engine.evolve.train import LoRATrainer
    from aios_node.engine.nets.config import EncoderConfig
    from aios_node.engine.tokenizer import FastTokenizer
    from aios_node.engine.weights.convert.huggingface import import_folder

    source = import_folder(MODEL)
    config = LoRAConfig(steps=STEPS, batch_size=BATCH, learning_rate=recipe.rate, first_layer=0, seed=SEED)
    network = EncoderConfig.from_bytes(source.files["config.json"])
    tokenizer = FastTokenizer.from_bytes(source.files["tokenizer.json"])
    trainer = LoRATrainer(source.weights, network, tokenizer, config)
    trainer.train(_pairs())
    return {name: dense(tensor) for name, tensor in trainer.merge().items()}


def _fine_tuned(recipe: Recipe) -> Weights:
    """AdamW on the weights themselves, symmetric InfoNCE inside the batch."""
    import torch

    from aios_node.engine.evolve.contrastive import symmetric_info_nce
    from aios_node.engine.nets.config import EncoderConfig
    from aios_node.engine.nets.encoder import Encoder, tensor_shapes
    from aios_node.engine.tokenizer import FastTokenizer
    from aios_node.engine.weights.convert.huggingface import import_folder

    source = import_folder(MODEL)
    network = EncoderConfig.from_bytes(source.files["config.json"])
    tokenizer = FastTokenizer.from_bytes(source.files["tokenizer.json"])
    tensors = {name: torch.tensor(np.asarray(source.weights[name])) for name in tensor_shapes(network)}
    wanted = SELECTED if recipe.kind == "selective" else ("",)
    trained = [tensor.requires_grad_() for name, tensor in tensors.items() if name.startswith(wanted)]
    encoder = Encoder.assemble(network, tensors)
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.01)

    def vectors(texts: list[str], most: int) -> torch.Tensor:
        batch = tokenizer.pad(tokenizer.token_ids(texts, most), 8)
        return encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))

    for chosen in _batches():
        questions = vectors([pair.question for pair in chosen], 32)
        documents = vectors([pair.answer for pair in chosen], 64)
        loss = symmetric_info_nce(questions, documents, torch.zeros(BATCH, BATCH, dtype=torch.bool), 0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _batches() -> Iterator[list[Any]]:
    pairs, random = _pairs(), np.random.default_rng(SEED)
    for _ in range(STEPS):
        yield [pairs[row] for row in random.choice(len(pairs), BATCH, replace=False)]


def _from_scratch() -> Iterator[Weights]:
    from scratch_model import train

    text = "\n\n".join(pair.answer for pair in _pairs())
    yield from map(as_bfloat16, train(text.encode(), FIRST, EVERY, CHECKPOINTS))


def share_changed(base: Mapping[str, NDArray[Any]], new: Mapping[str, NDArray[Any]]) -> float:
    """Share of the numbers in the given tensors that changed in bfloat16."""
    old, now = as_bfloat16({name: base[name] for name in new}), as_bfloat16(new)
    changed = sum(int(np.count_nonzero(old[name].view(np.uint16) != now[name].view(np.uint16))) for name in new)
    return changed / sum(array.size for array in new.values())


def main() -> None:
    """Make whatever is not there yet, and say how much changed."""
    import torch

    torch.set_num_threads(1)
    base = base_weights()
    chosen = [each for each in RECIPES if not sys.argv[1:] or each.name in sys.argv[1:]]
    for recipe in chosen:
        started = time.perf_counter()
        new, factors = tuned(recipe)
        layers = {name: array for name, array in new.items() if name.startswith("encoder.layer") and array.ndim == 2}
        shares = {"layers": share_changed(base, layers), "changed tensors": share_changed(base, new)}
        print(
            recipe.name,
            json.dumps(shares),
            len(new),
            len(factors),
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if not sys.argv[1:] or "scratch" in sys.argv[1:]:
        started = time.perf_counter()
        chain = checkpoints()
        shares = [round(share_changed(one, two), 4) for one, two in itertools.pairwise(chain)]
        print("scratch", shares, f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
