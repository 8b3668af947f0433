"""How well questions find their documents: recall at k and mean reciprocal rank.

Takes vectors, or any function from texts to vectors. Knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to unit vectors, float32 [n, d]."""

_ROWS = 1024


@dataclass(frozen=True)
class Scores:
    """Shares between 0 and 1 over ``questions`` questions asked of ``documents`` documents."""

    recall_at_1: float
    recall_at_10: float
    mrr: float
    questions: int
    documents: int

    def to_json(self) -> dict[str, float | int]:
        """The figures by name."""
        return asdict(self)


def ranks(questions: NDArray[np.float32], documents: NDArray[np.float32], answers: Sequence[int]) -> NDArray[np.int64]:
    """Rank of each question's document, 1 = best, by inner product: int64 [questions].

    ``questions`` [q, d] and ``documents`` [n, d] are unit vectors, ``answers`` the row of each question's
    document. Ties count against the document, so that vectors which are all alike score nothing.
    """
    wanted = np.asarray(answers, dtype=np.intp)
    if len(wanted) != len(questions) or np.any((wanted < 0) | (wanted >= len(documents))):
        raise BadRequest(f"answers must name one of {len(documents)} documents for each question")
    found = np.empty(len(questions), dtype=np.int64)
    for start in range(0, len(questions), _ROWS):
        rows = slice(start, start + _ROWS)
        similarity = questions[rows] @ documents.T
        own = np.take_along_axis(similarity, wanted[rows, None], axis=1)
        found[rows] = (similarity >= own).sum(axis=1)
    return found


def score(questions: NDArray[np.float32], documents: NDArray[np.float32], answers: Sequence[int]) -> Scores:
    """Recall at 1 and 10 and mean reciprocal rank (Voorhees 1999) for vectors as in ``ranks``."""
    if len(questions) == 0:
        raise BadRequest("there are no questions to score")
    place = ranks(questions, documents, answers)
    return Scores(
        recall_at_1=float((place <= 1).mean()),
        recall_at_10=float((place <= 10).mean()),
        mrr=float((1 / place).mean()),
        questions=len(questions),
        documents=len(documents),
    )


def evaluate(
    encode: Encode,
    questions: Sequence[str],
    documents: Sequence[str],
    answers: Sequence[int],
    *,
    stored: NDArray[np.float32] | None = None,
) -> Scores:
    """Score any encode function; with ``stored`` the documents keep the vectors they were stored with.

    The latter is what a node sees right after it swapped models: new questions, old rows.
    """
    return score(encode(questions), encode(documents) if stored is None else stored, answers)
