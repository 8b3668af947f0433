"""How well a candidate's vectors agree with a reference's: direction, ranking, neighbourhood.

Three questions, because they fail separately. Does each text still point where it did (cosines)? Are pairs of
texts still as alike, relative to other pairs, as they were (Spearman's rank correlation of the similarities)?
Does a search still find the same texts (overlap of the nearest neighbours)? Works on arrays alone: knows no
texts, networks or files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest, BadWeights

Doubles = NDArray[np.float64]

PAIRS = 20_000
"""Pairs of texts whose similarities are ranked; all of them where there are fewer."""

NEIGHBOURS = 10

_ROWS = 512
"""Rows whose similarities to all others are held at once."""


@dataclass(frozen=True)
class Agreement:
    """Figures over ``texts`` texts; 1 is perfect everywhere.

    ``mean``, ``p1`` and ``p5`` (the cosine that 1% and 5% of the texts stay below) and ``least`` describe the
    cosines. ``spearman`` and ``overlap`` compare texts with each other; None for fewer than three texts.
    """

    texts: int
    mean: float
    p1: float
    p5: float
    least: float
    spearman: float | None
    overlap: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name; ``least`` is called ``min``."""
        members = asdict(self)
        members["min"] = members.pop("least")
        return members


def agreement(reference: NDArray[Any], candidate: NDArray[Any], *, seed: int = 0) -> Agreement:
    """Compare two sets of vectors [n, d], row by row and pair by pair; ``seed`` chooses the pairs.

    Raises BadRequest for no vectors or different shapes, BadWeights for vectors that are not finite.
    """
    before, after = _units(reference, candidate)
    cosine = _row_cosines(before, after)
    several = len(cosine) > 2
    return Agreement(
        texts=len(cosine),
        mean=float(cosine.mean()),
        p1=float(np.percentile(cosine, 1)),
        p5=float(np.percentile(cosine, 5)),
        least=float(cosine.min()),
        spearman=_pair_ranking(before, after, seed) if several else None,
        overlap=_neighbour_overlap(before, after) if several else None,
    )


def cosines(reference: NDArray[Any], candidate: NDArray[Any]) -> Doubles:
    """Cosine of each row of two arrays [n, d]: float64 [n]; of two zero rows 1, of one 0. Raises as ``agreement``."""
    return _row_cosines(*_units(reference, candidate))


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Spearman's rank correlation of two arrays [n], ties sharing their mean rank.

    Where either is constant there is no order to keep: 1 if both are, else 0.
    """
    a, b = ranks(one), ranks(other)
    a -= a.mean()
    b -= b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    if not norm:
        return float(not a.any() and not b.any())
    return float(a @ b) / norm


def ranks(values: NDArray[Any]) -> Doubles:
    """Ranks from 1, smallest first: float64 [n]; equal values share the mean of the ranks they take up."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: Doubles = last - (counts - 1) / 2
    return shared[places.reshape(-1)]


def _units(reference: NDArray[Any], candidate: NDArray[Any]) -> tuple[Doubles, Doubles]:
    if reference.shape != candidate.shape or reference.ndim != 2 or not len(reference):
        raise BadRequest(
            f"vectors of shapes {reference.shape} and {candidate.shape} cannot be compared: "
            "two arrays [texts, dimension] of the same shape are needed, with at least one text"
        )
    return _unit(reference, "reference"), _unit(candidate, "candidate")


def _unit(vectors: NDArray[Any], whose: str) -> Doubles:
    if not np.isfinite(vectors).all():
        raise BadWeights(f"the {whose} computes vectors that are not finite")
    wide = vectors.astype(np.float64)
    largest = np.abs(wide).max(axis=1, initial=0.0, keepdims=True)
    wide /= np.where(largest, largest, 1)  # squares of tiny and huge numbers stay representable
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Doubles = wide / np.where(length, length, 1)
    return unit


def _row_cosines(before: Doubles, after: Doubles) -> Doubles:
    empty = ~before.any(axis=1) & ~after.any(axis=1)
    product = np.einsum("nd,nd->n", before, after)
    result: Doubles = np.where(empty, 1.0, np.clip(product, -1, 1))
    return result


def _pair_ranking(before: Doubles, after: Doubles, seed: int) -> float:
    left, right = _pairs(len(before), seed)
    return spearman(*(np.einsum("nd,nd->n", vectors[left], vectors[right]) for vectors in (before, after)))


def _pairs(count: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of different rows: all of them, or PAIRS drawn by ``seed``."""
    if count * (count - 1) // 2 <= PAIRS:
        return np.triu_indices(count, 1)
    random = np.random.default_rng(seed)
    left = random.integers(0, count, PAIRS)
    step = random.integers(1, count, PAIRS)
    return left, (left + step) % count


def _neighbour_overlap(before: Doubles, after: Doubles) -> float:
    k = min(NEIGHBOURS, len(before) - 1)
    common = 0
    for start in range(0, len(before), _ROWS):
        found = [_nearest(vectors, start, k) for vectors in (before, after)]
        common += sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(*found, strict=True))
    return common / (k * len(before))


def _nearest(vectors: Doubles, start: int, k: int) -> NDArray[np.intp]:
    """Numbers of the ``k`` nearest other rows of some rows, in no order: [rows, k]."""
    similar = vectors[start : start + _ROWS] @ vectors.T
    own = np.arange(len(similar))
    similar[own, start + own] = -np.inf
    return np.argpartition(similar, -k, axis=1)[:, -k:]
