"""Packed weights: every kernel against the dequantised tensor, and encoders against float32 ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.nets import packed
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import WORDS
from aios_node.engine.nets.lowbit import build_encoder
from aios_node.engine.nets.packed import FEW_ROWS, PackedLinear, PackedMatrix, PackedTable
from aios_node.engine.quant.blocks import Grouping, QuantizedTensor, pack
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import QuantizationConfig, presets
from aios_node.engine.quant.scales import nearest_compact


def quantised(
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    zero: bool = True,
    compact: bool = False,
    axis: int = 0,
    seed: int = 0,
) -> QuantizedTensor:
    """A tensor of random codes, scales and zero points."""
    random = np.random.default_rng(seed)
    low, high = (-128, 128) if bits == 8 else (0, 2**bits)
    codes = pack(random.integers(low, high, shape), bits)
    grouping = Grouping.of(shape, axis, group)
    table = (grouping.channels, grouping.groups)
    scales = random.uniform(0.01, 0.2, table).astype(np.float32)
    zeros = random.uniform(low, high, table).astype(np.float32) * np.float32(zero)
    kind: Any = f"int{bits}"
    if compact and bits < 8:
        small = nearest_compact(scales, zeros, 2**bits - 1)
        return QuantizedTensor.compacted(codes, small, shape, "float32", kind, axis, group)
    return QuantizedTensor(codes, scales, zeros, shape, "float32", kind, axis, group)


def matrix_of(tensor: QuantizedTensor) -> PackedMatrix:
    matrix = PackedMatrix.of(tensor)
    assert matrix is not None
    return matrix


@st.composite
def tensors(draw: st.DrawFn) -> QuantizedTensor:
    bits, parts = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([1, 3, 4, 6, 8, 12, 20, 40]))
    shape = (draw(st.integers(1, 20)), parts * 8 // bits * draw(st.sampled_from([1, 2])))
    group = draw(st.sampled_from([0, 8, 16, 20, 32, 64]))
    zero, compact, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 9))
    if draw(st.integers(0, 4)) == 0:
        return quantised(shape, bits, 0, axis=1, seed=seed)
    return quantised(shape, bits, group, zero=zero, compact=compact, seed=seed)


@given(tensors(), st.integers(1, FEW_ROWS + 2), st.sampled_from([None, "gelu", "relu"]))
def test_products_are_those_of_the_dequantised_weights(tensor: QuantizedTensor, rows: int, activation: Any) -> None:
    random = torch.Generator().manual_seed(rows)
    x, bias = torch.randn(1, rows, tensor.shape[1], generator=random), torch.randn(tensor.shape[0], generator=random)
    found = PackedLinear(matrix_of(tensor), bias, activation)(x)
    weight = torch.tensor(tensor.dequantize())
    expected = packed.ACTIVATIONS[activation](x.double() @ weight.double().T + bias)
    assert found.shape == (1, rows, tensor.shape[0])
    assert torch.allclose(found.double(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("columns", [16, 128, 144, 384])
@pytest.mark.parametrize("group", [8, 16, 32])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_small_scales_are_opened_row_by_row(bits: int, group: int, columns: int, rows: int) -> None:
    """Whole super-blocks and parts of them, even and odd numbers of groups."""
    tensor = quantised((7, columns), bits, group, compact=True)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    assert matrix_of(tensor).has_loops
    found = PackedLinear(matrix_of(tensor), torch.zeros(7))(x)
    assert torch.allclose(found, x @ torch.tensor(tensor.dequantize()).T, atol=1e-4)


@given(tensors(), st.lists(st.integers(0, 10**6), max_size=9))
def test_rows_are_those_of_the_dequantised_table(tensor: QuantizedTensor, picks: list[int]) -> None:
    ids = torch.tensor([[pick % tensor.shape[0] for pick in picks]], dtype=torch.int64).reshape(1, -1)
    found = PackedTable(matrix_of(tensor))(ids)
    np.testing.assert_allclose(found.numpy(), tensor.dequantize()[ids.numpy()], atol=1e-5)


def test_nothing_in_nothing_out() -> None:
    tensor = quantised((4, 32), 4, 16)
    assert PackedLinear(matrix_of(tensor), torch.zeros(4))(torch.zeros(0, 5, 32)).shape == (0, 5, 4)
    assert PackedTable(matrix_of(tensor))(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 32)


@pytest.mark.parametrize("number", [-1, 4])
def test_ids_beyond_the_table_are_refused(number: int) -> None:
    table = PackedTable(matrix_of(quantised((4, 32), 4, 16)))
    with pytest.raises(IndexError, match="table of 4 rows"):
        table(torch.tensor([[0, number]]))


@pytest.fixture
def broken_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing can be compiled."""

    def fail() -> Any:
        raise OSError("no compiler here")

    packed.loops_work.cache_clear()
    monkeypatch.setattr(packed, "_kernels", fail)
    yield
    packed.loops_work.cache_clear()


