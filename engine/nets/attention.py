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
        attend = _differentiable if torch.is_grad_enabled() and query.requires_grad else F.scaled_dot_product_attention
        mixed = attend(query, key, value, attn_mask=mask)
        joined: torch.Tensor = mixed.transpose(1, 2).flatten(2)  # [b, t, d]
        return self.output(joined)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


def _differentiable(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None
) -> torch.Tensor:
    """The same in separate steps: the fused attention's gradient takes twice the whole training step on a CPU."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # [b, h, t, t]
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    mixed: torch.Tensor = scores.softmax(-1).to(value.dtype) @ value
    return mixed
