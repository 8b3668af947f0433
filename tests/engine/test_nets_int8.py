"""8-bit products and the loops between them, each against its definition; encoders against float32 ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aios_node.engine.errors import BadConfig
from aios_node.engine.nets import int8, int8_kernels
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.int8 import Int8Linear, Rows, int8_works
from aios_node.engine.nets.lowbit import build_encoder
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.runtime.engine import ArrowEngine

FLOATS = st.floats(-1000, 1000, width=32)
TEXTS = [
    "A man is eating food.",
    "Return the current working directory as a string.",
    "The stock market fell sharply on Monday after a long summer of gains.",
    "x",
    "Deltas travel between machines; hashes prove that nothing was lost on the way.",
]


def test_this_machine_multiplies_exactly() -> None:
    assert int8_works()


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=FLOATS))
def test_a_quantised_row_is_off_by_half_a_step_at_most(x: np.ndarray[Any, Any]) -> None:
    rows = Rows.of(x)
    back = rows.codes.astype(np.float64) * rows.scales[:, None] + rows.offsets[:, None]
    slack = 1e-5 * np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(back - x) <= 0.5001 * rows.scales[:, None] + slack + 1e-28).all()
    assert np.allclose(rows.scales, (x.max(axis=1).astype(np.float64) - x.min(axis=1)) / 255, rtol=1e-4, atol=1e-29)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_become_a_number(value: float) -> None:
    rows = Rows.of(np.array([[1, value, 2] * 20], np.float32))
    assert not np.isfinite(rows.scales[0] * 3 + rows.offsets[0])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 1, 1), (7, 384, 40), (300, 33, 17)])
def test_a_linear_map_is_near_and_exact_for_its_codes(rows: int, width: int, outputs: int) -> None:
    x, weight, bias = numbers(rows, width), numbers(outputs, width), numbers(outputs)
    linear, quantised = Int8Linear.of(weight, bias), Rows.of(x.numpy())
    stored = linear.codes.double().T * torch.tensor(linear.scales)[:, None]
    seen = torch.tensor(quantised.codes).double() * torch.tensor(quantised.scales)[:, None]
    exact = (seen + torch.tensor(quantised.offsets)[:, None]) @ stored.T + bias
    found = torch.tensor(linear.floats(quantised))
    assert torch.allclose(found.double(), exact, atol=1e-3)
    assert (found - (x @ weight.T + bias)).norm() < 0.02 * found.norm() + 0.05


def test_a_channel_of_zeros_stays_zero() -> None:
    linear = Int8Linear.of(torch.zeros(3, 8), torch.ones(3))
    assert np.array_equal(linear.floats(Rows.of(numbers(2, 8).numpy())), np.ones((2, 3), np.float32))


def test_gelu_between_products_is_gelu() -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32).reshape(1, -1)
    nothing, ones = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    products = np.round(x / 1e-4).astype(np.int32)
    rows = Rows.empty(x.shape)
    scale = np.array([1e-4], np.float32)
    parts = (scale, nothing[:1], ones, nothing, nothing, rows.codes, rows.scales, rows.offsets)
    int8_kernels.gelu_quantise(products, *parts)
    found = rows.codes * rows.scales[:, None] + rows.offsets[:, None]
    expected = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    assert np.abs(found - expected).max() < 0.51 * rows.scales[0] + 5e-4


def test_layer_norm_after_a_product_is_layer_norm() -> None:
    x, weight, bias, gain, shift = (
        numbers(5, 32),
        numbers(32, 48),
        numbers(32),
        numbers(32, seed=1),
        numbers(32, seed=2),
    )
    linear, rows = Int8Linear.of(weight, bias), Rows.of(numbers(5, 48).numpy())
    plain = torch.tensor(linear.floats(rows)) + x
    expected = torch.nn.functional.layer_norm(plain, (32,), gain, shift, 1e-5)
    norm = int8.LayerNorm(gain, shift, 1e-5)
    quantised = Rows.empty((5, 32))
    found = int8._add_norm(linear, rows, x.numpy(), norm, quantised)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(quantised.codes, Rows.of(found).codes)
    np.testing.assert_array_equal(int8._add_norm(linear, rows, x.numpy(), norm, Rows.empty((0, 0))), found)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (3, int8.SHORT)])
@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_short_texts_attend_as_all_others(
    batch: int, length: int, loud: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large values make one share 1 and all others 0, as a softmax without care would overflow on."""
    joined = Int8Linear.of(loud * numbers(96, 32) / 6, numbers(96))
    square, norm = Int8Linear.of(numbers(32, 32), numbers(32)), int8.LayerNorm(numbers(32), numbers(32), 1e-5)
    block = int8.Int8Block(joined, square, norm, square, "gelu", square, norm, heads=4)
    rows = Rows.of(numbers(batch * length, 32).numpy())
    found = block._attention(rows, batch, None)
    monkeypatch.setattr(int8, "SHORT", 0)
    expected = block._attention(rows, batch, None)
    back = [one.codes * one.scales[:, None] + one.offsets[:, None] for one in (found, expected)]
    assert np.abs(back[0] - back[1]).max() < 1.01 * expected.scales.max() + 1e-4