@pytest.mark.usefixtures("broken_loops")
def test_without_loops_it_is_slower_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    tensor = quantised((20, 32), 2, 16)
    linear = PackedLinear(matrix_of(tensor), torch.zeros(20))
    with caplog.at_level(logging.WARNING):
        found = [linear(torch.ones(1, 32)) for _ in range(3)]
    expected = torch.tensor(tensor.dequantize().sum(axis=1))
    assert all(torch.allclose(one, expected, atol=1e-3) for one in found)
    assert [record.getMessage() for record in caplog.records if "no compiler here" in record.getMessage()] == [
        "packed weights are computed slowly here, their loops do not compile: no compiler here"
    ]


@pytest.mark.parametrize("quant", ["int8", "int4", "int2"])
def test_a_packed_encoder_gives_the_vectors_of_its_weights(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], quant: str
) -> None:
    config = EncoderConfig.from_bytes(tiny_files["config.json"])
    small = ArrowQuantizer(presets()[quant]).quantize(tiny_weights(1))
    random = np.random.default_rng(0)
    for length in (3, 20):
        ids, mask = torch.tensor(random.integers(0, 30522, (2, length))), torch.ones(2, length, dtype=torch.int64)
        mask[1, 2:] = 0
        vectors = [build_encoder(config, small, mode)(ids, mask) for mode in ("packed", "float32")]
        assert (vectors[0] * vectors[1]).sum(dim=1).min() > 1 - 1e-5


def test_the_codes_of_a_packed_encoder_are_not_copied(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    small = ArrowQuantizer(presets()["int4"]).quantize(tiny_weights(1))
    net = build_encoder(EncoderConfig.from_bytes(tiny_files["config.json"]), small, "packed")
    stored = small[WORDS]
    assert isinstance(net.words, PackedTable)
    assert isinstance(stored, QuantizedTensor)
    assert np.shares_memory(net.words.matrix.codes, stored.codes)


@pytest.mark.parametrize(
    "tensor", [quantised((4, 3), 4, 0), quantised((3, 16), 2, 2, axis=1), quantised((3, 16), 2, 0, axis=-1)]
)
def test_rows_that_share_bytes_or_scales_are_not_packed(tensor: QuantizedTensor) -> None:
    assert PackedMatrix.of(tensor) is None


def test_an_encoder_of_such_rows_runs_all_the_same(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    config = EncoderConfig.from_bytes(tiny_files["config.json"])
    recipe = QuantizationConfig("int4", symmetric=False, axis=1, group_size=4)
    small = ArrowQuantizer(recipe).quantize(tiny_weights(1))
    ids, mask = torch.tensor([[101, 5, 102]]), torch.ones(1, 3, dtype=torch.int64)
    vectors = [build_encoder(config, small, mode)(ids, mask) for mode in ("packed", "float32")]
    assert torch.allclose(vectors[0], vectors[1], atol=1e-5)
