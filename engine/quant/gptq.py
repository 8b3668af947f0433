"""GPTQ: rounding that makes up for each column's error in the columns that come after it.

After Frantar et al. 2022 (arXiv 2210.17323), with the order of columns by their inputs' size and groups whose scales
are fixed before that order applies, as GPTQModel has it (act-order, static groups). The recursion is the equivalent
one of nearest planes (Babai; Chen et al. 2025, arXiv 2507.18553): with ``H = U D U^T`` for a unit upper triangle
``U``, column ``k`` is rounded at ``w_k + sum over i < k of (w_i - q_i) U_ik``, which needs no inverse of ``H``.
Knows one weight and its Hessian; nothing about networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import BITS, QuantizedTensor, pack
from aios_node.engine.quant.columns import per_column
from aios_node.engine.quant.fit import LEVELS, Floats, Levels
from aios_node.engine.quant.hessian import Factor, Matrix, Unusable, damped, factorise, importance_of, weighted_error
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings
from aios_node.engine.quant.refine import refine

_COLUMNS_AT_ONCE = 128
"""Columns that are rounded one by one before their errors reach the later ones in one multiplication."""


@dataclass(frozen=True, eq=False)
class GptqResult:
    """A quantised weight and how it came about.

    ``damping``: what was added to the Hessian's diagonal, in parts of its mean (more than was asked for when that
    was needed). ``error``: the squared error of the layer's output per input, summed over outputs;
    ``plain_error``: the same after plain rounding; both NaN when the Hessian holds NaN or Inf. ``fallback``: why
    this is plain rounding after all, a sentence for a warning, else None.
    """

    tensor: QuantizedTensor
    damping: float
    error: float
    plain_error: float
    fallback: str | None = None


def gptq(
    weight: Floats,
    hessian: Matrix,
    settings: Settings,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    sweeps: int = 2,
    dtype: str = "float32",
) -> GptqResult:
    """Quantise a linear layer's weight so that its output on the calibration inputs changes least.

    ``weight``: float32 [out, in]. ``hessian``: float64 [in, in], the sum or mean of ``x x^T`` over real tokens (see
    hessian.HessianSum); its scale does not matter. ``sweeps``: how often scales and codes are refined afterwards (see
    refine); 0 is GPTQ as published. ``dtype``: what the tensor is when dequantised. The result is never
    worse than ptq.quantize_tensor by the Hessian's measure, and is that tensor (with ``fallback``) where the Hessian
    cannot be used. Deterministic on one machine; BLAS may add in another order on another one. Raises BadWeights
    for NaN and Inf in the weight, BadRequest for shapes that do not fit, BadConfig for a damping that cannot be.
    """
    _check(weight, hessian)
    plain = quantize_tensor(weight, dtype, settings).tensor
    if not weight.size:
        return GptqResult(plain, damping, 0.0, 0.0)
    plain_error = _error(weight, plain, hessian)
    try:
        factor = factorise(hessian, damping=damping, act_order=act_order)
        fitted = _fitted(weight, hessian, settings, dtype, plain)
        tensor = replace(fitted, codes=_codes(weight, fitted, factor))
        tensor, found = _refined(weight, tensor, hessian, settings, factor.damping, sweeps)
    except Unusable as error:
        return GptqResult(plain, damping, plain_error, plain_error, str(error))
    if found <= plain_error:
        return GptqResult(tensor, factor.damping, found, plain_error)
    reason = f"plain rounding is closer: squared error {plain_error:.4g} instead of {found:.4g}"
    return GptqResult(plain, factor.damping, plain_error, plain_error, reason)


def _refined(
    weight: Floats, tensor: QuantizedTensor, hessian: Matrix, settings: Settings, damping: float, sweeps: int
) -> tuple[QuantizedTensor, float]:
    """The better one of a tensor and what coordinate descent makes of it, with its error."""
    error = _error(weight, tensor, hessian)
    if not sweeps:
        return tensor, error
    finer = refine(weight, tensor, damped(hessian, damping), sweeps, symmetric=settings.symmetric)
    found = _error(weight, finer, hessian)
    return (finer, found) if found < error else (tensor, error)


def _check(weight: Floats, hessian: Matrix) -> None:
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise BadRequest(f"gptq takes a float32 matrix, not {weight.dtype} of {weight.ndim} dimensions")
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise BadRequest(f"a Hessian of shape {hessian.shape} for a weight of shape {weight.shape}")
    if not np.isfinite(weight).all():
        raise BadWeights("the weight holds NaN or Inf: it cannot be quantised")


def _error(weight: Floats, tensor: QuantizedTensor, hessian: Matrix) -> float:
    kept = replace(tensor, dtype="float32").dequantize()
    return weighted_error(weight.astype(np.float64) - kept, hessian)


def _fitted(weight: Floats, hessian: Matrix, settings: Settings, dtype: str, plain: QuantizedTensor) -> QuantizedTensor:
    """Scales and zero points of all groups; a search for them counts errors as the Hessian's diagonal does."""
    if settings.clip != "mse":
        return plain
    importance = np.broadcast_to(importance_of(hessian), weight.shape)
    return quantize_tensor(weight, dtype, settings, importance=importance).tensor


