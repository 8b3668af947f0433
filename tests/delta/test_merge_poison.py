"""Poisoned heads: how far they move a robust merge, against the bound that docs/merging.md states and proves.

Of n heads, f are faulty: sign-flipped, a hundred times as large, NaN, Inf, or chosen to do harm.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import group, merged, one, version

from aios_node.engine.errors import BadRequest, BadWeights

Array = np.ndarray[Any, Any]


class Poison(Enum):
    """What a faulty head sends instead of its work."""

    SIGN_FLIPPED = "sign flipped"
    HUNDREDFOLD = "a hundred times"
    OPPOSITE_HUNDREDFOLD = "minus a hundred times"
    NAN = "NaN"
    INF = "Inf"
    HUGE = "as large as can be"
    SHIFTED = "a little beside the others, all faulty ones in the same way"
    FORGED = "whatever the test draws"


def poisoned(kind: Poison, base: Array, head: Array, drawn: int) -> Array:
    """A faulty head. Where NaN stands, one number is enough."""
    change = head - base
    random = np.random.default_rng(drawn)
    if kind is Poison.SIGN_FLIPPED:
        return base - change
    if kind is Poison.HUNDREDFOLD:
        return base + 100 * change
    if kind is Poison.OPPOSITE_HUNDREDFOLD:
        return base - 100 * change
    if kind is Poison.SHIFTED:
        return base + np.float32(0.05)
    if kind is Poison.FORGED:
        return base + random.normal(0, 10.0 ** random.integers(-4, 6), base.shape).astype(np.float32)
    bad = {Poison.NAN: np.nan, Poison.INF: np.inf, Poison.HUGE: np.finfo(np.float32).max}[kind]
    spoiled = head.copy()
    spoiled[drawn % len(head) :: 7] = bad
    return spoiled


@st.composite
def crowds(draw: st.DrawFn, spare: int) -> tuple[Array, list[Array], list[Array], int, list[int]]:
    """Base, faultless heads, faulty heads, f, and the order in which their ids put them: n >= 2f + spare."""
    faulty = draw(st.integers(1, 3))
    count = 2 * faulty + spare + draw(st.integers(0, 2))
    base, heads = group(draw(st.integers(0, 999)), count, size=30)
    kinds = draw(st.lists(st.sampled_from(Poison), min_size=faulty, max_size=faulty))
    bad = [poisoned(kind, base, heads[n], draw(st.integers(0, 99))) for n, kind in enumerate(kinds)]
    return base, heads[faulty:], bad, faulty, draw(st.permutations(range(count)))


def mix(good: list[Array], bad: list[Array], order: list[int]) -> list[Array]:
    """All heads; ids follow the order, so that faulty ones may come anywhere."""
    everyone = [*good, *bad]
    return [everyone[place] for place in order]


def rounding(values: Array) -> float:
    """What one rounding to float32 may add to a distance."""
    return float(np.spacing(np.abs(values).max()) * math.sqrt(values.size))


@pytest.mark.parametrize("name", ["trimmed_mean", "median"])
@settings(max_examples=60)
@given(crowd=crowds(1))
def test_every_number_stays_within_the_faultless_heads(name: str, crowd: Any) -> None:
    base, good, bad, faulty, order = crowd
    options = {"faulty": faulty} if name == "trimmed_mean" else {}
    result = one(base, mix(good, bad, order), name, **options)
    assert (np.min(good, axis=0) <= result).all()
    assert (result <= np.max(good, axis=0)).all()


def spread(good: list[Array]) -> float:
    """D: the largest distance between two faultless heads."""
    return max(float(np.linalg.norm(a.astype(np.float64) - b)) for a in good for b in good)


def constant(count: int, faulty: int) -> float:
    """c of the bound."""
    return math.sqrt((count - faulty - 2) / (count - 2 * faulty - 1))


@settings(max_examples=60)
@given(crowd=crowds(3))
def test_krum_stays_near_a_faultless_head(crowd: Any) -> None:
    base, good, bad, faulty, order = crowd
    result = one(base, mix(good, bad, order), "krum", faulty=faulty)
    nearest = min(float(np.linalg.norm(result.astype(np.float64) - head)) for head in good)
    assert nearest <= constant(len(good) + len(bad), faulty) * spread(good) + rounding(base)


@settings(max_examples=60)
@given(crowd=crowds(3))
def test_multi_krum_stays_near_all_faultless_heads(crowd: Any) -> None:
    base, good, bad, faulty, order = crowd
    result = one(base, mix(good, bad, order), "multi_krum", faulty=faulty)
    farthest = max(float(np.linalg.norm(result.astype(np.float64) - head)) for head in good)
    limit = (1 + constant(len(good) + len(bad), faulty)) * spread(good)
    assert farthest <= limit + rounding(base)


def test_the_bound_is_not_for_nothing_a_mean_is_carried_away() -> None:
    base, heads = group(2, 5)
    attack = [*heads[:4], poisoned(Poison.HUNDREDFOLD, base, heads[4], 0)]
    moved = np.linalg.norm(one(base, attack, "fedavg").astype(np.float64) - np.mean(heads[:4], axis=0))
    assert moved > 5 * spread(heads[:4])


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "diloco", "ties"])
@pytest.mark.parametrize("kind", [Poison.NAN, Poison.INF])
def test_means_refuse_nan_and_name_head_and_tensor(name: str, kind: Poison) -> None:
    base, heads = group(4, 3)
    heads[1] = poisoned(kind, base, heads[1], 3)
    with pytest.raises(BadWeights, match=rf"{version(1)[:12]} in tensor 'w'.*{name} has no defence"):
        one(base, heads, name)


@pytest.mark.parametrize("name", ["trimmed_mean", "krum", "multi_krum", "median"])
def test_robust_strategies_leave_heads_with_nan_out_and_say_which(name: str) -> None:
    base, heads = group(4, 7)
    options = {} if name == "median" else {"faulty": 2}
    arrays = [{"w": head, "other": base} for head in heads]
    arrays[5] = {"w": heads[5], "other": poisoned(Poison.NAN, base, base, 1)}
    found = merged({"w": base, "other": base}, arrays, name, **options)
    assert found.left_out == (version(5),)
    assert all(np.isfinite(tensor).all() for tensor in found.weights.values())
    expected = merged(
        {"w": base, "other": base}, [*arrays[:5], arrays[6]], name, **({} if name == "median" else {"faulty": 1})
    )
    assert found.weights["w"].tobytes() == expected.weights["w"].tobytes()


class Misfit(Enum):
    """What keeps a head from being merged at all."""

    SHAPE = "another shape"
    DTYPE = "another dtype"
    MISSING = "a tensor is missing"
    MORE = "a tensor too many"
    INTEGERS = "other integers"


def misfitting(kind: Misfit, weights: dict[str, Any]) -> dict[str, Any]:
    if kind is Misfit.SHAPE:
        return {**weights, "w": weights["w"].reshape(2, -1)}
    if kind is Misfit.DTYPE:
        return {**weights, "w": weights["w"].astype(np.float64)}
    if kind is Misfit.MISSING:
        return {"w": weights["w"]}
    if kind is Misfit.MORE:
        return {**weights, "extra": weights["w"]}
    return {**weights, "ids": weights["ids"] + 1}


@pytest.mark.parametrize("name", ["trimmed_mean", "krum", "multi_krum", "median"])
@pytest.mark.parametrize("kind", list(Misfit))
def test_a_head_that_does_not_fit_cannot_stop_a_robust_merge(name: str, kind: Misfit) -> None:
    values, heads = group(6, 5)
    base = {"w": values, "ids": np.arange(3)}
    arrays: list[dict[str, Any]] = [{**base, "w": head} for head in heads]
    arrays[2] = misfitting(kind, arrays[2])
    found = merged(base, arrays, name)
    assert found.left_out == (() if kind is Misfit.INTEGERS else (version(2),))
    assert found.weights["ids"].tolist() == [0, 1, 2]
    assert sorted(found.weights) == ["ids", "w"]
    with pytest.raises(BadRequest):
        merged(base, arrays, "fedavg")
    for place in (0, 1, 3):
        arrays[place] = misfitting(Misfit.SHAPE, {**base, "w": heads[place]})
    with pytest.raises(BadRequest, match="another shape"):
        merged(base, arrays, name)


@pytest.mark.parametrize("name", ["trimmed_mean", "median"])
def test_heads_that_do_not_fit_and_heads_with_nan_count_together(name: str) -> None:
    base, heads = group(6, 5)
    arrays: list[dict[str, Any]] = [{"w": head} for head in heads]
    arrays[0] = {"w": heads[0].reshape(2, -1)}
    arrays[1] = {"w": poisoned(Poison.NAN, base, heads[1], 0)}
    if name == "median":
        assert merged({"w": base}, arrays, name).left_out == (version(0), version(1))
    else:
        with pytest.raises(BadWeights, match="can do without 1"):
            merged({"w": base}, arrays, name)


@pytest.mark.parametrize("name", ["trimmed_mean", "krum", "multi_krum", "median"])
def test_more_poison_than_the_bound_speaks_of_is_refused(name: str) -> None:
    base, heads = group(4, 5)
    bad = [poisoned(Poison.NAN, base, head, n) for n, head in enumerate(heads)]
    count = 3 if name == "median" else 2
    with pytest.raises(BadWeights, match=f"{count} of 5 heads hold NaN"):
        one(base, bad[:count] + heads[count:], name)


def test_a_poisoned_ancestor_is_told() -> None:
    base, heads = group(4, 3)
    with pytest.raises(BadWeights, match=r"the common ancestor f+ holds NaN or Inf in tensor 'w'"):
        one(poisoned(Poison.NAN, base, base, 0), heads, "median")
