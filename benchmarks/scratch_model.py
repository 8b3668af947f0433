"""A small language model over bytes, trained from scratch in mixed precision, as a chain of checkpoints.

A pre-norm transformer of four layers (RMSNorm, GELU, tied embeddings, no biases). Forward and backward passes see the
weights rounded to bfloat16, AdamW keeps and changes them in float32, and the rate falls as a cosine: successive
checkpoints change from nearly all bfloat16 weights to a few. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray

WIDTH, LAYERS, HEADS, LENGTH, BATCH = 256, 4, 4, 64, 8
RATE = 1e-3
SEED = 0

Weights = dict[str, torch.Tensor]


def train(text: bytes, first: int, every: int, checkpoints: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The float32 weights after ``first`` + ``every`` steps, and then after every ``every`` steps."""
    total = first + every * checkpoints
    master = initial()
    optimizer = torch.optim.AdamW(master.values(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for step, rows in zip(range(1, total + 1), batches(text), strict=False):
        rounded = {name: tensor.bfloat16().float() for name, tensor in master.items()}
        loss = F.cross_entropy(logits(rounded, rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
        if step > first and (step - first) % every == 0:
            yield {name: tensor.detach().numpy() for name, tensor in master.items()}


def initial() -> Weights:
    """Norms at one, everything else N(0, 0.02)."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: (torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.02).requires_grad_()
        for name, shape in shapes().items()
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    found: dict[str, tuple[int, ...]] = {"bytes": (256, WIDTH), "places": (LENGTH, WIDTH), "norm": (WIDTH,)}
    for layer in range(LAYERS):
        found |= {
            f"layer.{layer}.qkv": (3 * WIDTH, WIDTH),
            f"layer.{layer}.out": (WIDTH, WIDTH),
            f"layer.{layer}.up": (4 * WIDTH, WIDTH),
            f"layer.{layer}.down": (WIDTH, 4 * WIDTH),
            f"layer.{layer}.norm1": (WIDTH,),
            f"layer.{layer}.norm2": (WIDTH,),
        }
    return found


def batches(text: bytes) -> Iterator[torch.Tensor]:
    """Endless int64 [BATCH, LENGTH + 1], from random places of the text."""
    values, random = np.frombuffer(text, np.uint8).astype(np.int64), np.random.default_rng(SEED)
    while True:
        starts = random.integers(0, len(values) - LENGTH - 1, BATCH)
        yield torch.from_numpy(np.stack([values[start : start + LENGTH + 1] for start in starts]))


def logits(weights: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """int64 [b, LENGTH] -> float32 [b, LENGTH, 256]."""
    x = weights["bytes"][ids] + weights["places"]
    for layer in range(LAYERS):
        own = {
            name.rpartition(".")[2]: tensor for name, tensor in weights.items() if name.startswith(f"layer.{layer}.")
        }
        x = x + _attention(own, F.rms_norm(x, (WIDTH,), own["norm1"]))
        x = x + F.linear(F.gelu(F.linear(F.rms_norm(x, (WIDTH,), own["norm2"]), own["up"])), own["down"])
    return F.linear(F.rms_norm(x, (WIDTH,), weights["norm"]), weights["bytes"])


def _attention(own: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    heads = F.linear(x, own["qkv"]).view(len(x), LENGTH, 3, HEADS, WIDTH // HEADS)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.linear(mixed.transpose(1, 2).flatten(2), own["out"])
