"""What a layer's weight should be when the layers before it were rounded already.

Their errors reach the layer as inputs that are a little off; a weight that is changed before it is rounded makes up
for a part of that: the least squares of the outputs that are missing on the inputs that come. After GPTAQ (Li et al.
2025, arXiv 2504.02692). Knows one weight; where wanted outputs come from is the caller's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.quant.hessian import Matrix, damped

_TOKENS_AT_ONCE = 1024


class DriftSum:
    """The sum of ``e x^T`` over tokens: missing outputs ``e`` [out] by the inputs ``x`` [in] where they are missing."""

    def __init__(self, outs: int, features: int) -> None:
        self.tokens = 0
        self._sum: Matrix = np.zeros((outs, features))

    def add(
        self, missing: NDArray[np.float32], activations: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Add ``missing`` float32 [..., out]: wanted outputs minus those of the unrounded weight on ``activations``,
        plus what a residual stream beside the layer lacks where there is one.

        ``activations`` float32 [..., in] are the inputs after rounding what comes before; ``mask`` bool [...] is False
        where padding stands. Raises BadRequest when shapes do not fit.
        """
        places = activations.shape[:-1]
        shapes = (missing.shape, activations.shape, places if mask is None else mask.shape)
        if shapes != ((*places, self._sum.shape[0]), (*places, self._sum.shape[1]), places):
            raise BadRequest(f"missing outputs, activations and mask of shapes {shapes} do not fit {self._sum.shape}")
        chosen = np.ones(math.prod(places), bool) if mask is None else mask.reshape(-1)
        outs, ins = (each.reshape(len(chosen), each.shape[-1])[chosen] for each in (missing, activations))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(outs), _TOKENS_AT_ONCE):
                part = slice(start, start + _TOKENS_AT_ONCE)
                self._sum += outs[part].T @ ins[part]
        self.tokens += len(outs)

    def mean(self) -> Matrix:
        """The mean of ``e x^T`` as float64 [out, in]; zeros before any token came."""
        return self._sum / max(1, self.tokens)


def retarget(
    weight: NDArray[np.float32], hessian: Matrix, drift: Matrix, *, damping: float = 0.01, share: float = 0.5
) -> NDArray[np.float32]:
    """The weight float32 [out, in] whose outputs come closer to the wanted ones: what should be rounded instead.

    ``hessian`` float64 [in, in] and ``drift`` float64 [out, in] are means over the same tokens. ``share``: the part
    that is made up for; all of it fits the calibration texts more than the others. Returns the weight itself where
    that would not be finite. Raises hessian.Unusable for a Hessian that cannot be used.
    """
    normal = damped(hessian, damping)
    with np.errstate(all="ignore"):
        try:
            change = np.linalg.solve(normal, drift.T / hessian.diagonal().max()).T
        except np.linalg.LinAlgError:
            return weight
        target: NDArray[np.float32] = (weight + share * change).astype(np.float32)
    return target if np.isfinite(target).all() else weight
