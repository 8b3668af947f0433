"""Quantising a tiny encoder by its answers, with every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.engine.calibration.sets import CalibrationSet
from aios_node.engine.errors import BadConfig, BadRequest
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.quant.agreement import agreement
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.recipe import QuantizationConfig, preset
from aios_node.engine.tuning.heldout import split
from aios_node.engine.tuning.quantize import Network, Quantization, needs_texts, quantize_model
from aios_node.engine.weights.manifest import tensor_hash

WORDS = ("water", "stone", "house", "garden", "winter", "morning", "letter", "bridge", "engine", "silver", "music")


def texts(count: int, seed: int) -> tuple[str, ...]:
    random = np.random.default_rng(seed)
    return tuple(" ".join(random.choice(WORDS, random.integers(3, 14))) for _ in range(count))


CALIBRATION = CalibrationSet.of(texts(120, 0), "a test")
UNSEEN = texts(60, 1)


class Stopped(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def network(tiny_files: dict[str, bytes]) -> Network:
    return Network.of(tiny_files)


@pytest.fixture
def weights(tiny_weights: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    return tiny_weights(1)


def recipe(method: str, **members: Any) -> QuantizationConfig:
    options = {"steps": 24, "block_steps": 6, "batch_tokens": 512, "learning_rate": 0.02} if method == "tuned" else {}
    return QuantizationConfig.from_json({**preset("int2").to_json(), "method": method, "options": options, **members})


def cosine(network: Network, weights: Mapping[str, Tensor], made: Quantization) -> float:
    vectors = [
        SentenceEncoder(Encoder.build(network.config, one), network.tokenizer).encode(UNSEEN)
        for one in (weights, made.weights)
    ]
    return agreement(*vectors).mean


def hashes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: tensor_hash(tensor) for name, tensor in weights.items()}


def run(network: Network, weights: Mapping[str, Tensor], how: QuantizationConfig, **more: Any) -> Quantization:
    return quantize_model(weights, how, network=network, texts=CALIBRATION, **more)


def test_data_brings_a_model_nearer_to_the_original(network: Network, weights: dict[str, Any]) -> None:
    """With embeddings as they were, so that what is left of the error is the blocks'."""
    alone = [["*embed*", "none"]]
    options = {"steps": 150, "block_steps": 40, "batch_tokens": 512, "learning_rate": 0.02}
    recipes = [recipe("ptq", overrides=alone), recipe("gptq", overrides=alone)]
    recipes.append(recipe("tuned", overrides=alone, options=options))
    found = [1 - cosine(network, weights, run(network, weights, how)) for how in recipes]
    assert max(found[1:]) < 0.7 * found[0]


@pytest.mark.parametrize("method", ["ptq", "gptq", "tuned"])
def test_layouts_are_those_of_the_recipe(method: str, network: Network, weights: dict[str, Any]) -> None:
    how = recipe(method)
    made = run(network, weights, how)
    assert set(made.weights) == set(weights)
    for name, tensor in made.weights.items():
        settings = how.settings_for(name)
        if weights[name].ndim < 2:
            assert tensor.dtype == weights[name].dtype
            continue
        assert isinstance(tensor, QuantizedTensor)
        assert settings is not None
        assert (tensor.quant_type, tensor.group_size) == (settings.quant, settings.group_size)
        assert (tensor.compact is not None) == (settings.scales == "double4")
    assert (made.recipe.calibration is not None) == needs_texts(how)
    if made.recipe.calibration is not None:
        assert made.recipe.calibration["sha256"] == CALIBRATION.sha256


