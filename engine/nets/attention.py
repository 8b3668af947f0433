"""Multi-head self-attention (Vaswani et al. 2017). Knows no positions and no causal order: masks are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.linear import Projection


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Attention of every position to every position that the mask allows."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` float [b, t, d]; ``mask`` bool [b, 1, 1, t], True where to look, or None for everywhere."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))  # [b, h, t, d/h]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined: torch.Tensor = mixed.transpose(1, 2).flatten(2)  # [b, t, d]
        return self.output(joined)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
