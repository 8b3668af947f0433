"""Versions that are their base plus an update of few bits, told by this update.

For a tensor T that was made so, a version keeps ``aios.update/T``: T's shape, quantised along the flattened tensor.
T = base + update: the update is dequantised in float32, the sum is made in float64 and rounded once to T's dtype. So
whoever has the base can make T again, to the bit. Knows names and sums, not how updates are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.packing import unpack
from aios_node.engine.quant.rounding import rounded
from aios_node.engine.weights.names import UPDATES

_AT_ONCE: Final = 1 << 16


def update_name(tensor: str) -> str:
    """Name of a tensor's update."""
    return UPDATES + tensor


@dataclass(frozen=True, eq=False)
class Update:
    """What one tensor gets added. ``codes``: a quantised tensor of dtype float32 with axis -1."""

    codes: QuantizedTensor

    def fit(self, shape: tuple[int, ...]) -> bool:
        """Whether it is an update of tensors of this shape."""
        return self.codes.shape == shape

    def add(self, base: NDArray[Any], start: int = 0) -> NDArray[Any]:
        """Elements ``start`` to ``start + n`` (C order) of base + update, from those of the base, [n] of a float."""
        result = np.empty_like(base)
        for begin in range(0, base.size, _AT_ONCE):
            part = slice(begin, min(base.size, begin + _AT_ONCE))
            values = self._values(start + part.start, start + part.stop)
            with np.errstate(over="ignore", invalid="ignore"):
                sums = base[part].astype(np.float64) + values.astype(np.float64)
            result[part] = rounded(sums, dtype_name(base))
        return result

    def _values(self, first: int, last: int) -> NDArray[np.float32]:
        """Elements ``first`` to ``last``: scale * (code - zero point), as everywhere."""
        codes, each = self.codes, 8 // self.codes.bits
        some = codes.codes[first // each : -(-last // each)]
        values = unpack(some, codes.bits, some.size * each)[first % each :][: last - first].astype(np.float32)
        groups = np.arange(first, last) // (codes.group_size or max(1, codes.count))
        with np.errstate(over="ignore", invalid="ignore"):
            values -= codes.zero_points[0, groups]
            values *= codes.scales[0, groups]
        return values


def read_update(weights: Mapping[str, Tensor], tensor: str) -> Update | None:
    """The update that lies beside a tensor, or None where there is none that could be one."""
    codes = weights.get(update_name(tensor))
    if isinstance(codes, QuantizedTensor) and codes.axis == -1 and codes.dtype == "float32":
        return Update(codes)
    return None
