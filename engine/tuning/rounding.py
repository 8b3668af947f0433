"""Learned rounding: a block's codes, scales and zero points are trained to give the original block's output.

Each latent value starts where its code is and may move by half a scale; steps are signs of gradients, whose size
falls linearly (SignRound; Cheng et al. 2023, arXiv 2309.05516). Knows one block; nothing of the ones around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aios_node.engine.nets.transformer import Block
from aios_node.engine.tuning.fakequant import TrainableTensor
from aios_node.engine.tuning.precision import fast_dtype, relative_error

REACH = {"latent": 0.5, "stretch": 0.1, "zeros": 0.25}
"""How far a value may get from its start: latent values in scales, scales as a logarithm, zero points in codes."""


@dataclass(frozen=True)
class RoundingSteps:
    """How many steps each block gets; ``seed`` decides which batch comes when."""

    steps: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class BlockExample:
    """A block's input in the quantised network, and the original block's output: float32 [b, t, d]; mask [b, t]."""

    found: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor


@torch.enable_grad()
def learn_rounding(
    block: Block, matrices: Sequence[TrainableTensor], examples: Sequence[BlockExample], work: RoundingSteps
) -> None:
    """Train matrices, which ``block`` computes with, in place."""
    random = np.random.default_rng(work.seed)
    bounds = [_Bound.of(matrix) for matrix in matrices]
    for step in range(work.steps):
        example = examples[int(random.integers(len(examples)))]
        allowed = example.mask.bool()[:, None, None, :]
        with fast_dtype():
            loss = relative_error(block(example.found, allowed).float(), example.target, example.mask)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        rate = 2 * (1 - step / work.steps) / work.steps  # all steps together reach exactly as far as is allowed
        for bound in bounds:
            bound.step(rate)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A matrix, and how far each of its values may get."""

    matrix: TrainableTensor
    low: tuple[torch.Tensor, ...]
    high: tuple[torch.Tensor, ...]
    reach: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, matrix: TrainableTensor) -> _Bound:
        ones = torch.ones_like(matrix.first_scales)
        reach = (
            REACH["latent"] * matrix.first_scales.unsqueeze(-1),
            REACH["stretch"] * ones,
            REACH["zeros"] * ones,
        )
        starts = [part.detach().clone() for part in matrix.parameters]
        low = tuple(start - far for start, far in zip(starts, reach, strict=True))
        high = tuple(start + far for start, far in zip(starts, reach, strict=True))
        return cls(matrix, low, high, reach)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step against the sign of the gradient."""
        for part, low, high, reach in zip(self.matrix.parameters, self.low, self.high, self.reach, strict=True):
            if part.grad is not None:
                part -= rate * reach * part.grad.sign()
                torch.clamp(part, low, high, out=part.data)
                part.grad = None
