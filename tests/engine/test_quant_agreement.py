"""Agreement of two sets of vectors: what it says is what the definitions say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.agreement import agreement, cosines, ranks, spearman

SMALL = st.integers(-5, 5).map(float)


def vectors(seed: int, count: int = 60, width: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_the_same_vectors_agree_entirely() -> None:
    found = agreement(vectors(1), vectors(1) * 3)
    assert (found.mean, found.p1, found.p5, found.least) == pytest.approx((1, 1, 1, 1))
    assert found.spearman == pytest.approx(1)
    assert found.overlap == 1


def test_unrelated_vectors_do_not_agree() -> None:
    found = agreement(vectors(1, 400), vectors(2, 400))
    assert abs(found.mean) < 0.1
    assert found.spearman is not None
    assert abs(found.spearman) < 0.05
    assert found.overlap is not None
    assert found.overlap < 0.1


def test_figures_are_what_their_definitions_say() -> None:
    before = vectors(3, 30)
    after = before + vectors(4, 30) / 4
    found = agreement(before, after)
    norm = np.linalg.norm
    expected = (before * after).sum(1) / norm(before, axis=1) / norm(after, axis=1)
    assert found.mean == pytest.approx(expected.mean())
    assert found.p1 == pytest.approx(np.percentile(expected, 1))
    assert found.p5 == pytest.approx(np.percentile(expected, 5))
    assert found.least == pytest.approx(expected.min())
    a, b = ((v @ v.T)[np.triu_indices(30, 1)] for v in (v / norm(v, axis=1, keepdims=True) for v in (before, after)))
    by_rank = np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
    assert found.spearman == pytest.approx(by_rank)


def test_neighbours_are_counted_without_the_text_itself() -> None:
    """Three texts: with itself left out, each has two neighbours, which are always the same two."""
    assert agreement(vectors(5, 3), vectors(6, 3)).overlap == 1


def test_overlap_counts_the_neighbours_that_stayed() -> None:
    before = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(0, 3, 40)])
    found = agreement(before, before[::-1])  # the mirrored curve: the same similarities, so the same neighbours
    assert found.overlap == 1
    shuffled = agreement(before, before[np.random.default_rng(0).permutation(40)])
    assert shuffled.overlap is not None
    assert 0.1 < shuffled.overlap < 0.5


@given(arrays(np.float64, st.integers(1, 20), elements=SMALL))
def test_ranks_keep_the_order_and_share_what_is_equal(values: NDArray[np.float64]) -> None:
    found = ranks(values)
    assert found.sum() == len(values) * (len(values) + 1) / 2
    for place, value in enumerate(values):
        below, equal = (values < value).sum(), (values == value).sum()
        assert found[place] == below + (equal + 1) / 2


@given(arrays(np.float64, 12, elements=SMALL), arrays(np.float64, 12, elements=SMALL))
def test_spearman_is_symmetric_bounded_and_blind_to_monotone_changes(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> None:
    found = spearman(one, other)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(spearman(other, one))
    assert found == pytest.approx(spearman(np.exp(one), other))


def test_spearman_of_constants() -> None:
    flat, rising = np.ones(4), np.arange(4.0)
    assert spearman(flat, flat) == 1
    assert spearman(flat, rising) == 0
    assert spearman(rising, -rising) == pytest.approx(-1)


@settings(max_examples=25)
@given(st.integers(3, 40), st.integers(1, 12), st.floats(1e-30, 1e30))
def test_scale_does_not_matter(count: int, width: int, scale: float) -> None:
    before, after = vectors(7, count, width).astype(np.float64), vectors(8, count, width)
    plain, scaled = agreement(before, after), agreement(before * scale, after)
    assert plain.mean == pytest.approx(scaled.mean, abs=1e-9)
    assert plain.spearman == pytest.approx(scaled.spearman, abs=1e-2)


def test_zero_rows_and_few_texts() -> None:
    before = np.array([[0.0, 0.0], [0.0, 0.0]])
    after = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert cosines(before, after).tolist() == [1, 0]
    found = agreement(before, after)
    assert (found.spearman, found.overlap) == (None, None)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["min"] == 0


@pytest.mark.parametrize("other", [np.ones((2, 3)), np.ones((3, 2)), np.ones(6)])
def test_shapes_must_match(other: NDArray[np.float64]) -> None:
    with pytest.raises(BadRequest, match="cannot be compared"):
        agreement(np.ones((2, 2)), other)


def test_nothing_and_what_is_not_finite_cannot_be_compared() -> None:
    with pytest.raises(BadRequest, match="at least one text"):
        agreement(np.ones((0, 2)), np.ones((0, 2)))
    with pytest.raises(BadWeights, match="candidate computes"):
        agreement(np.ones((1, 2)), np.array([[1, np.nan]]))
