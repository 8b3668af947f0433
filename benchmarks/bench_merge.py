"""Merging what five nodes learned from different documents: quality with and without a poisoned one, speed, memory.

Five nodes adapt MiniLM to different parts of the standard library's documentation; what each merge is worth is asked
with questions that none of them learned from. The poisoned head is sent as minus a hundred times its change. Numbers
are compared with Flower's strategies where that is installed, else with what it gave once (tests/golden/merge).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.delta.merge.registry import STRATEGIES, make_strategy
from aios_node.delta.merge.sides import Side
from aios_node.delta.merge.spool import Spool
from aios_node.delta.merge.weights import merge
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.pairs import Document, Pair, Split, make_pairs, split_pairs
from aios_node.engine.evolve.retrieval import score
from aios_node.engine.evolve.train import LoRATrainer
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.network import NetworkWeights
from aios_node.node.demo.documents import standard_library

ROOT = Path(__file__).resolve().parent.parent
NODES, DOCUMENTS, STEPS, TOKENS = 5, 500, 20, 64
OPTIONS: Mapping[str, dict[str, Any]] = {
    "fedadam": {"learning_rate": 0.5, "tau": 1e-2, "initial": 1e-4},
    "fedyogi": {"learning_rate": 0.5, "tau": 1e-2, "initial": 1e-4},
    "ties": {"density": 0.5},
}
"""What differs from the defaults: server rates that fit one round."""

Weights = Mapping[str, Any]


def run() -> dict[str, object]:
    """Quality, speed and the distance to Flower."""
    crowd = Crowd()
    return {
        "quality": crowd.table(),
        "speed": speed(crowd),
        "largest difference to Flower": flower(),
    }


class Crowd:
    """The nodes' heads, and an exam that none of them has seen."""

    def __init__(self) -> None:
        source = import_folder(ROOT / ".cache" / "minilm")
        self.base: Weights = dict(source.weights)
        self._network = EncoderConfig.from_bytes(source.files["config.json"])
        self._tokenizer = FastTokenizer.from_bytes(source.files["tokenizer.json"])
        documents = standard_library()
        chosen = documents[:: max(1, len(documents) // DOCUMENTS)][:DOCUMENTS]
        self._split = split_pairs(make_pairs([Document(one.name, one.text) for one in chosen]))
        self.heads = [self._train(part) for part in self._parts()]
        self.samples = [len(part) for part in self._parts()]

    def _parts(self) -> list[Sequence[Pair]]:
        """Pairs in the order of names: every node has topics of its own."""
        train = self._split.train
        return [train[len(train) * n // NODES : len(train) * (n + 1) // NODES] for n in range(NODES)]

    def _train(self, pairs: Sequence[Pair]) -> Weights:
        config = LoRAConfig(steps=STEPS, batch_size=16)
        trainer = LoRATrainer(self.base, self._network, self._tokenizer, config)
        trainer.train(pairs)
        return dict(NetworkWeights(trainer.merge()))

    def exam(self, weights: Weights) -> float:
        """Mean reciprocal rank of the held-out questions among all documents."""
        split: Split = self._split
        encoder = SentenceEncoder(Encoder.build(self._network, weights), self._tokenizer, "cpu")
        rows: dict[str, int] = {}
        for pair in (*split.train, *split.held_out):
            rows.setdefault(pair.answer, len(rows))
        questions = encoder.encode([pair.question for pair in split.held_out], TOKENS)
        found = score(questions, encoder.encode(list(rows), TOKENS), [rows[pair.answer] for pair in split.held_out])
        return found.mrr

    def merged(self, name: str, heads: Sequence[Weights]) -> Weights:
        """The network that a strategy makes of heads."""
        sides = [
            Side.of(f"{n:064x}", head, count) for n, (head, count) in enumerate(zip(heads, self.samples, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
            strategy = make_strategy(name, OPTIONS.get(name, {}))
            return merge(Side.of("f" * 64, self.base), sides, strategy, spool).weights

    def poisoned(self) -> list[Weights]:
        """The heads, the first of them turned against the others."""
        first = {
            name: (self.base[name] - 100 * (tensor - self.base[name])).astype(tensor.dtype)
            if tensor is not self.base[name]
            else tensor
            for name, tensor in self.heads[0].items()
        }
        return [first, *self.heads[1:]]

    def table(self) -> dict[str, object]:
        """Mean reciprocal rank by strategy, all heads sound and one of them poisoned."""
        alone = [self.exam(head) for head in self.heads]
        rows: list[list[object]] = [
            ["before", round(self.exam(self.base), 4), None],
            ["one node alone, on average", round(sum(alone) / len(alone), 4), None],
            ["one node alone, the best", round(max(alone), 4), None],
        ]
        bad = self.poisoned()
        rows += [
            [name, round(self.exam(self.merged(name, self.heads)), 4), round(self.exam(self.merged(name, bad)), 4)]
            for name in STRATEGIES
        ]
        return {"columns": ["merged by", "MRR", "MRR, one of five poisoned"], "rows": rows}


def speed(crowd: Crowd) -> dict[str, object]:
    """Seconds and memory of merging five heads that changed everywhere, as a multiple of copying them."""
    random = np.random.default_rng(0)
    names = [name for name, tensor in crowd.base.items() if tensor.ndim == 2 and "word_embeddings" not in name]
    base = {name: np.asarray(crowd.base[name], np.float32) for name in names}
    heads = [
        {name: tensor + random.normal(0, 1e-3, tensor.shape).astype(np.float32) for name, tensor in base.items()}
        for _ in range(NODES)
    ]
    sides = [Side.of(f"{n:064x}", head, 1) for n, head in enumerate(heads)]
    origin = Side.of("f" * 64, base)
    size = sum(tensor.nbytes for tensor in base.values()) * (NODES + 1)
    copying = min(
        timed(lambda: [tensor.copy() for head in (base, *heads) for tensor in head.values()]) for _ in range(3)
    )
    rows: list[list[object]] = []
    for name in STRATEGIES:
        seconds = min(timed(lambda name=name: _merge(name, origin, sides)) for _ in range(2))  # type: ignore[misc]
        tracemalloc.start()
        _merge(name, origin, sides)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append([name, round(size / seconds / 1e6), round(seconds / copying, 1), round(peak / 2**20, 1)])
    columns = ["strategy", "MB/s of what is read", "time over that of copying it", "MiB held above inputs"]
    return {"columns": columns, "rows": rows}


def _merge(name: str, base: Side, heads: Sequence[Side]) -> None:
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        merge(base, heads, make_strategy(name), spool)


def timed(work: Any) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def flower() -> dict[str, object]:
    """The largest relative difference to Flower's numbers, for strategies that both have and that keep no state."""
    import json

    golden = ROOT / "tests" / "golden" / "merge"
    spec = importlib.util.spec_from_file_location("merge_golden", golden / "generate.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(golden)
    inputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inputs)
    live = importlib.util.find_spec("flwr") is not None
    expected = inputs.aggregated() if live else json.loads((golden / "flwr.json").read_text())
    found: dict[str, object] = {"numbers": "computed now" if live else f"recorded, flwr {expected['flwr']}"}
    base = inputs.numbers(0)
    for name in ("fedavg", "median", "trimmed_mean", "krum", "multi_krum"):
        options = {} if name in {"fedavg", "median"} else {"faulty": inputs.FAULTY}
        heads = zip(inputs.heads(base, 1), inputs.samples(1), strict=True)
        sides = [Side.of(f"{n:064x}", {"w": head}, count) for n, (head, count) in enumerate(heads)]
        with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
            ours = merge(Side.of("f" * 64, {"w": base}), sides, make_strategy(name, options), spool).weights["w"]
        theirs = np.array(expected[name])
        found[name] = float(np.max(np.abs(np.asarray(ours) - theirs) / np.abs(theirs)))
    return found
