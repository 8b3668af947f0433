"""Scales and zero points of 4 bits: what their codes mean, and everything that is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadWeights, Corrupt
from aios_node.engine.quant.blocks import QuantizedTensor, pack
from aios_node.engine.quant.scales import (
    LARGEST_STEP,
    LEAST_STEP,
    CompactScales,
    CompactSizes,
    nearest_compact,
    steps_for,
    zero_levels,
)


def test_the_meaning_of_every_code() -> None:
    compact = CompactScales.of(
        np.array([[0.5], [0.25]], np.float16), np.array([[1, 15], [3, 4]]), np.array([[0, 5], [9, 15]])
    )
    assert compact.scales().tolist() == [[0.5, 7.5], [0.75, 1.0]]
    assert compact.zero_points(15).tolist() == [[0, 5], [9, 15]]
    assert compact.zero_points(3)[0].tolist() == [0, 1]
    assert compact.scale_codes.tolist() == [0xF1, 0x43]
    assert zero_levels(15).tolist() == list(range(16))
    # Halves would round differently in another precision: these bits are the format.
    assert zero_levels(3)[[1, 7]].tobytes().hex() == "cdcc4c3e3333b33f"


def test_a_step_serves_sixteen_groups() -> None:
    compact = CompactScales.of(np.array([[1, 2]], np.float16), np.ones((1, 18), int), np.zeros((1, 18), int))
    assert compact.scales().tolist() == [[1.0] * 16 + [2.0] * 2]
    assert (compact.nbytes, compact.channels) == (4 + 9 + 9, 1)


@given(channels=st.integers(0, 4), groups=st.integers(1, 40), quant=st.sampled_from([3, 15]), data=st.data())
def test_the_nearest_form_is_near(channels: int, groups: int, quant: int, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scales = (random.uniform(1e-2, 1, (channels, groups)) * data.draw(st.sampled_from([0.2, 1, 1e4]))).astype(
        np.float32
    )
    zeros = random.uniform(-1, quant + 1, scales.shape).astype(np.float32)
    compact = nearest_compact(scales, zeros, quant)
    assert compact.nbytes == CompactSizes.of(channels, groups).total
    steps = np.repeat(compact.steps.astype(np.float64), 16, axis=1)[:, :groups]
    assert (np.abs(compact.scales() - scales) <= np.where(scales < steps, 1, 0.51) * steps).all()
    assert (np.abs(compact.zero_points(quant) - zeros.clip(0, quant)) <= 0.5001 * quant / 15).all()
    again = nearest_compact(compact.scales(), compact.zero_points(quant), quant)
    assert (again.zero_codes == compact.zero_codes).all()
    covering = steps_for(scales, cover=True)
    assert (np.repeat(covering.astype(np.float64), 16, axis=1)[:, :groups] * 15 >= scales).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 16 * LARGEST_STEP])
def test_scales_that_cannot_be_kept_are_refused(scale: float) -> None:
    with pytest.raises(BadWeights, match="use scales float32"):
        nearest_compact(np.array([[1.0, scale]]), np.zeros((1, 2)), 15)
    with pytest.raises(BadWeights, match="zero points"):
        nearest_compact(np.array([[1.0]]), np.array([[np.nan]]), 15)


def valid() -> dict[str, Any]:
    return {
        "steps": np.ones((2, 1), np.float16),
        "scale_codes": np.array([0x11, 0x11, 0x11], np.uint8),
        "zero_codes": np.zeros(3, np.uint8),
        "groups": 3,
    }


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": np.ones((2, 1), np.float32)}, BadWeights),
        ({"steps": np.ones(2, np.float16)}, BadWeights),
        ({"steps": np.ones((2, 2), np.float16)}, Corrupt),
        ({"steps": np.ones((3, 1), np.float16)}, Corrupt),
        ({"steps": np.array([[1], [0]], np.float16)}, Corrupt),
        ({"steps": np.array([[1], [-1]], np.float16)}, Corrupt),
        ({"steps": np.array([[1], [np.nan]], np.float16)}, Corrupt),
        ({"steps": np.array([[1], [np.inf]], np.float16)}, Corrupt),
        ({"steps": np.array([[1], [LEAST_STEP / 2]], np.float16)}, Corrupt),
        ({"scale_codes": np.array([0x11, 0x01, 0x11], np.uint8)}, Corrupt),
        ({"scale_codes": np.array([0x11, 0x11], np.uint8)}, Corrupt),
        ({"scale_codes": np.array([1, 1, 1], np.int8)}, BadWeights),
        ({"zero_codes": np.zeros(4, np.uint8)}, Corrupt),
        ({"zero_codes": np.zeros((3, 1), np.uint8)}, BadWeights),
        ({"groups": 0}, Corrupt),
        ({"groups": 17}, Corrupt),
    ],
)
def test_parts_that_cannot_be_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    CompactScales(**valid())
    with pytest.raises(error):
        CompactScales(**{**valid(), **change})


def test_padding_must_be_zero() -> None:
    parts = {"steps": np.ones((1, 1), np.float16), "groups": 1}
    CompactScales(scale_codes=np.array([0x01], np.uint8), zero_codes=np.array([0x0F], np.uint8), **parts)
    for scale, zero in ((0x11, 0), (0x01, 0x10)):
        with pytest.raises(Corrupt, match="padding"):
            CompactScales(scale_codes=np.array([scale], np.uint8), zero_codes=np.array([zero], np.uint8), **parts)


def test_codes_of_scales_must_be_codes() -> None:
    steps = np.ones((1, 1), np.float16)
    for scale, zero in ((0, 0), (16, 0), (1, -1), (1, 16)):
        with pytest.raises(BadWeights, match="must be a table"):
            CompactScales.of(steps, np.array([[scale]]), np.array([[zero]]))


def compacted() -> QuantizedTensor:
    compact = CompactScales.of(np.array([[0.5]], np.float16), np.array([[2, 3]]), np.array([[4, 15]]))
    return QuantizedTensor.compacted(pack(np.arange(8), 2), compact, (8,), "float32", "int2", -1, 4)


def test_a_tensor_of_compact_scales_means_what_they_say() -> None:
    tensor = compacted()
    assert tensor.nbytes == 2 + 2 + 1 + 1
    low = [np.float32(code) - np.float32(0.8) for code in range(4)]
    assert tensor.dequantize().tolist() == [*low, -4.5, -3.0, -1.5, 0.0]


@pytest.mark.parametrize("part", ["scales", "zero_points"])
def test_what_a_tensor_says_twice_must_agree(part: str) -> None:
    tensor = compacted()
    parts = {name: getattr(tensor, name) for name in tensor.__dataclass_fields__}
    QuantizedTensor(**parts)
    with pytest.raises(Corrupt, match="compact form"):
        QuantizedTensor(**{**parts, part: parts[part] + np.float32(1)})


def test_compact_scales_of_another_tensor_are_refused() -> None:
    compact = compacted().compact
    assert compact is not None
    with pytest.raises(Corrupt, match="scales have shape"):
        QuantizedTensor.compacted(pack(np.arange(8), 2), compact, (8,), "float32", "int2", -1, 3)
    with pytest.raises(BadWeights, match="int8 has no scales of 4 bits"):
        QuantizedTensor.compacted(np.zeros(8, np.uint8), compact, (8,), "float32", "int8", -1, 4)
