"""Cutting a tensor's groups into blocks that fit a core's cache.

A block holds some groups of equal length; its values are handled as [length, groups], one column per group, so that
every operation runs over all groups at once. Knows nothing about what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import Grouping

BLOCK_VALUES = 2**16
"""Values handled together: a quarter MiB of float32, so that a search's passes stay in a core's cache."""


@dataclass(frozen=True)
class Block:
    """Some groups of equal length in some channels of a matrix [channels, rest]."""

    channels: slice
    groups: slice
    start: int  # first value along the rest
    shape: tuple[int, int]  # channels, groups per channel
    length: int  # values per group

    @property
    def values(self) -> tuple[slice, slice]:
        """Where the block's values are in the matrix."""
        return self.channels, slice(self.start, self.start + self.shape[1] * self.length)

    @property
    def scales(self) -> tuple[slice, slice]:
        """Where the block's scales are in [channels, groups]."""
        return self.channels, self.groups

    def columns(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """The block's values as [length, groups]: contiguous, one column per group."""
        part = matrix[self.values].reshape(-1, self.length)
        return np.ascontiguousarray(part.T)

    def of_groups(self, table: NDArray[Any]) -> NDArray[Any]:
        """What a table [channels, groups] says about the block's groups: [groups of the block]."""
        return table[self.scales].reshape(-1)

    def put(self, table: NDArray[Any], values: NDArray[Any]) -> None:
        """The inverse of of_groups: one number per group of the block into a table [channels, groups]."""
        table[self.scales] = values.reshape(self.shape)

    def rows(self, codes: NDArray[Any]) -> NDArray[Any]:
        """The inverse of columns: [length, groups] as [channels, values]."""
        return codes.T.reshape(self.shape[0], self.shape[1] * self.length)


def blocks_of(grouping: Grouping) -> Iterator[Block]:
    """All groups of a tensor, cut into blocks: the full groups first, then the tails."""
    if not grouping.channels or not grouping.rest:
        return
    length = min(grouping.size, grouping.rest) or grouping.rest
    full = grouping.rest // length
    tail = grouping.rest - full * length
    yield from _cut(grouping.channels, 0, full, length, 0)
    if tail:
        yield from _cut(grouping.channels, full, 1, tail, full * length)


def _cut(channels: int, first: int, groups: int, length: int, start: int) -> Iterator[Block]:
    """Equal groups of all channels: whole channels together, or parts of one where it is long."""
    in_block = max(1, BLOCK_VALUES // length)
    wide = min(groups, in_block)
    high = max(1, in_block // groups)
    for channel in range(0, channels, high):
        rows = min(high, channels - channel)
        for group in range(0, groups, wide):
            count = min(wide, groups - group)
            yield Block(
                slice(channel, channel + rows),
                slice(first + group, first + group + count),
                start + group * length,
                (rows, count),
                length,
            )
