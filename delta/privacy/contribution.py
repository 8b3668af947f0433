"""Noise inside a secure sum: every participant adds its part, and only the sum holds enough of it for everybody.

The aggregator then sees neither a single update nor a sum without noise. Noise is a discrete Gaussian on the grid of
the ring; sums of such are so near to one of their joint size that no epsilon shows the difference (Kairouz, Liu and
Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", 2021, theorem
1: for noise of four steps or more the excess is below 1e-60 for each number).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.privacy.aggregation.ring import Residues, from_ring, to_ring
from aios_node.delta.privacy.differential.accountant import Neighbours, Release
from aios_node.delta.privacy.differential.grid import Grid, clip
from aios_node.delta.privacy.differential.mechanism import with_noise
from aios_node.delta.privacy.random import Random, os_random
from aios_node.engine.errors import BadConfig


@dataclass(frozen=True)
class NoisySum:
    """How vectors are clipped and noised before they are masked, the same for everybody.

    ``noise_multiplier``: of the noise in the sum, over the clip norm of one update. ``participants``: the most that
    can be in the sum. ``honest``: the least number whose noise really is in it and unknown to those from whom the sum
    shall hide something; at most the threshold, and less by each participant that might tell its noise.
    """

    clip_norm: float
    noise_multiplier: float
    participants: int
    honest: int
    bits: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.honest <= self.participants:
            raise BadConfig(f"noise of {self.honest} among {self.participants} participants")

    @property
    def grid(self) -> Grid:
        """The grid of one participant: its noise is the share of ``honest`` equal ones. Raises BadConfig."""
        most = ((1 << (self.bits - 1)) - 1) // self.participants
        return Grid.of(self.clip_norm, self.noise_multiplier / math.sqrt(self.honest), min(most, 1 << 31))

    @property
    def release(self) -> Release:
        """What publishing the sum costs anybody whose update was in it, or was not."""
        return Release(self.grid.noise_multiplier * math.sqrt(self.honest), Neighbours.ADD_REMOVE)

    def contribution(self, update: NDArray[np.floating[Any]], random: Random = os_random) -> Residues:
        """One participant's vector for a secure sum: clipped, with its part of the noise, as residues of that shape.

        Raises BadWeights for NaN and infinity.
        """
        grid = self.grid
        return to_ring(with_noise(clip(update, grid), grid, random), self.bits)

    def decode(self, total: Residues) -> NDArray[np.float64]:
        """The noisy sum of the clipped updates, float64. Divide it by a number that was fixed before."""
        return np.multiply(from_ring(total), self.grid.step, dtype=np.float64)