def test_short_texts_that_are_not_finite_stay_so() -> None:
    joined = Int8Linear.of(numbers(96, 32), numbers(96))
    square, norm = Int8Linear.of(numbers(32, 32), numbers(32)), int8.LayerNorm(numbers(32), numbers(32), 1e-5)
    block = int8.Int8Block(joined, square, norm, square, "gelu", square, norm, heads=4)
    x = numbers(3, 32)
    x[1, 4] = float("nan")
    assert not np.isfinite(block._attention(Rows.of(x.numpy()), 1, None).scales).any()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_an_8_bit_encoder_is_near_its_weights(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], activation: str
) -> None:
    raw = tiny_files["config.json"].replace(b'"hidden_act": "gelu"', f'"hidden_act": "{activation}"'.encode())
    config, weights = EncoderConfig.from_bytes(raw), tiny_weights(1)
    assert config.activation == activation
    ids, mask = torch.arange(200, 230).reshape(3, 10), torch.ones(3, 10, dtype=torch.int64)
    mask[1, 4:] = 0
    small, full = (build_encoder(config, weights, mode)(ids, mask) for mode in ("int8", "float32"))
    assert (small * full).sum(dim=1).min() > 0.995


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_minilm_in_8_bits_is_near_its_stored_weights(
    minilm_weights: dict[str, Any], minilm_files: dict[str, bytes], quant: str
) -> None:
    config = EncoderConfig.from_bytes(minilm_files["config.json"])
    stored = ArrowQuantizer(presets()[quant]).quantize(minilm_weights)
    tokenizer = lowbit_tokenizer(minilm_files)
    vectors = [tokenizer(build_encoder(config, stored, mode), mode).encode(TEXTS) for mode in ("int8", "float32")]
    cosine = (vectors[0] * vectors[1]).sum(axis=1)
    assert cosine.mean() > 0.995
    assert cosine.min() > 0.98


def lowbit_tokenizer(files: dict[str, bytes]) -> Callable[[Any, Any], Any]:
    from aios_node.engine.nets.sentences import SentenceEncoder
    from aios_node.engine.tokenizer import FastTokenizer

    tokenizer = FastTokenizer.from_bytes(files["tokenizer.json"])
    return lambda net, mode: SentenceEncoder(net, tokenizer, mode=mode)


@pytest.mark.parametrize("mode", ["int8", "packed", "float32"])
def test_several_threads_get_the_same_vectors_as_one(tiny_versions: tuple[Path, Path], mode: str) -> None:
    texts = [f"{word} number {n}" for n in range(60) for word in ("file", "socket", "bird")]
    before = torch.get_num_threads()
    with ArrowEngine.open(tiny_versions[0], device="cpu", mode=mode) as engine:
        expected = engine.encode(texts)
        torch.set_num_threads(2)
        try:
            with ThreadPoolExecutor(3) as pool:
                found = list(pool.map(engine.encode, [texts] * 6))
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing can be compiled."""

    def fail() -> Any:
        raise OSError("no compiler here")

    monkeypatch.setattr(int8, "_kernels", fail)
    int8_works.cache_clear()
    yield
    int8_works.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_where_8_bits_do_not_run_they_are_refused(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(BadConfig, match="int8 does not run"):
        build_encoder(EncoderConfig.from_bytes(tiny_files["config.json"]), tiny_weights(1), "int8")
    assert "no compiler here" in caplog.text
