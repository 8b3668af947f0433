"""Scales and zero points that are quantised in their turn: the codec ``double4``.

A group's scale is ``float32(step) * scale_code``, its zero point ``zero_code * highest / 15``: two codes of 4 bits
per group, and a float16 step per super-block of 16 groups along a channel (the last one of a channel may be
shorter). After the super-blocks of llama.cpp's K-quants and the double quantisation of QLoRA (arXiv 2305.14314).
Knows nothing about the tensors that the groups belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, Corrupt
from aios_node.engine.quant.packing import check_packed, pack, packed_size, unpack

DOUBLE4_TYPES = ("int4", "int2")
"""What may have such scales."""

SUPER_BLOCK = 16
"""Groups that share a step."""

MOST = 15
"""The highest 4-bit code."""

LEAST_STEP = float(np.finfo(np.float16).tiny)
"""Steps are normal numbers, so that no machine flushes them to zero."""

LARGEST_STEP = float(np.finfo(np.float16).max)


def supers_of(groups: int) -> int:
    """Super-blocks per channel of so many groups."""
    return -(-groups // SUPER_BLOCK)


def by_group(values: NDArray[Any], groups: int) -> NDArray[Any]:
    """One number per super-block, [channels, supers], as one per group, [channels, groups]."""
    return np.repeat(values, SUPER_BLOCK, axis=1)[:, :groups]


@dataclass(frozen=True)
class CompactSizes:
    """Bytes of the three parts for a table of [channels, groups]."""

    steps: int
    scale_codes: int
    zero_codes: int

    @classmethod
    def of(cls, channels: int, groups: int) -> CompactSizes:
        """The sizes for so many groups in so many channels."""
        codes = packed_size(channels * groups, 4)
        return cls(2 * channels * supers_of(groups), codes, codes)

    @property
    def total(self) -> int:
        """All three together."""
        return self.steps + self.scale_codes + self.zero_codes


@dataclass(frozen=True, eq=False)
class CompactScales:
    """Scales and zero points as they are stored.

    ``steps``: float16 [channels, supers], positive normal numbers. ``scale_codes`` (1 to 15), ``zero_codes``
    (0 to 15): uint8, two codes per byte, in C order of [channels, ``groups``], low bits first, the last byte padded
    with zero bits. Raises BadWeights or Corrupt when it is anything else.
    """

    steps: NDArray[np.float16]
    scale_codes: NDArray[np.uint8]
    zero_codes: NDArray[np.uint8]
    groups: int

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.groups)
        for codes, what in ((self.scale_codes, "scale codes"), (self.zero_codes, "zero codes")):
            check_packed(codes, self.channels * self.groups, 4, what)
        if not self._table(self.scale_codes).all():
            raise Corrupt("a scale code is 0; scales are 1 to 15 steps")

    @classmethod
    def of(cls, steps: NDArray[np.float16], scale_codes: NDArray[Any], zero_codes: NDArray[Any]) -> CompactScales:
        """From codes that are not packed yet: whole numbers [channels, groups], 1 to 15 and 0 to 15."""
        for codes, least in ((scale_codes, 1), (zero_codes, 0)):
            if codes.ndim != 2 or (codes.size and not least <= codes.min() <= codes.max() <= MOST):
                raise BadWeights(f"codes of scales must be a table of {least} to {MOST}")
        return cls(steps, pack(scale_codes, 4), pack(zero_codes, 4), scale_codes.shape[1])

    @property
    def channels(self) -> int:
        """Channels of the table."""
        return int(self.steps.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of steps and codes together."""
        return self.steps.nbytes + self.scale_codes.nbytes + self.zero_codes.nbytes

    def scale_table(self) -> NDArray[np.uint8]:
        """Scale codes as uint8 [channels, groups]."""
        return self._table(self.scale_codes)

    def zero_table(self) -> NDArray[np.uint8]:
        """Zero codes as uint8 [channels, groups]."""
        return self._table(self.zero_codes)

    def scales(self) -> NDArray[np.float32]:
        """Scales as float32 [channels, groups]; exact, as 11 bits times 4 bits fit."""
        steps: NDArray[np.float32] = by_group(self.steps.astype(np.float32), self.groups)
        return np.multiply(steps, self.scale_table(), dtype=np.float32)

    def zero_points(self, highest: int) -> NDArray[np.float32]:
        """Zero points as float32 [channels, groups]; ``highest`` is the highest code of a value: 15 or 3."""
        return zero_levels(highest)[self.zero_table()]

    def _table(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return unpack(codes, 4, self.channels * self.groups).reshape(self.channels, self.groups)


def zero_levels(highest: int) -> NDArray[np.float32]:
    """What the 16 zero codes mean: float32 [16], from 0 to the highest code of a value."""
    levels: NDArray[np.float32] = np.arange(MOST + 1, dtype=np.float32) * np.float32(highest) / np.float32(MOST)
    return levels


def nearest_compact(scales: NDArray[Any], zero_points: NDArray[Any], highest: int) -> CompactScales:
    """The compact form that is nearest to these scales and zero points, each for itself.

    ``scales`` (positive), ``zero_points``: floats [channels, groups]; ``highest``: the highest code of a value. A scale
    comes back off by about half a step at most (a thirtieth of the largest in its super-block), by one step below
    the first. Raises BadWeights for numbers that are not finite or too large to be stored.
    """
    steps = steps_for(scales)
    wide = by_group(steps.astype(np.float64), scales.shape[1])
    scale_codes = np.rint(scales.astype(np.float64) / wide).clip(1, MOST)
    zero_codes = np.rint(zero_points.astype(np.float64) * MOST / highest)
    if not np.isfinite(zero_codes).all():
        raise BadWeights("zero points are not finite")
    return CompactScales.of(steps, scale_codes.astype(np.uint8), zero_codes.clip(0, MOST).astype(np.uint8))


def steps_for(scales: NDArray[Any], *, cover: bool = False) -> NDArray[np.float16]:
    """The steps with which the largest scale of every super-block gets the highest code: float16 [channels, supers].

    ``cover``: rounded up, so that no scale is larger than 15 steps. Raises BadWeights for scales that are not finite
    and positive, or beyond 15 of the largest steps.
    """
    channels, groups = scales.shape
    padded = np.zeros((channels, supers_of(groups) * SUPER_BLOCK))
    padded[:, :groups] = scales
    most = padded.reshape(channels, supers_of(groups), SUPER_BLOCK).max(axis=2) / MOST
    if scales.size and not (scales.min() > 0 and most.max() <= LARGEST_STEP):
        raise BadWeights(
            f"scales must be above 0 and at most {MOST * LARGEST_STEP:.0f} to be kept in 4 bits: use scales float32"
        )
    steps: NDArray[np.float16] = most.clip(LEAST_STEP, LARGEST_STEP).astype(np.float16)
    if cover:
        steps = np.where(steps < most, np.nextafter(steps, np.float16(np.inf)), steps)
    return steps


def _check_steps(steps: NDArray[np.float16], groups: int) -> None:
    if steps.dtype != np.float16 or steps.ndim != 2:
        raise BadWeights(f"steps of scales must be float16 in two dimensions, not {steps.dtype} in {steps.ndim}")
    if groups < 1 or steps.shape[1] != supers_of(groups):
        raise Corrupt(f"{groups} groups have {supers_of(groups)} steps in a channel, not {steps.shape[1]}")
    if steps.size and not ((steps >= LEAST_STEP) & (steps <= LARGEST_STEP)).all():
        raise Corrupt(f"a step of scales is not a number from {LEAST_STEP:.3g} to {LARGEST_STEP:.0f}")
