"""Adapters, losses and the training loop on a tiny encoder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from aios_node.engine.errors import BadConfig, BadRequest
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.contrastive import drift, info_nce, symmetric_info_nce
from aios_node.engine.evolve.lora import Adapters, LowRank
from aios_node.engine.evolve.pairs import Pair
from aios_node.engine.evolve.proximal import low_rank_square, proximal_term
from aios_node.engine.evolve.train import LoRATrainer, Progress, TrainReport, learning_rate
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.linear import Linear
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import QuantizationConfig
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.lowrank import factor_names
from aios_node.engine.weights.network import NetworkWeights

WORDS = ("file", "socket", "bird", "river", "number", "letter", "table", "window", "garden", "engine", "paper", "stone")
PAIRS = [
    Pair(f"{word} and {other}?", f"the answer speaks of {word} and more of {other}", 3 * row + column)
    for row, word in enumerate(WORDS)
    for column, other in enumerate(WORDS[:3])
]
CONFIG = LoRAConfig(rank=2, first_layer=0, steps=6, batch_size=8, question_tokens=8, document_tokens=16)


@pytest.fixture(scope="module")
def network(tiny_files: dict[str, bytes]) -> EncoderConfig:
    return EncoderConfig.from_bytes(tiny_files["config.json"])


@pytest.fixture(scope="module")
def tokenizer(tiny_files: dict[str, bytes]) -> FastTokenizer:
    return FastTokenizer.from_bytes(tiny_files["tokenizer.json"])


@pytest.fixture
def weights(tiny_weights: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    return tiny_weights(1)


@dataclasses.dataclass
class Bench:
    """Trains the tiny encoder on PAIRS."""

    weights: dict[str, Any]
    network: EncoderConfig
    tokenizer: FastTokenizer

    def trainer(self, **changes: Any) -> LoRATrainer:
        return LoRATrainer(self.weights, self.network, self.tokenizer, dataclasses.replace(CONFIG, **changes))

    def trained(self, **changes: Any) -> tuple[dict[str, Any], TrainReport]:
        trainer = self.trainer(**changes)
        report = trainer.train(PAIRS)
        return trainer.merge(), report

    def vectors(self, weights: dict[str, Any]) -> torch.Tensor:
        batch = self.tokenizer.encode_batch([pair.answer for pair in PAIRS], 16)
        net = Encoder.build(self.network, weights)
        return net(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))


@pytest.fixture
def bench(weights: dict[str, Any], network: EncoderConfig, tokenizer: FastTokenizer) -> Bench:
    return Bench(weights, network, tokenizer)


def test_only_the_targets_change_and_the_rest_is_the_same_object(bench: Bench) -> None:
    before = {name: tensor.copy() for name, tensor in bench.weights.items()}
    merged, report = bench.trained()
    changed = {name for name, tensor in bench.weights.items() if merged[name] is not tensor}
    assert changed == {
        f"encoder.layer.{layer}.attention.self.{part}.weight" for layer in (0, 1) for part in ("query", "value")
    }
    for name in changed:
        assert merged[name].dtype == np.float32
        change = merged[name].astype(np.float64) - before[name]
        assert change.any()
        assert np.linalg.matrix_rank(change, tol=1e-5) <= 2
    assert set(NetworkWeights(merged)) == set(before)
    assert set(merged) - set(before) == {factor for name in changed for factor in factor_names(name)}
    assert all(np.array_equal(bench.weights[name], tensor) for name, tensor in before.items())
    assert (report.steps, report.pairs, report.stopped) == (6, len(PAIRS), "steps")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"first_layer": 1}, {"encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.value"}),
        ({"targets": ("key",)}, {"encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key"}),
        (
            {"targets": ("dense",), "first_layer": 1},
            {f"encoder.layer.1.{part}.dense" for part in ("attention.output", "intermediate", "output")},
        ),
    ],
)
def test_targets_can_be_chosen(bench: Bench, changes: dict[str, Any], expected: set[str]) -> None:
    merged, _ = bench.trained(**changes)
    changed = {name for name, tensor in bench.weights.items() if merged[name] is not tensor}
    assert changed == {f"{name}.weight" for name in expected}


def test_the_merged_network_computes_what_the_adapted_one_did(bench: Bench) -> None:
    adapters = Adapters(("query", "value", "dense"), 0, 2, 4.0, seed=3)
    adapted = Encoder.build(bench.network, bench.weights, wrap=adapters.wrap)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in adapters.parameters:
            part.copy_(torch.randn(part.shape, generator=random) * 0.1)
    batch = bench.tokenizer.encode_batch([pair.answer for pair in PAIRS], 16)
    ours = adapted(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    assert torch.allclose(ours, bench.vectors(adapters.merge(bench.weights)), atol=3e-3)  # factors have 8 bits
    assert not torch.allclose(ours, bench.vectors(bench.weights), atol=1e-2)


def test_names_with_a_prefix_are_merged_under_it(bench: Bench) -> None:
    plain, _ = bench.trained()
    bench.weights = {f"bert.{name}": tensor for name, tensor in bench.weights.items()}
    prefixed, _ = bench.trained()
    assert all(np.array_equal(prefixed[f"bert.{name}"], tensor) for name, tensor in NetworkWeights(plain).items())


def test_adapters_start_as_nothing() -> None:
    linear = Linear(torch.randn(6, 4), torch.randn(6), "relu")
    adapter = Adapters(("query",), 0, 2, 4.0, seed=0).wrap("encoder.layer.0.query", linear)
    assert isinstance(adapter, LowRank)
    x = torch.randn(3, 4)
    assert torch.allclose(adapter(x), linear(x), atol=1e-6)
    assert not adapter.factors().up.dequantize().any()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(bench: Bench) -> None:
    name = "encoder.layer.1.attention.self.value.weight"
    first, again, other = (bench.trained(seed=seed)[0][name] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_lowers_the_loss_and_the_anchor_holds(bench: Bench) -> None:
    settings = {"steps": 40, "learning_rate": 1e-2, "targets": ("query", "value", "dense")}
    free, report = bench.trained(anchor=0.0, **settings)
    held, _ = bench.trained(anchor=100.0, **settings)
    assert report.last_loss < report.first_loss
    old = bench.vectors(bench.weights)
    assert drift(bench.vectors(held), old) < drift(bench.vectors(free), old) / 2


def distance(merged: dict[str, Any], start: dict[str, Any]) -> float:
    """How far all weights together are from where they began."""
    return math.sqrt(sum(float(((merged[name] - start[name]).astype(np.float64) ** 2).sum()) for name in start))


def test_the_proximal_term_pulls_weights_towards_the_start(bench: Bench) -> None:
    free, held, tied = (distance(bench.trained(prox_mu=mu, steps=24)[0], bench.weights) for mu in (0.0, 1e2, 1e4))
    assert tied < held < free
    assert tied < free / 4


def test_the_proximal_term_is_half_mu_times_the_squared_change() -> None:
    random = torch.Generator().manual_seed(0)
    up, down = torch.randn(5, 2, generator=random), torch.randn(2, 7, generator=random)
    square = low_rank_square(up, down, 3.0)
    assert float(square) == pytest.approx(float(((3.0 * up @ down) ** 2).sum()), rel=1e-5)
    assert float(proximal_term([square, square], 0.5)) == pytest.approx(0.5 * float(square))


def test_progress_is_told_after_every_step(bench: Bench) -> None:
    heard: list[Progress] = []
    report = bench.trainer().train(PAIRS, heard.append)
    assert [at.step for at in heard] == [1, 2, 3, 4, 5, 6]
    assert {at.steps for at in heard} == {6}
    assert (heard[0].loss, heard[-1].loss) == (report.first_loss, report.last_loss)
    assert all(math.isfinite(at.loss) for at in heard)
    assert [at.seconds for at in heard] == sorted(at.seconds for at in heard)
    assert report.to_json() == {**report.__dict__}


def test_what_progress_raises_ends_the_training(bench: Bench) -> None:
    def stop(at: Progress) -> None:
        if at.step == 2:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        bench.trainer().train(PAIRS, stop)


def test_time_bounds_the_training(bench: Bench) -> None:
    merged, report = bench.trained(steps=100_000, max_seconds=1e-9)
    assert (report.steps, report.stopped) == (1, "time")
    assert set(NetworkWeights(merged)) == set(bench.weights)


def test_few_steps_look_at_few_pairs(bench: Bench) -> None:
    assert bench.trained(steps=2, batch_size=3)[1].pairs == 6


@pytest.mark.parametrize("count", [0, 1])
def test_one_document_has_nothing_to_be_told_from(bench: Bench, count: int) -> None:
    with pytest.raises(BadRequest, match="at least two documents"):
        bench.trainer().train(PAIRS[:count])


def test_fewer_pairs_than_a_batch_are_enough(bench: Bench) -> None:
    report = bench.trainer().train(PAIRS[:3])
    assert (report.steps, report.pairs) == (6, 3)
    assert math.isfinite(report.last_loss)


def test_pairs_of_one_document_are_no_negatives_of_each_other(bench: Bench) -> None:
    twins = [dataclasses.replace(pair, document=number // 2) for number, pair in enumerate(PAIRS[:4])]
    assert math.isfinite(bench.trainer().train(twins).last_loss)


def test_quantised_weights_are_not_adapted(bench: Bench) -> None:
    bench.weights = dict(ArrowQuantizer(QuantizationConfig("int8")).quantize(bench.weights))
    with pytest.raises(BadRequest, match="is quantised: adapt the model it was made from"):
        bench.trainer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("nothing",)}, "no linear map from layer 0 on is named nothing"),
        ({"first_layer": 2}, "no linear map from layer 2"),
        ({"rank": 17}, "rank is 17: at most 16"),
    ],
)
def test_settings_that_do_not_fit_the_network(bench: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        bench.trained(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"temperature": 0.0},
        {"max_seconds": 0.0},
        {"anchor": -1.0},
        {"weight_decay": float("nan")},
        {"seed": -1},
        {"first_layer": -1},
        {"steps": 0},
        {"batch_size": 1},
        {"warmup": 1.0},
        {"question_tokens": 2},
        {"targets": ()},
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=next(iter(changes))):
        LoRAConfig(**changes)


def test_settings_survive_json() -> None:
    raw = json.loads(json.dumps(dataclasses.asdict(LoRAConfig(seed=7))))
    assert LoRAConfig(**raw) == LoRAConfig(seed=7)


def test_the_learning_rate_rises_and_falls() -> None:
    config = LoRAConfig(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, abs=0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates.index(max(rates)) in range(8, 11)
    assert rates[-1] < 0.01
    assert learning_rate(LoRAConfig(warmup=0.0, learning_rate=1.0), 0) == 1.0


def test_info_nce_by_hand() -> None:
    questions = torch.tensor([[1.0, 0.0]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    none, third = torch.tensor([[False, False, False]]), torch.tensor([[False, False, True]])
    answer = torch.tensor([0])
    e = math.exp(1 / 0.5)
    assert float(info_nce(questions, documents, answer, none, 0.5)) == pytest.approx(-math.log(e / (2 * e + 1)))
    assert float(info_nce(questions, documents, answer, third, 0.5)) == pytest.approx(-math.log(e / (e + 1)))


def test_symmetric_info_nce_is_the_mean_of_both_ways() -> None:
    q, d = (torch.nn.functional.normalize(torch.randn(5, 4), dim=-1) for _ in range(2))
    excluded = torch.zeros(5, 5, dtype=torch.bool)
    excluded[0, 1] = True
    own = torch.arange(5)
    both = info_nce(q, d, own, excluded, 0.1) + info_nce(d, q, own, excluded.T, 0.1)
    assert torch.allclose(symmetric_info_nce(q, d, excluded, 0.1), both / 2)


def test_drift_by_hand() -> None:
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(drift(old, old)) == 0
    assert float(drift(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), old)) == pytest.approx(1.5)
