"""Fitting scales and zero points of 4 bits: the stated bounds, for every combination of settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights
from aios_node.engine.quant import cuts
from aios_node.engine.quant.blocks import Grouping, QuantizedTensor, by_channel
from aios_node.engine.quant.double4 import fit_compact
from aios_node.engine.quant.fit import ROUNDING
from aios_node.engine.quant.ptq import ArrowQuantizer, Quantized, quantize_tensor
from aios_node.engine.quant.recipe import QuantizationConfig, Settings
from aios_node.engine.weights.manifest import tensor_hash

Floats = NDArray[np.float32]
LARGEST = 1e6
"""Beyond 15 of the largest float16 steps, times the 3 scales that int2 reaches at least, lies what no step reaches."""


@st.composite
def settings(draw: st.DrawFn, clip: str = "minmax") -> Settings:
    quant = draw(st.sampled_from(["int4", "int2"]))
    return Settings(
        quant,  # type: ignore[arg-type]
        quant == "int4" and draw(st.booleans()),
        draw(st.sampled_from([-1, 0, 1])),
        draw(st.sampled_from([16, 17, 32, 64, 100, 256])),
        clip,  # type: ignore[arg-type]
        "double4",
    )


@st.composite
def tensors(draw: st.DrawFn, dimensions: int | None = None, longest: int = 70) -> Floats:
    """Weights of all shapes with outliers, zeros, constants, one-sided groups, tiny and huge numbers."""
    sides = dimensions or draw(st.integers(2, 3))
    shape = tuple(draw(st.sampled_from([0, 1, 2, 3, 5, longest // 2, longest])) for _ in range(sides))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale, offset = draw(
        st.sampled_from([(1, 0), (0.02, 0), (1e-6, 0), (1e-3, 5), (1e-3, -5), (1e5, 0), (0, 1), (0, 0)])
    )
    values = (random.normal(size=shape) * scale + offset).astype(np.float32)
    for _ in range(draw(st.integers(0, 4)) if values.size else 0):
        outlier = draw(st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1e-20, 1.0, -1.0, LARGEST, -LARGEST]))
        values.flat[draw(st.integers(0, values.size - 1))] = outlier
    return values


def assert_within_the_bound(values: Floats, tensor: QuantizedTensor) -> None:
    grouping = tensor.grouping
    before, after = (by_channel(each, tensor.axis).astype(np.float64) for each in (values, tensor.dequantize()))
    starts = range(0, max(1, grouping.rest), grouping.size)
    largest = np.stack([np.abs(before[:, at : at + grouping.size]).max(axis=1, initial=0) for at in starts], axis=1)
    scales = tensor.scales.astype(np.float64)
    bound = scales / 2 + ROUNDING * (scales + largest)
    places = np.arange(grouping.rest) // grouping.size
    assert (np.abs(after - before) <= bound[:, places]).all()


@given(values=tensors(), chosen=settings())
def test_every_value_comes_back_within_the_stated_bound(values: Floats, chosen: Settings) -> None:
    tensor = quantize_tensor(values, "float32", chosen).tensor
    assert tensor.shape == values.shape
    assert tensor.compact is not None
    assert_within_the_bound(values, tensor)


@given(values=tensors(dimensions=1), size=st.sampled_from([16, 100]))
def test_vectors_are_one_channel(values: Floats, size: int) -> None:
    tensor = quantize_tensor(values, "float32", Settings("int4", False, -1, size, "minmax", "double4")).tensor
    assert_within_the_bound(values, tensor)


def test_ranges_are_no_larger_than_they_must_be() -> None:
    """Exact where the range fits the codes: zero code and scale code are what anybody would take."""
    values = np.array([[-1.0, 2.0] * 8, [0.0, 15.0] * 8, [-15.0, -3.0] * 8, [0.0, 0.0] * 8], np.float32)
    tensor = quantize_tensor(values, "float32", Settings("int2", False, 0, 16, "minmax", "double4")).tensor
    assert tensor.zero_points[:, 0].tolist() == [1.0, 0.0, 3.0, 0.0]
    assert tensor.scales[:3, 0] == pytest.approx([1.0, 5.0, 5.0], rel=1e-3)
    assert tensor.dequantize()[3].tolist() == [0.0] * 16


@given(values=tensors(), chosen=settings("mse"))
def test_the_search_is_never_worse_than_covering(values: Floats, chosen: Settings) -> None:
    covering = Settings(chosen.quant, chosen.symmetric, chosen.axis, chosen.group_size, "minmax", "double4")
    plain, searched = (quantize_tensor(values, "float32", each).squared_error for each in (covering, chosen))
    assert searched <= plain * (1 + 1e-12)


def normal(*shape: int) -> Floats:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def fitted(quant: Any, group: int, scales: Any) -> Quantized:
    return quantize_tensor(normal(64, 768), "float32", Settings(quant, False, 0, group, "mse", scales))


def test_groups_of_16_beat_plain_groups_of_32_in_fewer_bytes() -> None:
    double, plain = fitted("int2", 16, "double4"), fitted("int2", 32, "float32")
    assert double.squared_error < 0.72 * plain.squared_error
    assert double.tensor.nbytes < 0.65 * plain.tensor.nbytes
    assert double.tensor.nbytes * 8 / 64 / 768 == 2.5625


@pytest.mark.parametrize(("quant", "most"), [("int2", 0.93), ("int4", 1.12)])
def test_the_search_makes_up_for_the_missing_bits(quant: str, most: float) -> None:
    assert fitted(quant, 32, "double4").squared_error < most * fitted(quant, 32, "float32").squared_error


@given(values=tensors(2, 40), chosen=settings("mse"), block=st.sampled_from([7, 64, 300]))
def test_results_do_not_depend_on_how_the_work_is_cut(values: Floats, chosen: Settings, block: int) -> None:
    whole = quantize_tensor(values, "float32", chosen).tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "BLOCK_VALUES", block)
        cut = quantize_tensor(np.asfortranarray(values), "float32", chosen).tensor
    assert tensor_hash(whole) == tensor_hash(cut)


def test_what_counts_more_comes_back_better() -> None:
    values, counts = normal(8, 256), np.ones((8, 256), np.float32)
    counts[:, ::4] = 0.01
    chosen = Settings("int2", False, 0, 32, "mse", "double4")
    even, weighted = (quantize_tensor(values, "float32", chosen, importance=each) for each in (None, counts))
    errors = [float((counts * (each.tensor.dequantize() - values) ** 2).sum()) for each in (even, weighted)]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_values_that_no_step_reaches_are_refused_by_name(clip: Any) -> None:
    config = QuantizationConfig("int4", False, 0, 16, clip, scales="double4")
    with pytest.raises(BadWeights, match=r"tensor 'w': scales must be .* use scales float32"):
        ArrowQuantizer(config).quantize({"w": np.array([[1.0, 3e8]], np.float32)})


@pytest.mark.parametrize("quant", ["int2", "int4"])
def test_scales_of_the_version_before_stay(quant: Any) -> None:
    quantizer = ArrowQuantizer(QuantizationConfig(quant, False, 0, 16, "mse", scales="double4"))
    first = quantizer.quantize({"w": normal(20, 100)})
    second = quantizer.quantize({"w": normal(20, 100) * np.float32(1.02)}, previous=first)
    before, after = first["w"], second["w"]
    assert isinstance(before, QuantizedTensor)
    assert isinstance(after, QuantizedTensor)
    assert after.compact is before.compact
    assert (after.codes != before.codes).any()
    changed = quantizer.quantize({"w": normal(20, 100) * 3}, previous=first)
    assert tensor_hash(changed["w"]) == tensor_hash(quantizer.quantize({"w": normal(20, 100) * 3})["w"])


def test_scales_of_another_codec_are_not_used() -> None:
    plain = QuantizationConfig("int4", False, 0, 16, "mse")
    double = QuantizationConfig("int4", False, 0, 16, "mse", scales="double4")
    first = ArrowQuantizer(plain).quantize({"w": normal(4, 32)})
    found = ArrowQuantizer(double).quantize({"w": normal(4, 32)}, previous=first)
    assert tensor_hash(found["w"]) == tensor_hash(ArrowQuantizer(double).quantize({"w": normal(4, 32)})["w"])


def test_an_empty_table_of_groups_has_scales() -> None:
    for shape in ((0, 5), (5, 0)):
        grouping = Grouping.of(shape, 0, 16)
        compact = fit_compact(np.zeros(shape, np.float32), grouping, Settings("int2", False, 0, 16, "mse", "double4"))
        assert compact.scales().shape == (grouping.channels, grouping.groups)
