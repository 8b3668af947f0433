"""Configuration of a BERT-style encoder, read from the ``config.json`` of a version folder.

Knows the keys of Hugging Face's configuration and the ``aios`` section beside them; knows no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aios_node.engine.errors import BadWeights, Corrupt, TooLarge

Activation = Literal["gelu", "gelu_new", "relu", "silu"]
Pooling = Literal["mean", "cls"]

_LARGEST = 2**31 - 1

MAX_BYTES = 2**20
"""The largest ``config.json`` that is parsed; real ones have about 1 KB."""

MAX_LAYERS = 1024
"""Bounds what a hostile config.json can make us enumerate before the first missing tensor is noticed."""


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that the encoder's arithmetic depends on besides its weights."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: Activation
    pooling: Pooling
    normalize: bool
    max_tokens: int
    space: str

    @classmethod
    def from_bytes(cls, data: bytes) -> EncoderConfig:
        """Read ``config.json``. Raises Corrupt or TooLarge for no JSON object, BadWeights for an unusable network."""
        if len(data) > MAX_BYTES:
            raise TooLarge(f"config.json has {len(data)} bytes: {MAX_BYTES} are allowed")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"config.json is not valid JSON: {error}") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("aios", {}), dict):
            raise Corrupt("config.json must be a JSON object, its key 'aios' one as well")
        return cls._from_dict(raw, raw.get("aios", {}))

    @classmethod
    def _from_dict(cls, raw: Mapping[str, Any], aios: Mapping[str, Any]) -> EncoderConfig:
        _one_of(raw, "model_type", ("bert",), "bert")
        _one_of(raw, "position_embedding_type", ("absolute",), "absolute")
        _one_of(aios, "kind", ("encoder",), "encoder")
        positions = _whole(raw, "max_position_embeddings")
        config = cls(
            vocab_size=_whole(raw, "vocab_size"),
            hidden_size=_whole(raw, "hidden_size"),
            layers=_whole(raw, "num_hidden_layers", largest=MAX_LAYERS),
            heads=_whole(raw, "num_attention_heads"),
            intermediate_size=_whole(raw, "intermediate_size"),
            max_positions=positions,
            type_vocab_size=_whole(raw, "type_vocab_size", 2),
            layer_norm_eps=_epsilon(raw),
            activation=_one_of(raw, "hidden_act", get_args(Activation), "gelu"),
            pooling=_one_of(aios, "pooling", get_args(Pooling), "mean"),
            normalize=_one_of(aios, "normalize", (True, False), True),
            max_tokens=_whole(aios, "max_tokens", min(positions, 256)),
            space=_space(aios),
        )
        return config._checked()

    def _checked(self) -> EncoderConfig:
        if self.hidden_size % self.heads:
            raise BadWeights(f"config.json: hidden_size {self.hidden_size} is no multiple of {self.heads} heads")
        if self.max_tokens > self.max_positions:
            raise BadWeights(
                f"config.json: aios.max_tokens {self.max_tokens} exceeds the {self.max_positions} positions"
            )
        return self


def _whole(raw: Mapping[str, Any], key: str, default: int | None = None, *, largest: int = _LARGEST) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
        raise BadWeights(f"config.json: {key} is {value!r}, a whole number from 1 to {largest} is needed")
    return value


def _epsilon(raw: Mapping[str, Any]) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if not isinstance(value, float) or not 0 < value < 1:
        raise BadWeights(f"config.json: layer_norm_eps is {value!r}, a number between 0 and 1 is needed")
    return value


def _one_of(raw: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    value = raw.get(key, default)
    if value not in allowed:
        raise BadWeights(f"config.json: {key} {value!r} is not supported: {', '.join(map(str, allowed))}")
    return value


def _space(aios: Mapping[str, Any]) -> str:
    value = aios.get("embedding_space", "")
    if not isinstance(value, str) or len(value) > 256:
        raise BadWeights("config.json: aios.embedding_space must be a string of at most 256 characters")
    return value
