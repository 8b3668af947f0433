"""Numbers that masks can hide: whole numbers modulo 2**32 or 2**64, and floats on a fixed grid of them.

Masks wrap around and vanish exactly in the sum, which floats would not. The true sum must fit into the ring with its
sign; range and step are agreed before, and a number outside the range is refused rather than cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest, BadWeights

BITS: Final = (32, 64)
_TOGETHER: Final = 1 << 15
"""Numbers that are converted together: they stay in the processor's cache from one step to the next."""
Residues = NDArray[np.unsignedinteger[Any]]
_UNSIGNED: Final[dict[int, np.dtype[Any]]] = {32: np.dtype("<u4"), 64: np.dtype("<u8")}
_SIGNED: Final[dict[int, np.dtype[Any]]] = {32: np.dtype("<i4"), 64: np.dtype("<i8")}


def dtype_of_ring(bits: int) -> np.dtype[Any]:
    """uint32 or uint64, little endian. Raises BadConfig for other widths."""
    if bits not in BITS:
        raise BadConfig(f"a ring of {bits} bits: it must be one of {', '.join(map(str, BITS))}")
    return _UNSIGNED[bits]


def to_ring(numbers: NDArray[np.int64], bits: int) -> Residues:
    """Whole numbers modulo ``2**bits``."""
    return numbers.astype(dtype_of_ring(bits))


def from_ring(residues: Residues) -> NDArray[np.int64]:
    """The whole numbers nearest to zero with these residues, int64."""
    signed: NDArray[np.signedinteger[Any]] = residues.view(_SIGNED[residues.dtype.itemsize * 8])
    return signed.astype(np.int64)


@dataclass(frozen=True)
class FixedPoint:
    """Floats from ``-limit`` to ``limit`` in steps of a power of two, for sums of up to ``summands`` of them."""

    limit: float
    summands: int
    bits: int = 32

    def __post_init__(self) -> None:
        dtype_of_ring(self.bits)
        if not 0 < self.limit < math.inf or not 1 <= self.summands <= 1 << 20:
            raise BadConfig(f"fixed point for {self.summands} numbers up to {self.limit}: both must be above 0")

    @property
    def step(self) -> float:
        """Width of the grid: the sum of ``summands`` numbers of size ``limit``, each rounded, still fits."""
        most = (1 << (self.bits - 1)) - 1 - self.summands
        return float(2.0 ** -math.floor(math.log2(most / (self.summands * self.limit))))

    @property
    def error(self) -> float:
        """The most by which a decoded sum may differ from the true one: half a step for each summand."""
        return self.summands * self.step / 2

    def encode(self, values: NDArray[np.floating[Any]]) -> Residues:
        """Floats as residues, of the same shape. Raises BadWeights for NaN and numbers beyond the limit."""
        flat = np.ascontiguousarray(values).reshape(-1)
        residues = np.empty(flat.shape, dtype_of_ring(self.bits))
        for start in range(0, len(flat), _TOGETHER):
            exact = flat[start : start + _TOGETHER].astype(np.float64)
            if not (np.abs(exact) <= self.limit).all():
                raise BadWeights(f"a number is NaN or beyond {self.limit}: this sum cannot hold it, clip the update")
            steps = np.rint(np.divide(exact, self.step, out=exact), out=exact)
            residues[start : start + _TOGETHER] = to_ring(steps.astype(np.int64), self.bits)
        return residues.reshape(values.shape)

    def decode(self, residues: Residues) -> NDArray[np.float64]:
        """The sum in float64. Raises BadRequest for residues of another ring."""
        if residues.dtype != dtype_of_ring(self.bits):
            raise BadRequest(f"residues of {residues.dtype} in a ring of {self.bits} bits")
        return np.multiply(from_ring(residues), self.step, dtype=np.float64)
