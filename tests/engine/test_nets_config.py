"""What a config.json may say, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aios_node.engine.errors import BadWeights, Corrupt, TooLarge
from aios_node.engine.nets.config import MAX_BYTES, EncoderConfig


def parsed(files: dict[str, bytes], changes: dict[str, Any], aios: dict[str, Any]) -> EncoderConfig:
    raw = json.loads(files["config.json"]) | changes
    raw["aios"] = raw["aios"] | aios
    return EncoderConfig.from_bytes(json.dumps(raw).encode())


def test_minilm(minilm_files: dict[str, bytes]) -> None:
    config = EncoderConfig.from_bytes(minilm_files["config.json"])
    assert (config.layers, config.heads, config.hidden_size, config.max_tokens) == (6, 12, 384, 256)
    assert (config.pooling, config.normalize, config.activation, config.space) == ("mean", True, "gelu", "minilm")


def test_without_our_section_the_usual_holds(minilm_files: dict[str, bytes]) -> None:
    raw = json.loads(minilm_files["config.json"])
    del raw["aios"]
    config = EncoderConfig.from_bytes(json.dumps(raw | {"max_position_embeddings": 128}).encode())
    assert (config.pooling, config.normalize, config.max_tokens, config.space) == ("mean", True, 128, "")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"aios": 3}', b"[" * 100_000])
def test_what_is_no_object_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match=r"config\.json"):
        EncoderConfig.from_bytes(data)


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(TooLarge, match="bytes"):
        EncoderConfig.from_bytes(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported: bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh' is not supported: gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"num_attention_heads": 7}, "no multiple of 7 heads"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, a whole number from 1 to 1024"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ],
)
def test_networks_that_cannot_be_run(minilm_files: dict[str, bytes], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadWeights, match=message):
        parsed(minilm_files, changes, {})


@pytest.mark.parametrize(
    ("aios", "message"),
    [
        ({"kind": "denoiser"}, "kind"),
        ({"pooling": "max"}, "pooling 'max' is not supported: mean, cls"),
        ({"normalize": "yes"}, "normalize"),
        ({"max_tokens": 513}, "max_tokens 513 exceeds the 512 positions"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"embedding_space": 5}, "embedding_space"),
        ({"embedding_space": "x" * 257}, "embedding_space"),
    ],
)
def test_our_section_is_checked(minilm_files: dict[str, bytes], aios: dict[str, Any], message: str) -> None:
    with pytest.raises(BadWeights, match=message):
        parsed(minilm_files, {}, aios)
