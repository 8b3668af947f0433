"""The encoder against a forward pass written here in plain torch, from the same safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.nets import sentences
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import TYPES, WORDS, Encoder, tensor_shapes
from aios_node.engine.nets.sentences import SentenceEncoder, length_batches
from aios_node.engine.nets.tensors import as_torch
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import QuantizationConfig, presets
from aios_node.engine.tokenizer import FastTokenizer

SENTENCES = [
    "A man is eating food.",
    "The girl is carrying a baby, and somebody else rides a horse on an enclosed ground!",
    "Deltas travel between machines; hashes prove that nothing was lost on the way.",
    "naïve café — 東京 🙂 ünïcödé",
    "def encode(texts): return vectors",
    "x",
    "",
    "word " * 600,
]


def reference(folder: Path, text: str) -> torch.Tensor:
    """One text through MiniLM, step by step as in the paper, nothing shared with the product."""
    w = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = torch.tensor(tokenizer.encode(text).ids)
    heads, size, eps = 12, 384, 1e-12

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            dense(f"{layer}.attention.self.{part}", x).reshape(len(ids), heads, size // heads).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        attention = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size // heads), dim=-1)
        mixed = (attention @ v).transpose(0, 1).reshape(len(ids), size)
        x = norm(f"{layer}.attention.output.LayerNorm", x + dense(f"{layer}.attention.output.dense", mixed))
        up = dense(f"{layer}.intermediate.dense", x)
        up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", up))
    pooled = x.mean(0)
    return pooled / pooled.norm()


@pytest.fixture(scope="module")
def config(minilm_files: dict[str, bytes]) -> EncoderConfig:
    return EncoderConfig.from_bytes(minilm_files["config.json"])


@pytest.fixture(scope="module")
def tokenizer(minilm_files: dict[str, bytes]) -> FastTokenizer:
    return FastTokenizer.from_bytes(minilm_files["tokenizer.json"])


@pytest.fixture(scope="module")
def minilm(config: EncoderConfig, minilm_weights: dict[str, Any], tokenizer: FastTokenizer) -> SentenceEncoder:
    return SentenceEncoder(Encoder.build(config, minilm_weights), tokenizer)


@pytest.fixture
def tiny(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tokenizer: FastTokenizer
) -> SentenceEncoder:
    config = EncoderConfig.from_bytes(tiny_files["config.json"])
    return SentenceEncoder(Encoder.build(config, tiny_weights(3)), tokenizer)


def test_fp32_vectors_are_the_references(minilm: SentenceEncoder, minilm_folder: Path) -> None:
    ours = minilm.encode(SENTENCES)
    theirs = torch.stack([reference(minilm_folder, text) for text in SENTENCES]).numpy()
    assert ours.dtype == np.float32
    assert ours.shape == (len(SENTENCES), 384)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    assert np.abs(ours - theirs).max() < 1e-5


def test_meaning_is_near_meaning(minilm: SentenceEncoder) -> None:
    a, b, c = minilm.encode(["How do I read a file?", "Open and read text from disk", "Bananas are yellow"])
    assert a @ b > a @ c + 0.2


@pytest.mark.parametrize(("quant", "least"), [("int8", 0.999), ("int4", 0.96)])
def test_quantised_vectors_stay_near(
    minilm: SentenceEncoder, minilm_weights: dict[str, Any], config: EncoderConfig, quant: str, least: float
) -> None:
    small = ArrowQuantizer(presets()[quant]).quantize(minilm_weights)
    encoder = SentenceEncoder(Encoder.build(config, small), minilm.tokenizer)
    texts = SENTENCES[:5] + [
        f"sentence number {n} about {word}" for n, word in enumerate(["files", "bread", "law", "stars"])
    ]
    assert (encoder.encode(texts) * minilm.encode(texts)).sum(axis=1).mean() > least


def test_float32_tensors_are_views_even_of_read_only_memory(
    config: EncoderConfig, minilm_weights: dict[str, Any]
) -> None:
    frozen = {name: array.view() for name, array in minilm_weights.items()}
    for array in frozen.values():
        array.flags.writeable = False
    net = Encoder.build(config, frozen)
    assert net.words.data_ptr() == frozen[WORDS].ctypes.data
    assert net.types.data_ptr() == frozen[TYPES].ctypes.data


def test_other_dtypes_and_layouts_are_converted() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for stored in (values.astype(np.float16), values.astype(np.float64), np.asfortranarray(values)):
        tensor = as_torch(stored)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.tensor(values))


def test_names_may_carry_berts_prefix(
    tiny: SentenceEncoder, tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    prefixed = {f"bert.{name}": tensor for name, tensor in tiny_weights(3).items()}
    other = Encoder.build(EncoderConfig.from_bytes(tiny_files["config.json"]), prefixed)
    again = SentenceEncoder(other, tiny.tokenizer)
    assert np.array_equal(again.encode(SENTENCES), tiny.encode(SENTENCES))


@settings(max_examples=12)
@given(st.lists(st.sampled_from(SENTENCES), max_size=12), st.randoms(use_true_random=False))
def test_order_and_company_do_not_change_a_vector(tiny: SentenceEncoder, texts: list[str], random: Any) -> None:
    together = tiny.encode(texts)
    assert together.shape == (len(texts), 16)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(vector, tiny.encode([text])[0], atol=1e-5)


def test_more_texts_than_a_window(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny.encode(SENTENCES * 3)
    monkeypatch.setattr(sentences, "WINDOW", 5)
    np.testing.assert_allclose(tiny.encode(SENTENCES * 3), expected, atol=1e-5)


def test_texts_are_cut_where_asked(tiny: SentenceEncoder) -> None:
    assert np.allclose(tiny.encode(["one two three four five six"], 5), tiny.encode(["one two three"]), atol=1e-6)
    assert np.allclose(tiny.encode(["word " * 99], 4096), tiny.encode(["word " * 30]), atol=1e-6)


def test_cls_pooling_and_raw_lengths(
    tiny: SentenceEncoder, tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    raw = json.loads(tiny_files["config.json"])
    raw["aios"] |= {"pooling": "cls", "normalize": False}
    net = Encoder.build(EncoderConfig.from_bytes(json.dumps(raw).encode()), tiny_weights(3))
    ids = torch.tensor([[101, 7592, 102, 0], [101, 7592, 2088, 102]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    hidden = net.hidden(ids, mask)
    assert torch.equal(net(ids, mask), hidden[:, 0])
    mean = tiny.net.pool(hidden, mask)
    expected = torch.nn.functional.normalize(torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]), dim=-1)
    assert torch.allclose(mean, expected, atol=1e-6)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 2048))
def test_batches_cover_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        padded = -(-max(longest, 1) // 8) * 8
        assert len(batch) == 1 or len(batch) * padded <= budget


def broken(weights: dict[str, Any], name: str, tensor: Any) -> Mapping[str, Any]:
    return {key: value for key, value in weights.items() if key != name} | ({} if tensor is None else {name: tensor})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (WORDS, None, "not a BERT-style encoder"),
        ("encoder.layer.1.output.dense.bias", None, "'encoder.layer.1.output.dense.bias' is missing"),
        ("encoder.layer.0.output.dense.bias", np.zeros(15, np.float32), r"shape \[15\].*asks for \[16\]"),
        ("encoder.layer.0.output.dense.bias", np.zeros(16, np.int64), "int64, floating point"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tiny_weights: Callable[[int], dict[str, Any]],
    tiny_files: dict[str, bytes],
    name: str,
    tensor: Any,
    message: str,
) -> None:
    config = EncoderConfig.from_bytes(tiny_files["config.json"])
    with pytest.raises(BadWeights, match=message):
        Encoder.build(config, broken(tiny_weights(1), name, tensor))


def test_a_tokeniser_with_more_tokens_than_the_network_is_refused(
    tiny_files: dict[str, bytes], tokenizer: FastTokenizer
) -> None:
    raw = json.loads(tiny_files["config.json"]) | {"vocab_size": 30521}
    config = EncoderConfig.from_bytes(json.dumps(raw).encode())
    weights = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    with pytest.raises(BadWeights, match="30522 tokens, the network knows 30521"):
        SentenceEncoder(Encoder.build(config, weights), tokenizer)


def test_quantised_tensors_are_dequantised_by_one_thread_as_by_many(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    small = ArrowQuantizer(QuantizationConfig("int8")).quantize(tiny_weights(1))
    config = EncoderConfig.from_bytes(tiny_files["config.json"])
    before = torch.get_num_threads()
    built = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            built.append(Encoder.build(config, small))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(built[0].words, built[1].words)
    assert torch.equal(built[0].words, torch.tensor(small[WORDS].dequantize()))  # type: ignore[union-attr]


def test_a_single_string_is_no_list(tiny: SentenceEncoder) -> None:
    with pytest.raises(BadRequest, match="list of strings"):
        tiny.encode("one")
