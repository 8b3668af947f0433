"""Recall and mean reciprocal rank, against cases that can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.evolve import retrieval
from aios_node.engine.evolve.retrieval import evaluate, ranks, score


def unit(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    vectors = np.array(rows, np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


DOCUMENTS = unit([[1, 0], [0, 1], [1, 1], [-1, 0]])


def test_ranks_by_hand() -> None:
    questions = unit([[1, 0.1], [1, 0.1], [1, 0.1], [1, 0.1]])
    assert ranks(questions, DOCUMENTS, [0, 2, 1, 3]).tolist() == [1, 2, 3, 4]


def test_scores_by_hand() -> None:
    result = score(unit([[1, 0.1], [1, 0.1], [0.1, 1]]), DOCUMENTS, [0, 2, 0])
    assert result.recall_at_1 == pytest.approx(1 / 3)
    assert result.recall_at_10 == 1
    assert result.mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert result.to_json() == {**result.__dict__}
    assert (result.questions, result.documents) == (3, 4)


def test_vectors_that_are_all_alike_score_nothing() -> None:
    same = unit([[1, 1]] * 50)
    result = score(same[:5], same, range(5))
    assert (result.recall_at_1, result.recall_at_10, result.mrr) == (0, 0, pytest.approx(1 / 50))


def test_ranks_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    questions, documents = (unit(random.standard_normal((30, 8)).tolist()) for _ in range(2))
    whole = ranks(questions, documents, range(30))
    monkeypatch.setattr(retrieval, "_ROWS", 7)
    assert np.array_equal(ranks(questions, documents, range(30)), whole)


@given(seed=st.integers(0, 1000), count=st.integers(1, 20))
def test_ranks_agree_with_sorting(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    questions, documents = (unit(random.standard_normal((count, 6)).tolist()) for _ in range(2))
    answers = random.integers(0, count, count)
    order = np.argsort(-(questions @ documents.T), axis=1)
    expected = [list(row).index(answer) + 1 for row, answer in zip(order, answers, strict=True)]
    assert ranks(questions, documents, answers.tolist()).tolist() == expected


def test_any_encode_function_and_stored_vectors() -> None:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return unit([[len(text), 10] for text in texts])

    documents = ["a", "bbbbb", "c" * 30]
    fresh = evaluate(encode, ["x" * 29, "y"], documents, [2, 0])
    assert fresh.recall_at_1 == 1
    stored = evaluate(encode, ["x" * 29, "y"], documents, [2, 0], stored=encode(documents)[::-1])
    assert stored.recall_at_1 == 0


@pytest.mark.parametrize("answers", [[0], [0, 4], [0, -1]])
def test_answers_must_name_documents(answers: list[int]) -> None:
    with pytest.raises(BadRequest, match="one of 4 documents"):
        ranks(unit([[1, 0], [0, 1]]), DOCUMENTS, answers)


def test_no_questions_no_score() -> None:
    with pytest.raises(BadRequest, match="no questions"):
        score(np.empty((0, 2), np.float32), DOCUMENTS, [])
