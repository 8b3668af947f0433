"""Comparing weights, and casting them."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.cast import cast_weights
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.quant.validate import PrecisionValidator


def weights() -> dict[str, Tensor]:
    random = np.random.default_rng(3)
    return {
        "a": random.normal(size=(8, 64)).astype(np.float32),
        "b": random.normal(size=(1500, 1000)).astype(np.float32),
        "ids": np.arange(4),
        "zero": np.zeros(3, np.float32),
        "none": np.zeros((0, 2), np.float32),
    }


def test_equal_weights_have_no_error() -> None:
    result = PrecisionValidator(min_cosine=1.0, max_relative_error=0.0).compare(weights(), weights())
    assert result.passed
    assert (result.cosine, result.relative_error, result.bits) == (1.0, 0.0, 32.0)
    assert {each.name for each in result.tensors} == {"a", "b", "zero", "none"}


def test_errors_are_what_plain_numpy_says() -> None:
    original = weights()
    quantised = ArrowQuantizer(presets()["int4"]).quantize(original)
    result = PrecisionValidator(min_cosine=0.9999).compare(original, quantised)
    errors = [each.relative_error for each in result.tensors]
    assert errors == sorted(errors, reverse=True)
    for each in result.tensors:
        if each.name in ("a", "b"):
            before = np.asarray(original[each.name], np.float64)
            tensor = quantised[each.name]
            after = tensor.dequantize().astype(np.float64)  # type: ignore[union-attr]
            norm = np.linalg.norm
            assert each.relative_error == pytest.approx(norm(after - before) / norm(before))
            assert each.cosine == pytest.approx((after * before).sum() / norm(after) / norm(before))
            assert each.max_error == pytest.approx(np.abs(after - before).max())
            assert each.bits == 8 * tensor.nbytes / tensor.size
    assert not result.passed
    assert all(name in " ".join(result.failures) for name in ("a:", "b:"))
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["passed"] is False


def test_a_zero_tensor_that_is_no_longer_zero() -> None:
    result = PrecisionValidator(max_relative_error=0.5).compare({"a": np.zeros(2)}, {"a": np.ones(2)})
    assert (result.tensors[0].cosine, result.tensors[0].relative_error) == (0.0, 1.0)
    assert not result.passed


@pytest.mark.parametrize("other", [{}, {"b": np.ones(2)}, {"a": np.ones(3)}])
def test_other_names_and_shapes_cannot_be_compared(other: dict[str, Tensor]) -> None:
    with pytest.raises(BadWeights, match=r"'[ab]'"):
        PrecisionValidator().compare({"a": np.ones(2)}, other)


def test_casting_rounds_floats_and_leaves_the_rest() -> None:
    original = weights()
    result = cast_weights(original, "float16")
    assert result["a"].dtype == np.float16
    assert result["ids"] is original["ids"]
    assert cast_weights(original, "bfloat16")["a"].dtype == ml_dtypes.bfloat16
    with pytest.raises(BadWeights, match="'big'"):
        cast_weights({"big": np.array([1e6], np.float32)}, "float16")
    with pytest.raises(BadRequest, match="derived from"):
        cast_weights(ArrowQuantizer(presets()["int8"]).quantize(original), "float16")
    with pytest.raises(BadRequest, match="float dtype"):
        cast_weights(original, "int8")


@pytest.mark.parametrize("scale", [1e-85, 1e85])
def test_tiny_and_huge_weights_have_errors_too(scale: float) -> None:
    result = PrecisionValidator().compare({"a": np.array([scale, 0.0])}, {"a": np.array([scale, scale])})
    assert result.cosine == pytest.approx(2**-0.5)
    assert result.relative_error == pytest.approx(1)
