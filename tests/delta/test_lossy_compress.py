"""What lossy methods keep, what they lose, and that nothing is lost for good."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Weights, hashes, quantized

from aios_node.delta.lossy.compress import compress
from aios_node.delta.lossy.methods import largest, quantise
from aios_node.delta.lossy.settings import METHODS, LossySettings
from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor
from aios_node.engine.weights.names import MAX_NAME_BYTES
from aios_node.engine.weights.update import read_update, update_name

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


def settings(method: str, **more: Any) -> LossySettings:
    return LossySettings.of(method, **{"least": 1, "group": 16, "share": 0.1, **more})


def pair(dtype: Any, shape: tuple[int, ...], seed: int = 0, scale: float = 0.01) -> tuple[Weights, Weights]:
    random = np.random.default_rng(seed)
    base = random.normal(size=shape).astype(dtype)
    return {"w": base}, {"w": (base.astype(float) + scale * random.normal(size=shape)).astype(dtype)}


@given(
    st.sampled_from(METHODS),
    st.sampled_from(list(DTYPES)),
    st.lists(st.integers(0, 9), max_size=3),
    st.integers(0, 20),
    st.sampled_from([0, 1, 7, 64]),
)
def test_a_lossy_version_is_its_base_plus_what_lies_beside(
    method: str, dtype: str, shape: list[int], seed: int, group: int
) -> None:
    base, target = pair(DTYPES[dtype], tuple(shape), seed)
    made = compress(base, target, settings(method, group=group))
    weights, residual = dict(made.weights), dict(made.residual)
    if not (base["w"] != target["w"]).any():
        assert set(weights) == {"w"}
        assert hashes(weights) == hashes(target)
        return
    update = read_update(weights, "w")
    assert update is not None
    again = update.add(base["w"].ravel()).reshape(shape)
    assert again.tobytes() == weights["w"].tobytes()
    assert weights["w"].dtype == target["w"].dtype
    lost = target["w"].astype(float) - weights["w"].astype(float)
    assert residual["w"].shape == tuple(shape)
    assert np.allclose(residual["w"], lost, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_nearer_to_the_target_than_the_base(method: str) -> None:
    base, target = pair(np.float32, (64, 48))
    made = compress(base, target, settings(method, group=64)).weights["w"]
    lost = {"top_k": 0.9, "int8": 0.01, "int4": 0.15, "sign": 0.65}[method]
    before = np.linalg.norm(target["w"] - base["w"])
    assert np.linalg.norm(target["w"] - made) < lost * before


def test_signs_that_rounding_swallows_are_sent_where_that_is_shorter() -> None:
    base, target = pair(DTYPES["bfloat16"], (64, 48), scale=1e-2)
    weights = dict(compress(base, target, settings("sign")).weights)
    assert 0 < (weights["w"] == base["w"]).mean() < 0.7
    assert set(np.unique(weights[update_name("w")].unpack())) == {0, 2}


@pytest.mark.parametrize("method", ["top_k", "int8", "int4"])
def test_what_rounding_swallows_is_not_sent_but_not_forgotten(method: str) -> None:
    base, target = pair(DTYPES["bfloat16"], (64, 48), scale=1e-3)
    exact = (target["w"] != base["w"]).mean()
    made = compress(base, target, settings(method, share=0.5))
    weights, residual = dict(made.weights), dict(made.residual)
    update = weights[update_name("w")]
    sent = update.unpack() != update.zero_points.ravel()[0]
    assert sent.any()
    assert (sent == (weights["w"] != base["w"])).all()
    assert sent.mean() < 2 * exact < 1
    assert np.allclose(residual["w"], target["w"].astype(float) - weights["w"].astype(float))


@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 5))
def test_the_largest_elements_are_kept_and_no_others(size: int, share: float, seed: int) -> None:
    update = np.random.default_rng(seed).integers(-4, 5, size).astype(np.float32)
    count = max(1, round(share * size))
    kept = largest(update, share)
    expected = sorted(range(size), key=lambda place: (-abs(update[place]), place))[:count]
    assert set(np.flatnonzero(kept)) == {place for place in expected if update[place]}
    assert (kept[expected] == update[expected]).all()
    codes = quantise(update, settings("top_k", share=share), (size,)).unpack()
    assert np.count_nonzero(codes) == np.count_nonzero(kept)
    assert (np.sign(codes) == np.sign(kept)).all()


def test_a_kept_element_stays_something_beside_a_giant() -> None:
    update = np.array([1000, 1e-3, 0, 0], np.float32)
    codes = quantise(update, settings("top_k", share=0.5, group=4), (4,)).unpack()
    assert codes.tolist() == [127, 1, 0, 0]


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 50))
def test_no_other_scale_of_the_signs_has_less_squared_error(size: int, group: int, seed: int) -> None:
    update = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    made = quantise(update, settings("sign", group=group), (size,))
    values = made.dequantize()
    assert (np.sign(values) == np.where(update >= 0, 1, -1)).all()
    for start in range(0, size, made.group_size):
        part, found = update[start : start + made.group_size].astype(float), values[start : start + made.group_size]

        def error(scale: float, part: Any = part) -> float:
            return float(((part - scale * np.where(part >= 0, 1, -1)) ** 2).sum())

        least = error(abs(float(found[0])))
        assert all(least <= error(abs(float(found[0])) * other) for other in (0.5, 0.99, 1.01, 2))


@pytest.mark.parametrize(("method", "steps"), [("int8", 127), ("int4", 7)])
def test_rounding_errs_by_half_a_step_at_most(method: str, steps: int) -> None:
    update = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    made = quantise(update, settings(method, group=100), (1000,))
    most = np.abs(update).reshape(10, 100).max(axis=1) / steps
    assert (made.scales[0] >= most).all()
    assert (made.scales[0] <= most * 1.01).all()
    assert (np.abs(made.dequantize() - update).reshape(10, 100) <= made.scales[0][:, None] * 0.5001).all()


@pytest.mark.parametrize("method", METHODS)
def test_errors_are_fed_back_so_that_sums_of_updates_agree(method: str) -> None:
    """A contraction by c leaves a residual of at most c / (1 - c) times the largest update (Karimireddy et al.)."""
    random = np.random.default_rng(2)
    size, rounds, chosen = 512, 120, settings(method, share=0.2, group=64)
    exact = np.zeros(size)
    weights: Weights = {"w": np.zeros(size, np.float32)}
    residual: Any = None
    largest_update = contraction = 0.0
    unfed = np.zeros(size)
    for _ in range(rounds):
        step = (0.01 + 0.02 * random.normal(size=size)).astype(np.float32)
        target = {"w": weights["w"] + step}
        exact += step
        wanted = step + (0 if residual is None else residual["w"])
        made = compress(weights, target, chosen, residual)
        weights, residual = {"w": made.weights["w"]}, dict(made.residual)
        largest_update = max(largest_update, float(np.linalg.norm(step)))
        contraction = max(contraction, float(np.linalg.norm(residual["w"]) / np.linalg.norm(wanted)))
        unfed += compress({"w": np.zeros(size, np.float32)}, {"w": step}, chosen).weights["w"]
    assert contraction < 1
    gap = np.linalg.norm(weights["w"] - exact)
    assert gap == pytest.approx(np.linalg.norm(residual["w"]), rel=1e-2, abs=1e-4)
    assert gap <= contraction / (1 - contraction) * largest_update
    if method != "int8":  # whose rounding is too fine to matter within so few rounds
        assert gap < np.linalg.norm(unfed - exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_updates_that_are_not_finite_are_refused(bad: float) -> None:
    base, target = pair(np.float32, (8, 8))
    target["w"][3, 3] = bad
    for one, other in ((base, target), (target, base)):
        with pytest.raises(BadWeights, match="'w' holds NaN"):
            compress(one, other, settings("int8"))


def test_numbers_at_the_end_of_a_dtype_are_refused_not_spoiled() -> None:
    base = {"w": np.array([-60000, 60000, 1, 1], np.float16)}
    target = {"w": np.array([0, 65504, 1, 1], np.float16)}
    with pytest.raises(BadWeights, match="beyond its dtype"):
        dict(compress(base, target, settings("sign")).weights)
    huge = {"w": np.array([1e300, 1.0])}
    with pytest.raises(BadWeights, match="beyond float32"):
        compress({"w": np.zeros(2)}, huge, settings("int4"))


def test_what_is_no_update_of_floats_is_sent_exactly() -> None:
    random = np.random.default_rng(3)
    base, target = pair(np.float32, (8, 8))
    others: Weights = {
        "counts": np.arange(64),
        "codes": quantized(random, "int4", (8, 8)),
        "new": np.ones(64, np.float32),
        "wider": np.ones((8, 9), np.float32),
        "other dtype": np.ones(64, np.float16),
        "n" * (MAX_NAME_BYTES - 4): np.ones(64, np.float32),
        "aios.optimizer/m": np.ones(64, np.float32),
    }
    old: Weights = {
        "counts": np.arange(64) + 1,
        "codes": quantized(random, "int4", (8, 8)),
        "wider": np.ones((8, 8), np.float32),
        "other dtype": np.ones(64, np.float32),
        "n" * (MAX_NAME_BYTES - 4): np.zeros(64, np.float32),
        "aios.optimizer/m": np.zeros(64, np.float32),
    }
    beside = {"aios.factors/up/w": np.ones((8, 1)), update_name("gone"): quantized(random, "int8", (3,), -1)}
    made = compress({**base, **old}, {**target, **others, **beside}, settings("int8"))
    weights = dict(made.weights)
    assert set(weights) == {"w", update_name("w"), *others}
    assert set(made.residual) == {"w"}
    assert hashes({name: weights[name] for name in others}) == hashes(others)
    assert isinstance(weights[update_name("w")], QuantizedTensor)
    assert list(made.weights) == sorted(weights)
    with pytest.raises(KeyError):
        made.weights["gone"]


def test_small_tensors_are_sent_exactly() -> None:
    base, target = pair(np.float32, (9, 9))
    assert set(compress(base, target, settings("sign", least=82)).weights) == {"w"}
    assert set(compress(base, target, settings("sign", least=81)).weights) == {"w", update_name("w")}


def test_what_was_lost_is_sent_even_where_nothing_new_was_learned() -> None:
    base, target = pair(np.float32, (16, 16))
    first = compress(base, target, settings("int4"))
    second = compress(first.weights, first.weights, settings("int4"), dict(first.residual))
    gaps = [np.linalg.norm(target["w"] - made.weights["w"]) for made in (first, second)]
    assert gaps[1] < 0.2 * gaps[0]
    assert set(compress(target, target, settings("int4")).weights) == {"w"}


def test_a_residual_of_another_shape_is_not_used() -> None:
    base, target = pair(np.float32, (16, 16))
    plain = compress(base, target, settings("int8")).weights["w"]
    stale = compress(base, target, settings("int8"), {"w": np.ones(3, np.float32)}).weights["w"]
    assert plain.tobytes() == stale.tobytes()


@pytest.mark.parametrize("bad", [{"method": "zip"}, {"share": 0}, {"share": 1.5}, {"group": -1}, {"least": -1}])
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        LossySettings.of(**{"method": "top_k", **bad})


def test_recipes_say_that_a_version_is_lossy_and_how() -> None:
    recipe = LossySettings.of("top_k", share=0.05).recipe({"method": "lora-merged"})
    assert recipe == {
        "method": "lora-merged",
        "lossy": True,
        "update": {"method": "top_k", "share": 0.05, "group": 4096, "least": 1024},
    }
    assert "share" not in LossySettings.of("sign").recipe(None)["update"]
