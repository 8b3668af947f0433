"""Post-training quantisation: the stated error bounds, for every combination of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest, BadWeights
from aios_node.engine.quant import cuts
from aios_node.engine.quant.blocks import Grouping, QuantizedTensor, Tensor, by_channel
from aios_node.engine.quant.fit import ROUNDING, ordered_sum
from aios_node.engine.quant.ptq import ArrowQuantizer, quantize_tensor
from aios_node.engine.quant.recipe import Override, QuantizationConfig, Settings, presets
from aios_node.engine.quant.validate import PrecisionValidator

SETTINGS = st.builds(
    Settings,
    quant=st.sampled_from(["int8", "int4", "int2"]),
    symmetric=st.booleans(),
    axis=st.sampled_from([-1, 0, 1]),
    group_size=st.sampled_from([0, 1, 3, 16, 32, 100, 256]),
    clip=st.just("minmax"),
)
EXTREMES = [0.0, -0.0, 1e-45, -1e-38, 1e-20, 1.0, -1.0, 1e30, 3.4028234e38, -3.4028234e38]


SHAPES = (
    st.tuples(st.integers(0, 7), st.integers(0, 40))
    | st.tuples(st.integers(0, 2), st.integers(200, 300))
    | st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9))
)


@st.composite
def matrices(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> NDArray[np.float32]:
    """Ordinary weights with what goes wrong elsewhere: outliers, zeros, constants, tiny and huge numbers."""
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale, offset = draw(st.sampled_from([(1, 0), (0.02, 0), (1e-40, 0), (1e-3, 5.0), (1e37, 0), (0, 1), (0, 0)]))
    values = (random.normal(size=shape) * scale + offset).astype(np.float32)
    if values.size:
        for _ in range(draw(st.integers(0, 3))):
            values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(EXTREMES))
    return values


def spread(values: NDArray[Any], tensor: QuantizedTensor) -> NDArray[Any]:
    """One number per group, [channels, groups], as one per value, [channels, rest]."""
    grouping = tensor.grouping
    places = np.arange(grouping.rest) // (grouping.size or max(1, grouping.rest))
    return values[:, places]


def group_maximum(magnitudes: NDArray[Any], grouping: Grouping) -> NDArray[Any]:
    size = grouping.size or max(1, grouping.rest)
    starts = range(0, max(1, grouping.rest), size)
    return np.stack([magnitudes[:, at : at + size].max(axis=1, initial=0) for at in starts], axis=1)


@given(values=matrices(), settings=SETTINGS)
def test_every_value_comes_back_within_the_stated_bound(values: NDArray[np.float32], settings: Settings) -> None:
    assert_within_the_bound(values, settings)


@given(values=matrices(st.tuples(st.integers(0, 300))), settings=SETTINGS)
def test_vectors_are_one_channel_or_many(values: NDArray[np.float32], settings: Settings) -> None:
    assert_within_the_bound(values, replace(settings, axis=min(settings.axis, 0)))


def assert_within_the_bound(values: NDArray[np.float32], settings: Settings) -> None:
    tensor = quantize_tensor(values, "float32", settings).tensor
    assert tensor.shape == values.shape
    assert np.isfinite(tensor.scales).all()
    assert (tensor.scales > 0).all()
    before = by_channel(values, settings.axis).astype(np.float64)
    after = by_channel(tensor.dequantize(), settings.axis).astype(np.float64)
    largest = group_maximum(np.abs(before), tensor.grouping)
    bound = tensor.scales.astype(np.float64) / 2 + ROUNDING * largest
    assert (np.abs(after - before) <= spread(bound, tensor)).all()


@given(values=matrices(), settings=SETTINGS)
def test_the_clip_search_is_never_worse(values: NDArray[np.float32], settings: Settings) -> None:
    searching = Settings(settings.quant, settings.symmetric, settings.axis, settings.group_size, "mse")
    plain, searched = (quantize_tensor(values, "float32", each).squared_error for each in (settings, searching))
    assert searched <= plain


def test_the_clip_search_helps_where_one_value_is_far_off() -> None:
    values = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)
    values[:, 0] = 20
    errors = [
        quantize_tensor(values, "float32", Settings("int4", False, 0, 0, clip)).squared_error
        for clip in ("minmax", "mse")
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("quant", ["int8", "int4", "int2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_and_zero_rows_come_back_exactly(quant: Any, symmetric: bool) -> None:
    values = np.repeat(np.array([[0.0], [0.1], [-7.3], [1e30], [1e-30]], np.float32), 33, axis=1)
    for clip in ("minmax", "mse"):
        tensor = quantize_tensor(values, "float32", Settings(quant, symmetric, 0, 16, clip)).tensor  # type: ignore[arg-type]
        assert (tensor.dequantize() == values).all()


@given(values=matrices(), settings=SETTINGS, block=st.sampled_from([1, 7, 64]))
def test_results_do_not_depend_on_how_the_work_is_cut(
    values: NDArray[np.float32], settings: Settings, block: int
) -> None:
    whole = quantize_tensor(values, "float32", settings).tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "BLOCK_VALUES", block)
        cut = quantize_tensor(values, "float32", settings).tensor
    assert same(whole, cut)
    assert same(whole, quantize_tensor(np.asfortranarray(values), "float32", settings).tensor)


def same(a: Tensor, b: Tensor) -> bool:
    assert isinstance(a, QuantizedTensor)
    assert isinstance(b, QuantizedTensor)
    return (
        bool((a.codes == b.codes).all())
        and a.scales.tobytes() == b.scales.tobytes()
        and a.zero_points.tobytes() == b.zero_points.tobytes()
    )


@given(st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_the_ordered_sum_adds_everything_once(values: list[float]) -> None:
    column = np.array(values, np.float64).reshape(-1, 1)
    assert ordered_sum(column.copy())[0] == pytest.approx(sum(values), abs=1e-6)


def model(seed: int = 0) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {
        "embeddings.word": random.normal(size=(50, 32)).astype(np.float32),
        "layer.weight": random.normal(size=(32, 40)).astype(np.float32),
        "layer.bias": random.normal(size=32).astype(np.float32),
        "conv.weight": random.normal(size=(4, 3, 5, 5)).astype(np.float16),
        "brain.weight": random.normal(size=(8, 8)).astype(ml_dtypes.bfloat16),
        "positions": np.arange(6).reshape(1, 6),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_presets_quantise_what_has_two_dimensions_and_leave_the_rest(name: str) -> None:
    weights = model()
    done: list[tuple[str, int, int]] = []
    result = ArrowQuantizer(presets()[name]).quantize(weights, progress=lambda *step: done.append(step))
    assert [step[1:] for step in done] == [(number + 1, 8) for number in range(8)]
    assert list(result) == sorted(weights)
    for plain in ("layer.bias", "positions", "scalar"):
        assert result[plain] is weights[plain]
    layer = result["layer.weight"]
    assert isinstance(layer, QuantizedTensor)
    assert layer.quant_type == name
    for kept in ("conv.weight", "brain.weight"):
        tensor = result[kept]
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.dequantize().dtype == weights[kept].dtype
        assert tensor.shape == weights[kept].shape
    embedding = result["embeddings.word"]
    assert isinstance(embedding, QuantizedTensor)
    assert embedding.quant_type == {"int8": "int8", "int4": "int4", "int2": "int4"}[name]


def errors_of(weights: Mapping[str, Tensor], name: str) -> None:
    ArrowQuantizer(presets()[name]).quantize(weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_refused_by_name(value: float, dtype: Any) -> None:
    weights: dict[str, Tensor] = {"good": np.ones((2, 2), dtype), "bad": np.array([[1, value], [1, 1]], dtype)}
    with pytest.raises(BadWeights, match="'bad'"):
        errors_of(weights, "int8")


def test_numbers_beyond_float32_are_refused() -> None:
    with pytest.raises(BadWeights, match="'w'"):
        errors_of({"w": np.array([[1e300, 0]])}, "int8")


def test_what_is_quantised_already_is_refused() -> None:
    once = ArrowQuantizer(presets()["int8"]).quantize(model())
    with pytest.raises(BadRequest, match="derived from"):
        errors_of(once, "int4")


def test_an_axis_that_a_tensor_lacks_is_refused() -> None:
    with pytest.raises(BadConfig, match="no axis 2"):
        ArrowQuantizer(QuantizationConfig(axis=2)).quantize({"w": np.ones((2, 2), np.float32)})


@pytest.mark.parametrize("config", [QuantizationConfig(method="gptq"), QuantizationConfig(target_bytes=10**6)])
def test_recipes_that_need_more_than_weights_are_refused(config: QuantizationConfig) -> None:
    with pytest.raises(BadConfig, match="recipe: "):
        ArrowQuantizer(config)


def test_overrides_decide_by_name_and_the_first_match_wins() -> None:
    config = QuantizationConfig(
        quant="int4",
        overrides=(Override.of("layer.*", "none"), Override.of("*.weight", {"quant": "int2", "axis": -1})),
    )
    result = ArrowQuantizer(config).quantize(model())
    assert isinstance(result["layer.weight"], np.ndarray)
    brain, words = result["brain.weight"], result["embeddings.word"]
    assert isinstance(brain, QuantizedTensor)
    assert isinstance(words, QuantizedTensor)
    assert (brain.quant_type, brain.axis) == ("int2", -1)
    assert (words.quant_type, words.axis) == ("int4", 0)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_scales_stay_while_the_error_allows(name: str) -> None:
    quantizer = ArrowQuantizer(presets()[name])
    first = quantizer.quantize(model())
    nudged = {key: (value * 1.001 if key == "layer.weight" else value) for key, value in model().items()}
    second = quantizer.quantize(nudged, previous=first)
    before, after = first["layer.weight"], second["layer.weight"]
    assert isinstance(before, QuantizedTensor)
    assert isinstance(after, QuantizedTensor)
    assert after.scales.tobytes() == before.scales.tobytes()
    assert after.zero_points.tobytes() == before.zero_points.tobytes()
    assert not same(quantizer.quantize(nudged)["layer.weight"], after)
    assert same(second["embeddings.word"], first["embeddings.word"])


def test_scales_are_made_anew_when_the_error_grows() -> None:
    quantizer = ArrowQuantizer(presets()["int4"])
    first = quantizer.quantize(model())
    changed = {**model(), "layer.weight": model()["layer.weight"] * 3}  # type: ignore[operator]
    fresh = quantizer.quantize(changed)
    assert same(quantizer.quantize(changed, previous=first)["layer.weight"], fresh["layer.weight"])


def test_scales_of_another_layout_are_not_used() -> None:
    first = ArrowQuantizer(presets()["int4"]).quantize(model())
    second = ArrowQuantizer(presets()["int8"]).quantize(model(), previous=first)
    assert same(second["layer.weight"], ArrowQuantizer(presets()["int8"]).quantize(model())["layer.weight"])


def test_a_frozen_scale_may_be_far_too_small() -> None:
    settings = Settings("int8", False, 0, 0)
    tiny = quantize_tensor(np.full((1, 2), 1e-38, np.float32), "float32", settings).tensor
    huge = quantize_tensor(np.array([[3e38, -3e38]], np.float32), "float32", settings, frozen=tiny)
    assert huge.tensor.unpack().tolist() == [[127, -128]]


def test_quantising_minilm_keeps_its_weights(minilm_weights: Mapping[str, Tensor]) -> None:
    for name, least in (("int8", 0.9999), ("int4", 0.997), ("int2", 0.96)):
        result = ArrowQuantizer(presets()[name]).quantize(minilm_weights)
        assert PrecisionValidator().compare(minilm_weights, result).cosine > least
