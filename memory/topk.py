"""Exact top-k by cosine over a view of the matrix. Knows vectors and slots; nothing about rows.

A blocked float32 product finds the candidates; those that rounding could hide are computed again in
float64. The answer therefore depends neither on the BLAS, nor on where a row lies, nor on other rows:
every node that holds a memory gives it the same similarity, and equal vectors tie exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.memory.matrix import View

_EXACT_AT_ONCE = 4096
_FEW = 8  # below an eighth of all rows, computing just those is cheaper than the whole product


def nearest(
    view: View, query: NDArray[np.float32], k: int, only: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` slots nearest to ``query`` (float32 [d], not zero) and all that tie with the last of them.

    ``only`` int64 [m] restricts the choice to living slots. Returns slots int64 [n] and similarities
    float32 [n] in [-1, 1], best first; ties in slot order.
    """
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    slots = _candidates(view, unit, k, only)
    similarity = _exact(view, unit, slots)
    order = np.argsort(-similarity, kind="stable")
    slots, similarity = slots[order], similarity[order]
    if len(slots) > k:
        keep = similarity >= similarity[k - 1]
        slots, similarity = slots[keep], similarity[keep]
    return slots, similarity


def _candidates(view: View, unit: NDArray[np.float64], k: int, only: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Ascending slots that surely contain the ``k`` nearest and all that tie with them."""
    if only is not None and (len(only) <= k or len(only) < view.count // _FEW):
        return np.sort(only)
    scores = np.empty(view.count, np.float32)
    query = unit.astype(np.float32)
    for start, rows in view.parts():
        np.dot(rows, query, out=scores[start : start + len(rows)])
    if only is not None:
        chosen = np.zeros(view.count, bool)
        chosen[only] = True
        scores[~chosen] = -np.inf
    elif view.dead is not None:
        scores[view.dead] = -np.inf
    if k < view.count:
        kth = np.partition(scores, view.count - k)[view.count - k]
    else:
        kth = scores.min(initial=0)
    # A float32 dot product of unit vectors errs by at most d * 2**-24, whatever the order of its sums
    # (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); twice, for the row and for the k-th.
    margin = np.float32(2 * len(unit) * 2.0**-24)
    return np.flatnonzero((scores >= kth - margin) & (scores > -np.inf))


def _exact(view: View, unit: NDArray[np.float64], slots: NDArray[np.int64]) -> NDArray[np.float32]:
    """Similarities summed in float64, each row by itself, then rounded to float32."""
    out = np.empty(len(slots), np.float32)
    for start in range(0, len(slots), _EXACT_AT_ONCE):
        part = slots[start : start + _EXACT_AT_ONCE]
        out[start : start + len(part)] = (view.take(part) * unit).sum(axis=1)
    return np.clip(out, -1, 1)
