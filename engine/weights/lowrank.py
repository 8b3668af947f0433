"""Versions that are their base plus products of small matrices (merged LoRA), told by these factors.

For a tensor T [out, in] that was made so, a version keeps ``aios.factors/up/T`` [out, rank] and
``aios.factors/down/T`` [rank, in], int8 with a scale for each rank: T = base + up @ down. Whoever has the base can make
T again, to the bit: sums run in float64, base first, then product by product, and are rounded once to T's dtype.
Knows names and sums, not where factors come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.fit import Floats
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings
from aios_node.engine.quant.rounding import rounded
from aios_node.engine.weights.names import FACTORS

_AT_ONCE: Final = 1 << 16


def factor_names(tensor: str) -> tuple[str, str]:
    """Names of the two factors of a tensor: up, down."""
    return f"{FACTORS}up/{tensor}", f"{FACTORS}down/{tensor}"


@dataclass(frozen=True, eq=False)
class Factors:
    """``up`` [out, rank] and ``down`` [rank, in] of one tensor, int8."""

    up: QuantizedTensor
    down: QuantizedTensor

    @classmethod
    def of(cls, up: Floats, down: Floats) -> Factors:
        """Round two float32 matrices to what is stored. Raises BadWeights for NaN and Inf."""
        halves = (quantize_tensor(part, "float32", Settings(axis=axis)).tensor for part, axis in ((up, 1), (down, 0)))
        return cls(*halves)

    def stored(self, tensor: str) -> dict[str, Tensor]:
        """Both as tensors of a version."""
        return dict(zip(factor_names(tensor), (self.up, self.down), strict=True))

    def fit(self, shape: tuple[int, ...]) -> bool:
        """Whether their product has this shape."""
        matrices = len(self.up.shape) == len(self.down.shape) == 2
        return matrices and self.up.shape[1] == self.down.shape[0] and (self.up.shape[0], self.down.shape[1]) == shape

    def add(self, base: NDArray[Any], start: int = 0) -> NDArray[Any]:
        """Elements ``start`` to ``start + n`` (C order) of base + up @ down, from those of the base, [n] of a float."""
        from aios_node.engine.weights.lowrank_kernel import add_products

        up, down = (np.ascontiguousarray(part.dequantize(), np.float64) for part in (self.up, self.down))
        result = np.empty_like(base)
        for begin in range(0, base.size, _AT_ONCE):
            part = slice(begin, min(base.size, begin + _AT_ONCE))
            sums = base[part].astype(np.float64)
            add_products(sums, start + begin, up, down)
            result[part] = rounded(sums, dtype_name(base))
        return result


def read_factors(weights: Mapping[str, Tensor], tensor: str) -> Factors | None:
    """The factors that lie beside a tensor, or None where there are none that could be factors."""
    up, down = (weights.get(name) for name in factor_names(tensor))
    if isinstance(up, QuantizedTensor) and isinstance(down, QuantizedTensor) and up.dtype == down.dtype == "float32":
        return Factors(up, down)
    return None