def _codes(weight: Floats, fitted: QuantizedTensor, factor: Factor) -> NDArray[np.uint8]:
    """Packed codes; float64 where float32 does not reach. Raises Unusable where neither does."""
    for kind in (np.float32, np.float64):
        codes = _Rounding(weight, fitted, factor, kind).codes()
        if codes is not None:
            return pack(codes, BITS[fitted.quant_type])
    raise Unusable("errors of early columns grow without bound in later ones, even in float64")


class _Rounding:
    """Rounds a weight column by column. Everything is held as [columns in order, out]: a column is contiguous."""

    def __init__(self, weight: Floats, fitted: QuantizedTensor, factor: Factor, kind: type[np.floating[Any]]) -> None:
        self._kind = kind
        self._order = factor.order
        self._weight = weight.T[factor.order].astype(kind)
        self._lower = factor.upper.T.astype(kind)  # row k: what column k takes over from the columns before it
        self._changes = np.zeros_like(self._weight)
        self._fitted = fitted
        self._levels = LEVELS[fitted.quant_type]

    def codes(self) -> NDArray[Any] | None:
        """Codes in the weight's shape, not packed; None when a number overflowed on the way."""
        codes = np.empty(self._weight.shape, self._kind)
        with np.errstate(all="ignore"):
            for start in range(0, len(codes), _COLUMNS_AT_ONCE):
                if not self._block(slice(start, start + _COLUMNS_AT_ONCE), codes):
                    return None
        whole = np.empty(self._weight.shape[::-1], np.int8 if self._levels.low < 0 else np.uint8)
        whole[:, self._order] = codes.T
        return whole

    def _block(self, columns: slice, codes: NDArray[Any]) -> bool:
        """Round some columns; whether all numbers stayed finite."""
        wanted, changes = self._weight[columns].copy(), self._changes[columns]
        if columns.start:
            wanted += self._lower[columns, : columns.start] @ self._changes[: columns.start]
        scales = per_column(self._fitted.scales, self._fitted, self._order[columns]).astype(self._kind)
        zeros = per_column(self._fitted.zero_points, self._fitted, self._order[columns]).astype(self._kind)
        taken = self._lower[columns, columns]
        _round_columns(wanted, self._weight[columns], scales, zeros, taken, self._levels, codes[columns], changes)
        return bool(np.isfinite(wanted).all() and np.isfinite(changes).all())


def _round_columns(
    wanted: NDArray[Any],
    weight: NDArray[Any],
    scales: NDArray[Any],
    zero_points: NDArray[Any],
    taken: NDArray[Any],
    levels: Levels,
    codes: NDArray[Any],
    changes: NDArray[Any],
) -> None:
    """The recursion within a block: fills ``codes`` and ``changes``, both [columns, out]; all buffers are there."""
    moved = np.empty_like(wanted[0])
    for k in range(len(wanted)):
        column, code, change = wanted[k], codes[k], changes[k]
        if k:
            np.dot(taken[k, :k], changes[:k], out=moved)
            np.add(column, moved, out=column)
        np.divide(column, scales[k], out=code)
        np.add(code, zero_points[k], out=code)
        np.rint(code, out=code)
        np.maximum(code, levels.low, out=code)
        np.minimum(code, levels.high, out=code)
        np.subtract(code, zero_points[k], out=change)
        np.multiply(change, scales[k], out=change)
        np.subtract(weight[k], change, out=change)