@pytest.mark.parametrize("method", ["gptq", "tuned"])
def test_work_that_was_stopped_anywhere_ends_the_same(
    method: str, network: Network, weights: dict[str, Any], tmp_path: Path
) -> None:
    wanted = hashes(run(network, weights, recipe(method)).weights)
    parts: list[float] = []
    run(network, weights, recipe(method), progress=lambda part, _what: parts.append(part))
    for number, stop_after in enumerate(range(5, len(parts), max(1, len(parts) // 3))):
        seen = 0

        def stop(_part: float, _what: str, limit: int = stop_after) -> None:
            nonlocal seen
            seen += 1
            if seen > limit:
                raise Stopped

        work = tmp_path / str(number)
        with pytest.raises(Stopped):
            run(network, weights, recipe(method), work=work, progress=stop)
        assert hashes(run(network, weights, recipe(method), work=work).weights) == wanted


def test_tuning_goes_on_from_its_last_checkpoint(
    network: Network, weights: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios_node.engine.tuning.endtoend.SAVE_EVERY", 10)
    steps: list[str] = []

    def watch(_part: float, what: str) -> None:
        steps.append(what)
        if what.startswith("tuning, step 17 "):
            raise Stopped

    with pytest.raises(Stopped):
        run(network, weights, recipe("tuned"), work=tmp_path, progress=watch)
    steps.clear()
    made = run(network, weights, recipe("tuned"), work=tmp_path, progress=lambda _part, what: steps.append(what))
    assert next(what for what in steps if what.startswith("tuning")).startswith("tuning, step 11 ")
    assert hashes(made.weights) == hashes(run(network, weights, recipe("tuned")).weights)


def test_a_new_version_is_tuned_from_the_old_codes(
    network: Network, weights: dict[str, Any], tiny_weights: Callable[[int], dict[str, Any]]
) -> None:
    options = {"steps": 200, "block_steps": 2, "batch_tokens": 512, "learning_rate": 0.05}
    first = run(network, weights, recipe("tuned", options=options))
    other = tiny_weights(2)
    changed = {name: one + 0.02 * (other[name] - one) for name, one in weights.items()}
    steps: list[str] = []
    second = run(
        network, changed, first.recipe, previous=first.weights, progress=lambda _part, what: steps.append(what)
    )
    assert [what for what in steps if what.startswith("tuning")][-1].startswith("tuning, step 20 of 20")
    same = changes = 0
    for name, tensor in first.weights.items():
        if isinstance(tensor, QuantizedTensor) and "encoder" in name:
            after = second.weights[name]
            assert isinstance(after, QuantizedTensor)
            same += int((tensor.unpack() == after.unpack()).sum())
            changes += int((tensor.unpack() != after.unpack()).sum())
    assert 0 < changes < same / 2


def test_bits_are_shared_out_under_a_target(network: Network, weights: dict[str, Any]) -> None:
    smallest = sum(one.nbytes for one in run(network, weights, recipe("ptq")).weights.values())
    found = []
    for target in (int(1.2 * smallest), int(1.6 * smallest), 3 * smallest):
        made = run(network, weights, recipe("ptq", target_bytes=target))
        assert sum(one.nbytes for one in made.weights.values()) <= target
        assert made.recipe.calibration is not None
        found.append(cosine(network, weights, made))
        again = run(network, weights, made.recipe)  # as a derived model is made again: the same bits for everyone
        assert hashes(again.weights) == hashes(made.weights)
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_precision_is_the_least_that_a_target_may_take(network: Network, weights: dict[str, Any]) -> None:
    how = QuantizationConfig.from_json({**preset("int4").to_json(), "target_bytes": 10**9})
    made = run(network, weights, how)
    kinds = {one.quant_type for one in made.weights.values() if isinstance(one, QuantizedTensor)}
    assert kinds <= {"int4", "int8"}


def test_a_target_that_cannot_be_met_says_what_can(network: Network, weights: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match="fewest bits"):
        run(network, weights, recipe("ptq", target_bytes=1000))


def test_what_gptq_cannot_round_is_named(network: Network, weights: dict[str, Any]) -> None:
    layer = "encoder.layer.0.attention.self.query"
    how = recipe("gptq", overrides=[[f"{layer}.weight", {"axis": 1}]])
    warnings: list[str] = []
    made = run(network, weights, how, warn=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(layer)
    assert isinstance(made.weights[f"{layer}.weight"], QuantizedTensor)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("method", ["gptq", "tuned"])
def test_scales_along_another_axis_stay_as_plain_rounding_made_them(
    method: str, axis: int, network: Network, weights: dict[str, Any]
) -> None:
    """Every kind of linear map of a block once, and all maps of the other block as usual."""
    odd = [
        f"encoder.layer.0.{part}.weight" for part in ("attention.self.key", "attention.output.dense", "output.dense")
    ]
    how = recipe(method, overrides=[[name, {"axis": axis}] for name in odd])
    plain = hashes(run(network, weights, recipe("ptq", overrides=[[name, {"axis": axis}] for name in odd])).weights)
    warnings: list[str] = []
    made = run(network, weights, how, warn=warnings.append)
    found = hashes(made.weights)
    assert {name: found[name] for name in odd} == {name: plain[name] for name in odd}
    assert sorted(warning.split(":")[0] + ".weight" for warning in warnings) == sorted(odd)
    others = [name for name in found if name.startswith("encoder.") and name not in odd and weights[name].ndim == 2]
    assert others
    assert all(found[name] != plain[name] for name in others)


def test_networks_that_cannot_run_are_refused_before_work_starts(
    tiny_files: dict[str, bytes], weights: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest, match="no tokenizer"):
        Network.of({"config.json": tiny_files["config.json"]})
    with pytest.raises(BadConfig, match="calibration texts"):
        quantize_model(weights, recipe("gptq"))


def test_tuning_that_makes_it_no_better_is_thrown_away(network: Network, weights: dict[str, Any]) -> None:
    """A rate at which training destroys what was there: the blockwise result stays, and somebody is told."""
    options = {"steps": 6, "block_steps": 4, "batch_tokens": 512}
    without = run(network, weights, recipe("tuned", options={**options, "steps": 0}))
    warnings: list[str] = []
    how = recipe("tuned", options={**options, "learning_rate": 1.0})
    made = run(network, weights, how, warn=warnings.append)
    assert hashes(made.weights) == hashes(without.weights)
    assert len(warnings) == 1
    assert "no better" in warnings[0]
    assert "12 calibration texts" in warnings[0]


def test_tuning_never_sees_what_it_is_judged_by() -> None:
    for count, kept in ((1, 1), (9, 9), (10, 1), (120, 12), (50_000, 256)):
        texts = [str(number) for number in range(count)]
        learned, judged = split(texts)
        assert len(judged) == kept
        assert set(learned) | set(judged) == set(texts)
        assert count < 10 or not set(learned) & set(judged)
