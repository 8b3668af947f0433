"""Packing, grouping and dequantising: against the plainest possible reading of the format."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadWeights, Corrupt, TooLarge
from aios_node.engine.quant.blocks import (
    BITS,
    Grouping,
    QuantizedTensor,
    by_channel,
    from_channels,
    pack,
    packed_size,
    unpack,
)
from aios_node.engine.quant.dtypes import count_of, dtype_of, from_bytes, raw_bytes


@given(bits=st.sampled_from([2, 4, 8]), data=st.data())
def test_packing_round_trips(bits: int, data: st.DataObject) -> None:
    least, most = (-128, 127) if bits == 8 else (0, 2**bits - 1)
    codes = np.array(data.draw(st.lists(st.integers(least, most), max_size=70)), dtype=np.int64)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_size(len(codes), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes.tolist()


def test_low_bits_come_first_and_the_rest_is_zero() -> None:
    assert pack(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.array([3, 2, 1, 0, 1]), 2).tolist() == [0b00011011, 0b01]
    assert pack(np.array([-1, -128, 127]), 8).tolist() == [255, 128, 127]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpacking_refuses_another_number_of_bytes(bits: int) -> None:
    with pytest.raises(Corrupt, match="bytes, not 3"):
        unpack(np.zeros(3, np.uint8), bits, 99)


def plain_dequantize(tensor: QuantizedTensor) -> np.ndarray[Any, Any]:
    """Value by value, straight from the definition."""
    codes = tensor.unpack()
    out = np.empty(tensor.shape, np.float32)
    counters: dict[int, int] = {}
    for place in np.ndindex(*tensor.shape):
        channel = 0 if tensor.axis == -1 else place[tensor.axis]
        # C order over the other axes is the order in which ndindex meets a channel's values.
        seen = counters.get(channel, 0)
        counters[channel] = seen + 1
        group = seen // tensor.group_size if tensor.group_size else 0
        code = np.float32(codes[place])
        out[place] = tensor.scales[channel, group] * (code - tensor.zero_points[channel, group])
    return out.astype(dtype_of(tensor.dtype))


@st.composite
def quantized_tensors(draw: st.DrawFn) -> QuantizedTensor:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    axis = draw(st.integers(-1, len(shape) - 1))
    size = draw(st.sampled_from([0, 1, 3, 16]))
    quant = draw(st.sampled_from(["int8", "int4", "int2"]))
    grouping = Grouping.of(shape, axis, size)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = random.integers(-128, 128, shape) if quant == "int8" else random.integers(0, 2 ** BITS[quant], shape)
    scales = random.uniform(0.1, 2, (grouping.channels, grouping.groups)).astype(np.float32)
    zero_points = random.uniform(-8, 8, scales.shape).astype(np.float32)
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
    return QuantizedTensor(pack(codes, BITS[quant]), scales, zero_points, shape, dtype, quant, axis, size)


@given(quantized_tensors())
def test_dequantising_is_what_the_format_says(tensor: QuantizedTensor) -> None:
    found = tensor.dequantize()
    assert found.shape == tensor.shape
    assert found.dtype == dtype_of(tensor.dtype)
    assert raw_bytes(found).tolist() == raw_bytes(plain_dequantize(tensor)).tolist()


@given(shape=st.lists(st.integers(0, 4), max_size=4).map(tuple), data=st.data())
def test_channels_and_back(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-1, len(shape) - 1))
    values = np.arange(count_of(shape)).reshape(shape)
    matrix = by_channel(values, axis)
    assert matrix.shape == ((1, values.size) if axis == -1 else (shape[axis], Grouping.of(shape, axis, 0).rest))
    assert from_channels(matrix, shape, axis).tolist() == values.tolist()


def test_groups_have_tails() -> None:
    assert (Grouping.of((3, 100), 0, 32).groups, Grouping.of((3, 100), 0, 32).tail) == (4, 4)
    assert Grouping.of((3, 100), -1, 0).groups == 1
    assert Grouping.of((0, 100), 1, 32).groups == 1


def valid() -> dict[str, Any]:
    return {
        "codes": np.zeros(6, np.uint8),
        "scales": np.ones((2, 1), np.float32),
        "zero_points": np.zeros((2, 1), np.float32),
        "shape": (2, 3),
        "dtype": "float32",
        "quant_type": "int8",
        "axis": 0,
        "group_size": 0,
    }


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"codes": np.zeros(5, np.uint8)}, Corrupt),
        ({"codes": np.zeros((2, 3), np.uint8)}, BadWeights),
        ({"codes": np.zeros(6, np.int8)}, BadWeights),
        ({"scales": np.ones((2, 2), np.float32)}, Corrupt),
        ({"scales": np.ones((2, 1))}, BadWeights),
        ({"zero_points": np.ones((1, 2), np.float32)}, Corrupt),
        ({"dtype": "int8"}, BadWeights),
        ({"dtype": "object"}, BadWeights),
        ({"quant_type": "int3"}, BadWeights),
        ({"axis": 2}, BadWeights),
        ({"axis": -2}, BadWeights),
        ({"group_size": -1}, BadWeights),
        ({"shape": (-2, -3)}, BadWeights),
        ({"shape": (2**62, 3)}, TooLarge),
        ({"shape": (1,) * 40}, BadWeights),
    ],
)
def test_parts_that_contradict_each_other_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    QuantizedTensor(**valid())
    with pytest.raises(error):
        QuantizedTensor(**{**valid(), **change})


@pytest.mark.parametrize(("quant", "used"), [("int4", 5), ("int2", 5)])
def test_padding_bits_must_be_zero(quant: str, used: int) -> None:
    codes = pack(np.zeros(used), BITS[quant])
    parts = {**valid(), "shape": (used,), "scales": np.ones((1, 1), np.float32), "axis": -1, "quant_type": quant}
    parts["zero_points"] = np.zeros((1, 1), np.float32)
    QuantizedTensor(**{**parts, "codes": codes})
    codes[-1] |= 0x80
    with pytest.raises(Corrupt, match="padding"):
        QuantizedTensor(**{**parts, "codes": codes})


def test_sizes_are_counted_without_overflow() -> None:
    assert count_of(()) == 1
    assert count_of((0, 5)) == 0
    for shape in [(2**31, 2**31, 2**31), (2**60, 0), (2**41,)]:
        with pytest.raises(TooLarge):
            count_of(shape)


BUILDERS: list[Callable[[], tuple[bytes, str, tuple[int, ...]]]] = [
    lambda: (b"\x00\x02", "bool", (2,)),
    lambda: (b"\x00" * 7, "float32", (2,)),
    lambda: (b"\x00" * 8, "complex64", (1,)),
    lambda: (b"\x00" * 8, "O", (1,)),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_bytes_that_are_no_tensor_are_refused(build: Callable[[], tuple[bytes, str, tuple[int, ...]]]) -> None:
    data, dtype, shape = build()
    with pytest.raises(BadWeights):
        from_bytes(np.frombuffer(data, np.uint8), dtype, shape)


def test_bytes_are_little_endian_and_in_c_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (values, np.asfortranarray(values), values.astype(">f4"), values[::-1][::-1]):
        assert raw_bytes(same).tobytes() == values.tobytes()
    narrow = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
    assert raw_bytes(from_bytes(raw_bytes(narrow), "bfloat16", (3, 2))).tolist() == raw_bytes(narrow).tolist()


def test_all_pairs_of_nibbles() -> None:
    pairs = np.array(list(itertools.product(range(16), repeat=2)))
    assert (unpack(pack(pairs, 4), 4, pairs.size).reshape(-1, 2) == pairs).all()
