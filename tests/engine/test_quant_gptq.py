"""GPTQ: never worse than plain rounding, whatever the Hessian; better where inputs are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest, BadWeights
from aios_node.engine.quant import gptq as gptq_module
from aios_node.engine.quant.blocks import QuantType
from aios_node.engine.quant.gptq import GptqResult, gptq
from aios_node.engine.quant.hessian import HessianSum, Unusable, factorise, weighted_error
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

SETTINGS = st.builds(
    Settings,
    quant=st.sampled_from(["int8", "int4", "int2"]),
    symmetric=st.booleans(),
    axis=st.sampled_from([0, 0, 0, 1, -1]),
    group_size=st.sampled_from([0, 1, 5, 16, 32]),
    clip=st.sampled_from(["mse", "minmax"]),
)


def inputs(tokens: int, features: int, random: np.random.Generator) -> Floats:
    """Activations as networks have them: correlated, some features much larger than others."""
    mixing = random.normal(size=(features, features)) * np.exp(random.normal(size=features))
    return (random.normal(size=(tokens, features)) @ mixing / features).astype(np.float32)


def hessian_of(activations: Floats) -> Matrix:
    found = HessianSum(activations.shape[1])
    found.add(activations)
    return found.mean()


def adversary(kind: str, features: int, random: np.random.Generator) -> Matrix:
    """A Hessian of the kinds that broke other implementations."""
    square = random.normal(size=(features, features))
    good = square @ square.T
    low = random.normal(size=(features, max(1, features // 4)))
    if kind == "rank deficient":
        return low @ low.T
    if kind == "condition":
        basis = np.linalg.qr(square)[0]
        return (basis * np.logspace(0, -18, features)) @ basis.T
    if kind == "negative eigenvalues":
        return low @ low.T - 1e-9 * np.eye(features)
    if kind == "indefinite":
        return square + square.T
    if kind == "outlier":
        good[0] *= 1e6
        good[:, 0] *= 1e6
        return good
    if kind == "dead":
        good[::2], good[:, ::2] = 0.0, 0.0
        return good
    if kind == "one hot":
        return np.outer(np.eye(features)[0], np.eye(features)[0])
    if kind == "same inputs":
        return np.ones((features, features))
    if kind == "nan":
        good[0, -1] = np.nan
        return good
    if kind == "inf":
        good[-1, -1] = np.inf
        return good
    return {"zero": 0.0, "tiny": 1e-30, "huge": 1e30, "smallest": 5e-324, "largest": 1e300}[kind] * good


KINDS = [
    *("rank deficient", "condition", "negative eigenvalues", "indefinite", "outlier", "dead", "one hot"),
    *("same inputs", "nan", "inf", "zero", "tiny", "huge", "smallest", "largest"),
]


def own_error(weight: Floats, result: GptqResult, hessian: Matrix) -> float:
    with np.errstate(all="ignore"):
        change = weight.astype(np.float64) - result.tensor.dequantize().astype(np.float64)
        return float(((change @ hessian) * change).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_adversarial_hessians_do_no_harm(kind: str) -> None:
    """67 of each kind: finite results, never worse than plain rounding by the Hessian's measure."""
    for seed in range(67):
        random = np.random.default_rng(seed)
        features, outs = int(random.integers(1, 65)), int(random.integers(1, 9))
        weight = (random.normal(size=(outs, features)) * 10.0 ** random.integers(-30, 30)).astype(np.float32)
        hessian = adversary(kind, features, random)
        settings = Settings(
            quant=("int2", "int4", "int8")[seed % 3],
            symmetric=seed % 2 == 0,
            group_size=(0, 16, 7)[seed // 3 % 3],
            clip="mse" if seed % 5 else "minmax",
        )
        result = gptq(weight, hessian, settings, damping=(0.01, 0.0)[seed % 7 == 0], act_order=seed % 4 > 0)
        assert np.isfinite(result.tensor.dequantize()).all()
        plain = quantize_tensor(weight, "float32", settings).tensor
        if kind in ("nan", "inf", "zero"):
            assert result.fallback
            assert np.array_equal(result.tensor.codes, plain.codes)
        else:
            assert result.error <= result.plain_error or np.isnan(result.plain_error)


@given(
    shape=st.tuples(st.integers(0, 6), st.integers(0, 40)),
    settings=SETTINGS,
    seed=st.integers(0, 2**32),
    act_order=st.booleans(),
)
def test_never_worse_than_plain_rounding(
    shape: tuple[int, int], settings: Settings, seed: int, act_order: bool
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape).astype(np.float32)
    hessian = hessian_of(inputs(30, shape[1], random))
    result = gptq(weight, hessian, settings, act_order=act_order, dtype="float16")
    plain = quantize_tensor(weight, "float32", settings).tensor
    bound = weighted_error(weight.astype(np.float64) - plain.dequantize(), hessian)
    assert result.error <= bound * (1 + 1e-9)
    assert result.tensor.dtype == "float16"
    assert result.tensor.shape == shape
    assert result.tensor.scales.shape == plain.scales.shape


@pytest.mark.parametrize("quant", ["int2", "int4", "int8"])
@pytest.mark.parametrize(("axis", "group_size"), [(0, 16), (0, 0), (1, 16), (1, 0), (-1, 0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_output_errors_shrink_on_inputs_that_are_alike(
    quant: QuantType, axis: int, group_size: int, symmetric: bool
) -> None:
    """Wider than a block of columns, so that errors go from block to block. Judged on inputs it never saw."""
    random = np.random.default_rng(7)
    weight = random.normal(size=(24, 192)).astype(np.float32)
    seen = inputs(3000, 192, random)
    fresh = (seen[:1500] + seen[1500:]) / 2
    settings = Settings(quant, symmetric, axis, group_size, "mse")
    result = gptq(weight, hessian_of(seen), settings)
    plain = quantize_tensor(weight, "float32", settings).tensor
    found, before = (np.square(fresh @ (weight - each.dequantize()).T).sum() for each in (result.tensor, plain))
    assert result.fallback is None
    assert found < 0.7 * before
    assert result.error == pytest.approx(own_error(weight, result, hessian_of(seen)), rel=1e-6)


def literal_gptq(weight: Floats, hessian: Matrix, result: GptqResult, damping: float) -> Floats:
    """Frantar et al.'s Algorithm 1 as printed, with the inverse, one column after the other, in float64."""
    tensor = result.tensor
    size = len(hessian)
    damped = hessian + damping * hessian.diagonal().mean() * np.eye(size)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, kept = weight.astype(np.float64), np.zeros(weight.shape)
    groups = np.arange(size) // tensor.group_size
    scales, zeros = tensor.scales[:, groups].astype(np.float64), tensor.zero_points[:, groups].astype(np.float64)
    for k in range(size):
        codes = np.clip(np.rint(rest[:, k] / scales[:, k] + zeros[:, k]), 0, 2**tensor.bits - 1)
        kept[:, k] = (codes - zeros[:, k]) * scales[:, k]
        error = (rest[:, k] - kept[:, k]) / upper[k, k]
        rest[:, k:] -= np.outer(error, upper[k, k:])
    return kept.astype(np.float32)


def test_the_recursion_is_that_of_the_paper() -> None:
    random = np.random.default_rng(3)
    weight = random.normal(size=(8, 160)).astype(np.float32)
    hessian = hessian_of(inputs(400, 160, random))
    result = gptq(weight, hessian, Settings("int4", False, 0, 32, "minmax"), act_order=False, sweeps=0)
    expected = literal_gptq(weight, hessian, result, 0.01)
    same = np.isclose(result.tensor.dequantize(), expected, atol=1e-5)
    assert same.mean() > 0.999  # a value half-way between two codes may fall to either side in float32


def wide_layer(outs: int = 24, features: int = 200) -> tuple[Floats, Matrix]:
    random = np.random.default_rng(11)
    weight = random.normal(size=(outs, features)).astype(np.float32)
    return weight, hessian_of(inputs(2000, features, random))


DOUBLE = [Settings("int2", False, 0, 16, "mse", "double4"), Settings("int4", False, 0, 64, "mse", "double4")]


@pytest.mark.parametrize(
    "settings",
    [
        *DOUBLE,
        Settings("int2", False, 0, 32, "mse"),
        Settings("int2", True, 0, 16, "mse"),
        Settings("int4", True, 0, 0, "mse"),
        Settings("int8", False, 0, 0, "minmax"),
        Settings("int2", False, 1, 8, "mse"),
        Settings("int2", False, -1, 50, "mse"),
    ],
)
def test_refining_makes_the_error_smaller(settings: Settings) -> None:
    """Tails of groups included: 200 columns in groups of 16, 32 and 64."""
    weight, hessian = wide_layer()
    published = gptq(weight, hessian, settings, sweeps=0)
    errors = [gptq(weight, hessian, settings, sweeps=sweeps).error for sweeps in (1, 4)]
    assert published.error > errors[0] >= errors[1]
    result = gptq(weight, hessian, settings, sweeps=4)
    assert result.error == pytest.approx(own_error(weight, result, hessian), rel=1e-5)
    if settings.symmetric:
        assert np.array_equal(result.tensor.zero_points, published.tensor.zero_points)


@pytest.mark.parametrize("settings", DOUBLE)
def test_four_bit_scales_stay_four_bit_scales(settings: Settings) -> None:
    """And where codes are few, they move: 15 scales by 16 zero points are a choice."""
    weight, hessian = wide_layer()
    tensor = gptq(weight, hessian, settings).tensor
    compact = tensor.compact
    assert compact is not None
    assert np.array_equal(compact.scales(), tensor.scales)
    assert np.array_equal(compact.zero_points(2**tensor.bits - 1), tensor.zero_points)
    published = gptq(weight, hessian, settings, sweeps=0).tensor.compact
    assert published is not None
    assert np.array_equal(compact.steps, published.steps)
    if settings.quant == "int2":
        assert not np.array_equal(compact.scale_codes, published.scale_codes)
        assert not np.array_equal(compact.zero_codes, published.zero_codes)


@pytest.mark.parametrize("unit", [1e-33, 1e-12, 1.0, 1e12, 1e36])
@pytest.mark.parametrize("quant", ["int2", "int8"])
def test_the_size_of_weights_does_not_matter(unit: float, quant: QuantType) -> None:
    weight, hessian = wide_layer(6, 48)
    settings = Settings(quant, False, 0, 16, "mse")
    expected = gptq(weight, hessian, settings).error
    found = gptq((weight * unit).astype(np.float32), hessian * 1e-20, settings)
    assert found.error * 1e20 / unit**2 == pytest.approx(expected, rel=0.05)


def test_columns_of_large_inputs_come_first() -> None:
    diagonal = np.diag([1.0, 9.0, 0.0, 4.0])
    assert factorise(diagonal, damping=0.01, act_order=True).order.tolist() == [1, 3, 0, 2]
    assert factorise(diagonal, damping=0.01, act_order=False).order.tolist() == [0, 1, 2, 3]


@given(seed=st.integers(0, 2**32), features=st.integers(1, 20), act_order=st.booleans())
def test_the_factor_multiplies_to_the_damped_hessian(seed: int, features: int, act_order: bool) -> None:
    hessian = hessian_of(inputs(50, features, np.random.default_rng(seed)))
    factor = factorise(hessian, damping=0.05, act_order=act_order)
    assert np.allclose(np.tril(factor.upper, -1), 0)
    assert np.allclose(factor.upper.diagonal(), 1)
    damped = hessian + 0.05 * hessian.diagonal().mean() * np.eye(features)
    inner = np.linalg.inv(factor.upper) @ damped[factor.order][:, factor.order] @ np.linalg.inv(factor.upper.T)
    assert np.allclose(inner, np.diag(inner.diagonal()), atol=1e-6 * np.abs(damped).max())
    assert factor.damping == 0.05


def test_damping_climbs_until_the_factor_exists() -> None:
    hessian = np.array([[1.0, 1.05], [1.05, 1.0]])
    assert factorise(hessian, damping=0.0, act_order=True).damping == 0.1
    with pytest.raises(Unusable, match="not positive definite"):
        factorise(np.array([[1.0, 1e6], [1e6, 1.0]]), damping=0.01, act_order=True)


def test_columns_without_input_are_rounded_for_themselves() -> None:
    random = np.random.default_rng(5)
    activations = inputs(200, 32, random)
    activations[:, 8:16] = 0
    weight = random.normal(size=(4, 32)).astype(np.float32)
    settings = Settings("int4", False, 0, 8, "minmax")
    result = gptq(weight, hessian_of(activations), settings)
    plain = quantize_tensor(weight, "float32", settings).tensor
    assert result.fallback is None
    assert np.array_equal(result.tensor.unpack()[:, 8:16], plain.unpack()[:, 8:16])
    assert not np.array_equal(result.tensor.codes, plain.codes)


def test_numbers_beyond_float32_are_tried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[object] = []
    rounding = gptq_module._Rounding

    class Watched(rounding):  # type: ignore[misc, valid-type]  # the class is only known at run time
        def __init__(self, *given: Any) -> None:
            kinds.append(given[-1])
            super().__init__(*given)

    monkeypatch.setattr(gptq_module, "_Rounding", Watched)
    weight = np.full((2, 40), 3e38, np.float32)
    weight[:, ::2] = 1e36
    result = gptq(weight, hessian_of(inputs(60, 40, np.random.default_rng(0))), Settings("int2", True, 0, 0, "mse"))
    assert kinds == [np.float32, np.float64]
    assert result.error <= result.plain_error


def test_weights_that_no_model_may_hold_are_refused() -> None:
    for bad in (np.nan, np.inf):
        weight = np.ones((2, 3), np.float32)
        weight[1, 1] = bad
        with pytest.raises(BadWeights, match="NaN or Inf"):
            gptq(weight, np.eye(3), Settings())


def test_what_does_not_fit_together_is_refused() -> None:
    weight = np.ones((2, 3), np.float32)
    with pytest.raises(BadRequest, match="Hessian of shape"):
        gptq(weight, np.eye(2), Settings())
    with pytest.raises(BadRequest, match="float32 matrix"):
        gptq(weight[0], np.eye(3), Settings())
    for damping in (-0.1, float("nan"), 1e3):
        with pytest.raises(BadConfig, match="damping"):
            gptq(weight, np.eye(3), Settings(), damping=damping)


@given(seed=st.integers(0, 2**32), parts=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_a_sum_over_batches_leaves_padding_out(seed: int, parts: list[int]) -> None:
    random = np.random.default_rng(seed)
    found, rows = HessianSum(5), []
    for tokens in parts:
        batch = random.normal(size=(2, tokens, 5)).astype(np.float32)
        mask = random.random((2, tokens)) < 0.6
        rows.append(batch[mask])
        batch[~mask] = np.nan
        found.add(batch, mask)
    real = np.concatenate(rows).astype(np.float64)
    assert found.tokens == len(real)
    assert np.allclose(found.mean(), real.T @ real / max(1, len(real)), atol=1e-5)


def test_sums_of_other_shapes_are_refused() -> None:
    found = HessianSum(4)
    with pytest.raises(BadRequest, match="4 inputs"):
        found.add(np.zeros((2, 3), np.float32))
    with pytest.raises(BadRequest, match="mask"):
        found.add(np.zeros((2, 4), np.float32), np.ones(3, bool))
    found.add(np.full((1, 4), np.inf, np.float32))
    result = gptq(np.ones((2, 4), np.float32), found.mean(), Settings())
    assert result.fallback is not None
    assert "NaN or Inf" in result.fallback
