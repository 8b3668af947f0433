"""The post-norm transformer block of BERT (Devlin et al. 2018). Knows nothing of embeddings or pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aios_node.engine.nets.attention import SelfAttention
from aios_node.engine.nets.linear import LayerNorm, Projection


@dataclass(frozen=True, eq=False)
class Block:
    """Attention, then a two-layer perceptron, each added to its input and normalised."""

    attention: SelfAttention
    attention_norm: LayerNorm
    up: Projection  # with the activation
    down: Projection
    output_norm: LayerNorm

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` float [b, t, d] -> [b, t, d]; ``mask`` as in SelfAttention."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.down(self.up(x)))
