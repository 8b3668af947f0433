"""What a linear layer's inputs tell about its weights: their second moments, summed and factorised.

Rounding a row of weights by ``d`` changes the layer's squared output by ``d H d^T`` where ``H`` is the mean of
``x x^T`` over all inputs ``x``. Knows neither the weights nor where inputs come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest

Matrix = NDArray[np.float64]

_TOKENS_AT_ONCE = 1024
"""Tokens that are multiplied in float32 before their product joins the float64 sum."""

_LADDER = 10.0
_LARGEST_DAMPING = 100.0
_SMALLEST_DAMPING = 0.01


class Unusable(ValueError):
    """A Hessian that says nothing that rounding could use; the message says why."""


class HessianSum:
    """The sum of ``x x^T`` over tokens, in memory for one square of the layer's inputs, however many there are."""

    def __init__(self, features: int) -> None:
        self.tokens = 0
        self._sum: Matrix = np.zeros((features, features))

    def add(self, activations: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> None:
        """Add a layer's inputs: float32 [..., features]; ``mask`` bool [...] is False where padding stands.

        Raises BadRequest when shapes do not fit. NaN and Inf are taken as they are: factorise refuses them.
        """
        features = len(self._sum)
        if activations.ndim < 1 or activations.shape[-1] != features:
            raise BadRequest(f"activations of shape {activations.shape} for a layer of {features} inputs")
        rows = activations.reshape(math.prod(activations.shape[:-1]), features)
        if mask is not None:
            if mask.shape != activations.shape[:-1]:
                raise BadRequest(f"a mask of shape {mask.shape} for activations of shape {activations.shape}")
            rows = rows[mask.astype(bool).reshape(-1)]
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), _TOKENS_AT_ONCE):
                part = np.ascontiguousarray(rows[start : start + _TOKENS_AT_ONCE], np.float32)
                self._sum += part.T @ part
        self.tokens += len(rows)

    def mean(self) -> Matrix:
        """The mean of ``x x^T`` as float64 [features, features]; zeros before any token came."""
        return self._sum / max(1, self.tokens)


@dataclass(frozen=True, eq=False)
class Factor:
    """A Hessian in a form that rounding walks along.

    ``order``: the columns of the weight in the order of rounding, int64 [n]. ``upper``: float64 [n, n] with
    ones on the diagonal, in that order: the damped Hessian is ``upper D upper^T`` with a diagonal ``D``.
    ``damping``: what was added to its diagonal, in parts of the mean of the diagonal.
    """

    order: NDArray[np.int64]
    upper: Matrix
    damping: float


def factorise(hessian: Matrix, *, damping: float, act_order: bool) -> Factor:
    """Factorise a Hessian, damped as little as it takes: ``damping``, then ten times more until it works.

    Columns without any input (a diagonal of zero, or below by rounding) stand alone. With ``act_order`` columns of
    large inputs come first. Raises Unusable for NaN, Inf, only zeros, or what no damping helps; BadConfig for a
    damping that is not a number from 0 to 100.
    """
    if not 0 <= damping <= _LARGEST_DAMPING:
        raise BadConfig(f"gptq: damping is {damping!r:.40}; a number from 0 to {_LARGEST_DAMPING:.0f} is allowed")
    sizes = _normalised(hessian).diagonal()
    order = np.argsort(-sizes, kind="stable") if act_order else np.arange(len(sizes))
    normal = damped(hessian, 0.0)[order][:, order]
    diagonal = normal.diagonal().copy()
    mean = float(diagonal.mean())
    while damping <= _LARGEST_DAMPING:
        np.fill_diagonal(normal, diagonal + damping * mean)
        upper = _unit_upper(normal)
        if upper is not None:
            return Factor(order, upper, damping)
        damping = max(_LADDER * damping, _SMALLEST_DAMPING)
    raise Unusable(f"the Hessian is not positive definite, even with {_LARGEST_DAMPING:.0f} times its diagonal added")


def damped(hessian: Matrix, damping: float) -> Matrix:
    """The Hessian with ``damping`` times its diagonal's mean added to it; columns without input stand alone.

    Its largest value was 1 before that. Raises Unusable.
    """
    normal = _normalised(hessian)
    diagonal = normal.diagonal().copy()
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean())
    normal[dead], normal[:, dead] = 0.0, 0.0
    np.fill_diagonal(normal, np.where(dead, mean, diagonal) + damping * mean)
    return normal


def importance_of(hessian: Matrix) -> NDArray[np.float32]:
    """How much each column's squared error counts: the diagonal, 0 to 1, as float32 [n]."""
    diagonal = _normalised(hessian).diagonal()
    part: NDArray[np.float32] = np.maximum(diagonal / diagonal.max(), 0).astype(np.float32)
    return part


def weighted_error(change: Matrix, hessian: Matrix) -> float:
    """``sum over rows d of d H d^T`` for changes float64 [out, in]: what rounding does to the output, squared."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.vdot(change @ hessian, change))


def _normalised(hessian: Matrix) -> Matrix:
    """A symmetric copy whose largest diagonal value is 1. Raises Unusable."""
    if not np.isfinite(hessian).all():
        raise Unusable("the Hessian holds NaN or Inf: activations overflowed, or the calibration went wrong")
    largest = float(hessian.diagonal().max(initial=0.0))
    if largest <= 0:
        raise Unusable("the Hessian's diagonal is zero: no token reached this layer")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        normal: Matrix = hessian / largest
        normal = normal / 2 + normal.T / 2
    if not np.isfinite(normal).all():
        raise Unusable("the Hessian's values are too far apart to be divided by its diagonal")
    return normal


def _unit_upper(matrix: Matrix) -> Matrix | None:
    """The upper factor, from the Cholesky factor of the matrix turned around; None where there is none."""
    try:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
            unit: Matrix = upper / upper.diagonal()
    except np.linalg.LinAlgError:
        return None
    return unit if np.isfinite(unit).all() else None
