"""A BERT-style sentence encoder: token ids in, one vector per text out.

Built from a mapping of tensors under Hugging Face's names. Knows no texts, files or batching policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.errors import BadWeights
from aios_node.engine.nets.attention import SelfAttention
from aios_node.engine.nets.config import Activation, EncoderConfig
from aios_node.engine.nets.linear import LayerNorm, Linear, Projection
from aios_node.engine.nets.packed import PackedTable
from aios_node.engine.nets.tensors import WeightReader
from aios_node.engine.nets.transformer import Block
from aios_node.engine.quant.blocks import Tensor

ProjectionFactory = Callable[[str, Linear], Projection]
"""Given a linear's name (``encoder.layer.0.attention.self.query``) and itself, return what to use."""

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True, eq=False)
class Encoder:
    """The network: embeddings, blocks, pooling."""

    config: EncoderConfig
    words: torch.Tensor | PackedTable  # [vocabulary, d]
    positions: torch.Tensor  # [positions, d]
    types: torch.Tensor  # [types, d]
    norm: LayerNorm
    blocks: tuple[Block, ...]

    @classmethod
    def build(
        cls,
        config: EncoderConfig,
        weights: Mapping[str, Tensor],
        *,
        device: str = "cpu",
        wrap: ProjectionFactory | None = None,
    ) -> Encoder:
        """Build from weights under HF names, with or without a leading ``bert.``.

        ``wrap`` may put an adapter around any linear map. Raises BadWeights (see WeightReader).
        """
        reader = WeightReader(weights, device, prefix_of(weights))
        return cls.assemble(config, reader.read_all(tensor_shapes(config)), wrap=wrap)

    @classmethod
    def assemble(
        cls, config: EncoderConfig, tensors: Mapping[str, torch.Tensor], *, wrap: ProjectionFactory | None = None
    ) -> Encoder:
        """Build from the tensors of ``tensor_shapes``, which are used as they are."""
        return _Builder(config, tensors, wrap).encoder()

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``ids`` and ``mask`` int64 [b, t] (mask 1 on real tokens) -> float32 [b, d]."""
        return self.pool(self.hidden(ids, mask), mask)

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last block's output, float32 [b, t, d]."""
        return deque(self.states(ids, mask), maxlen=1).pop()

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> Iterator[torch.Tensor]:
        """What the embeddings and then each block give, float32 [b, t, d] each: one more than there are blocks."""
        x = self._rows(ids) + self.positions[: ids.shape[1]] + self.types[0]
        x = self.norm(x)
        yield x
        # Without padding no mask is needed, and attention takes its fastest path.
        allowed = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, allowed)
            yield x

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.words(ids) if isinstance(self.words, PackedTable) else F.embedding(ids, self.words)

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean over real tokens, or the first token; then unit length where the configuration says so."""
        if self.config.pooling == "cls":
            pooled = hidden[:, 0]
        elif bool(mask.all()):
            pooled = hidden.mean(1)
        else:
            weight = mask.to(hidden.dtype).unsqueeze(-1)  # [b, t, 1]
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return F.normalize(pooled, dim=-1) if self.config.normalize else pooled


def prefix_of(weights: Mapping[str, Tensor]) -> str:
    """``bert.`` where the tensors carry it, else nothing. Raises BadWeights if this is no such encoder."""
    for prefix in ("", "bert."):
        if prefix + WORDS in weights:
            return prefix
    raise BadWeights(f"tensor {WORDS!r} is missing: these weights are not a BERT-style encoder's")


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the encoder reads."""
    d, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        WORDS: (config.vocab_size, d),
        POSITIONS: (config.max_positions, d),
        TYPES: (config.type_vocab_size, d),
        **_pair("embeddings.LayerNorm", d),
    }
    for index in range(config.layers):
        layer = f"encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _pair(f"{layer}.attention.{part}", d, d)
        shapes |= _pair(f"{layer}.attention.output.LayerNorm", d)
        shapes |= _pair(f"{layer}.intermediate.dense", inner, d)
        shapes |= _pair(f"{layer}.output.dense", d, inner)
        shapes |= _pair(f"{layer}.output.LayerNorm", d)
    return shapes


def _pair(name: str, out: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, *inputs), f"{name}.bias": (out,)}


@dataclass(frozen=True, eq=False)
class _Builder:
    config: EncoderConfig
    tensors: Mapping[str, torch.Tensor]
    wrap: ProjectionFactory | None

    def encoder(self) -> Encoder:
        return Encoder(
            config=self.config,
            words=self.tensors[WORDS],
            positions=self.tensors[POSITIONS],
            types=self.tensors[TYPES],
            norm=self.norm("embeddings.LayerNorm"),
            blocks=tuple(self.block(f"encoder.layer.{index}") for index in range(self.config.layers)),
        )

    def block(self, layer: str) -> Block:
        return Block(
            attention=self.attention(f"{layer}.attention"),
            attention_norm=self.norm(f"{layer}.attention.output.LayerNorm"),
            up=self.linear(f"{layer}.intermediate.dense", self.config.activation),
            down=self.linear(f"{layer}.output.dense"),
            output_norm=self.norm(f"{layer}.output.LayerNorm"),
        )

    def attention(self, name: str) -> SelfAttention:
        return SelfAttention(
            query=self.linear(f"{name}.self.query"),
            key=self.linear(f"{name}.self.key"),
            value=self.linear(f"{name}.self.value"),
            output=self.linear(f"{name}.output.dense"),
            heads=self.config.heads,
        )

    def linear(self, name: str, activation: Activation | None = None) -> Projection:
        plain = Linear(self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], activation)
        return self.wrap(name, plain) if self.wrap else plain

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], self.config.layer_norm_eps)
