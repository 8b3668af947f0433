"""Masks: a seed of 32 bytes becomes a vector of uniform residues, added to or taken from another. Knows no peers."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.random import BLOCK, Stream

ADD: Final = 1
TAKE: Final = -1


def apply_mask(vector: Residues, seed: bytes, sign: Literal[1, -1]) -> None:
    """Add (1) or take away (-1) the seed's mask, in place. One block of 64 KiB at a time, whatever the length."""
    stream = Stream(seed)
    block = np.empty(BLOCK // vector.dtype.itemsize, vector.dtype)
    change = np.add if sign == ADD else np.subtract
    for start in range(0, len(vector), len(block)):
        part = vector[start : start + len(block)]
        mask = block[: len(part)]
        stream.fill(mask.view(np.uint8))
        change(part, mask, out=part)
