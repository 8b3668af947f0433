"""Encoders in every mode, from the same weights.

Knows how the parts of a BERT-style encoder are named; knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch

from aios_node.engine.errors import BadConfig
from aios_node.engine.nets.attention import SelfAttention
from aios_node.engine.nets.config import Activation, EncoderConfig
from aios_node.engine.nets.encoder import POSITIONS, TYPES, WORDS, Encoder, prefix_of, tensor_shapes
from aios_node.engine.nets.half import Halving
from aios_node.engine.nets.int8 import Int8Block, Int8Linear, int8_works
from aios_node.engine.nets.linear import LayerNorm, Linear, Projection
from aios_node.engine.nets.modes import Mode
from aios_node.engine.nets.packed import PackedLinear, PackedMatrix, PackedTable
from aios_node.engine.nets.tensors import WeightReader
from aios_node.engine.nets.transformer import Block
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor


def build_encoder(
    config: EncoderConfig, weights: Mapping[str, Tensor], mode: Mode = "float32", *, device: str = "cpu"
) -> Encoder:
    """Build an encoder that computes in ``mode``. ``int8`` and ``packed`` are for the CPU.

    Raises BadWeights (see WeightReader), and BadConfig where this machine cannot compute that way.
    """
    if mode in {"int8", "packed"}:
        if mode == "int8" and not int8_works():
            raise BadConfig("mode int8 does not run on this machine (see the log): use float32 or packed")
        return _Builder(config, WeightReader(weights, "cpu", prefix_of(weights)), mode).encoder()
    if mode == "float32":
        return Encoder.build(config, weights, device=device)
    return Encoder.build(config, weights, device=device, wrap=Halving(getattr(torch, mode)))


@dataclass(frozen=True, eq=False)
class _Builder:
    config: EncoderConfig
    reader: WeightReader
    mode: Mode

    def encoder(self) -> Encoder:
        build = self.int8_block if self.mode == "int8" else self.packed_block
        blocks = tuple(build(f"encoder.layer.{index}") for index in range(self.config.layers))
        return Encoder(
            config=self.config,
            words=self.table(),
            positions=self.floats(POSITIONS),
            types=self.floats(TYPES),
            norm=self.norm("embeddings.LayerNorm"),
            blocks=cast("tuple[Block, ...]", blocks),  # called like one; nobody looks inside at these
        )

    def table(self) -> torch.Tensor | PackedTable:
        matrix = self.matrix(WORDS)
        return PackedTable(matrix) if matrix else self.floats(WORDS)

    def packed_block(self, layer: str) -> Block:
        query, key, value, output = (self.packed(f"{layer}.attention.{part}") for part in _ATTENTION)
        return Block(
            attention=SelfAttention(query, key, value, output, self.config.heads),
            attention_norm=self.norm(f"{layer}.attention.output.LayerNorm"),
            up=self.packed(f"{layer}.intermediate.dense", self.config.activation),
            down=self.packed(f"{layer}.output.dense"),
            output_norm=self.norm(f"{layer}.output.LayerNorm"),
        )

    def packed(self, name: str, activation: Activation | None = None) -> Projection:
        matrix, bias = self.matrix(f"{name}.weight"), self.floats(f"{name}.bias")
        if matrix:
            return PackedLinear(matrix, bias, activation)
        return Linear(self.floats(f"{name}.weight"), bias, activation)

    def int8_block(self, layer: str) -> Int8Block:
        query, key, value, output = (self.int8(f"{layer}.attention.{part}") for part in _ATTENTION)
        return Int8Block(
            joined=Int8Linear.joined((query, key, value)),
            output=output,
            attention_norm=self.norm(f"{layer}.attention.output.LayerNorm"),
            up=self.int8(f"{layer}.intermediate.dense"),
            activation=self.config.activation,
            down=self.int8(f"{layer}.output.dense"),
            output_norm=self.norm(f"{layer}.output.LayerNorm"),
            heads=self.config.heads,
        )

    def int8(self, name: str) -> Int8Linear:
        return Int8Linear.of(self.floats(f"{name}.weight"), self.floats(f"{name}.bias"))

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.floats(f"{name}.weight"), self.floats(f"{name}.bias"), self.config.layer_norm_eps)

    def floats(self, name: str) -> torch.Tensor:
        return self.reader.read(name, tensor_shapes(self.config)[name])

    def matrix(self, name: str) -> PackedMatrix | None:
        """A weight as it is stored, if it is quantised and can be used like that."""
        stored = self.reader.stored(name, tensor_shapes(self.config)[name])
        return PackedMatrix.of(stored) if isinstance(stored, QuantizedTensor) else None


_ATTENTION = ("self.query", "self.key", "self.value", "output.dense")
