"""Texts that are kept from tuning, to see whether it was worth it.

Training looks better and better on what it trains on; whether the model has become better shows on other texts. Knows
no methods of quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.tokenizer import TokenBatch

HELD_OUT = 256
"""Texts that are kept, at most: enough to tell a hundredth of what two bits lose, few enough for seconds."""

_PART = 10
"""At most one text in so many is kept."""


def split(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to learn from, and texts that are kept: the last ones. Fewer than ten texts are both."""
    kept = min(HELD_OUT, len(texts) // _PART)
    return (tuple(texts[:-kept]), tuple(texts[-kept:])) if kept else (tuple(texts), tuple(texts))


class HeldOut:
    """Batches, and the original network's vectors of them."""

    def __init__(self, network: EncoderConfig, original: Mapping[str, Tensor], batches: Sequence[TokenBatch]) -> None:
        self._network = network
        self._batches = [(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)) for batch in batches]
        self._wanted = self._vectors(original)

    def cosine(self, weights: Mapping[str, Tensor]) -> float:
        """Mean cosine of the vectors that these weights give to the original's. NaN where they give none."""
        return float(torch.nn.functional.cosine_similarity(self._vectors(weights), self._wanted).double().mean())

    @torch.inference_mode()
    def _vectors(self, weights: Mapping[str, Tensor]) -> torch.Tensor:
        net = Encoder.build(self._network, weights)
        return torch.cat([net(ids, mask) for ids, mask in self._batches])
