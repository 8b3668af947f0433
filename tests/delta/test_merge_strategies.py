"""Every strategy against its formula, written down a second time in plain float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import group, merged, one, version

from aios_node.delta.merge.registry import STRATEGIES, make_strategy, options_of
from aios_node.engine.errors import BadConfig, BadRequest

Array = np.ndarray[Any, Any]
FAULTLESS = {"krum": {"faulty": 1}, "multi_krum": {"faulty": 1}, "trimmed_mean": {"faulty": 1}}
AVERAGING = ("fedavg", "median", "trimmed_mean", "krum", "multi_krum")


def reference(name: str, base: Array, heads: list[Array], samples: list[int], steps: dict[str, Array]) -> Array:
    """What a strategy gives with its defaults, float64; ``steps`` holds optimiser state between calls."""
    x, n = base.astype(np.float64), len(heads)
    h = np.array([head.astype(np.float64) for head in heads])
    mean = (h * np.array(samples)[:, None]).sum(axis=0) / sum(samples)
    if name == "fedavg":
        return mean
    if name == "median":
        return np.median(h, axis=0)
    if name == "trimmed_mean":
        return np.sort(h, axis=0)[1:-1].mean(axis=0)
    if name in {"krum", "multi_krum"}:
        distances = ((h[:, None] - h[None]) ** 2).sum(axis=-1)
        scores = np.sort(distances, axis=1)[:, 1 : n - 2].sum(axis=1)  # the first is the head itself; f is 1
        best = np.argsort(scores)
        return h[best[0]] if name == "krum" else h[best[: n - 1]].mean(axis=0)
    if name == "diloco":
        gradient = x - h.mean(axis=0)
        steps["b"] = 0.9 * steps.get("b", 0.0) + gradient
        return x - 0.7 * (gradient + 0.9 * steps["b"])
    if name == "ties":
        return x + ties(h - x, 0.2)
    change = mean - x
    steps["m"] = 0.9 * steps.get("m", 0.0) + 0.1 * change
    v = steps.get("v", np.full_like(x, 1e-6))
    grown = 0.99 * v + 0.01 * change**2
    steps["v"] = grown if name == "fedadam" else v - 0.01 * change**2 * np.sign(v - change**2)
    return x + 0.01 * steps["m"] / (np.sqrt(steps["v"]) + 1e-3)


def ties(changes: Array, density: float) -> Array:
    """Trim, elect, merge, one number at a time."""
    kept = np.zeros_like(changes)
    for row, change in zip(kept, changes, strict=True):
        moved = np.flatnonzero(change)
        count = int(np.ceil(density * len(moved)))
        largest = moved[np.argsort(-np.abs(change[moved]), kind="stable")][:count]
        row[largest] = change[largest]
    result = np.zeros(changes.shape[1])
    for place, column in enumerate(kept.T):
        agreeing = [value for value in column if value * column.sum() > 0]
        result[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return result


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("count", [5, 8])
def test_against_the_formula_over_three_rounds(name: str, count: int) -> None:
    steps: dict[str, Array] = {}
    samples = list(range(10, 10 + count))
    base, _ = group(0, 0)
    weights: dict[str, Any] = {"w": base}
    expected = base
    for round_number in range(3):
        _, heads = group(round_number + 1, count, spread=0.05)
        expected = reference(name, weights["w"], heads, samples, steps)
        weights = merged(weights, [{"w": head} for head in heads], name, samples).weights
        np.testing.assert_allclose(weights["w"], expected, rtol=2e-6, atol=2e-7)
        assert weights["w"].dtype == np.float32


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=15)
@given(data=st.data())
def test_the_order_of_heads_does_not_matter(name: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(5, 7))
    base, heads = group(data.draw(st.integers(0, 99)), count, spread=data.draw(st.sampled_from([1e-3, 1.0, 1e3])))
    samples = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    arrays = [{"w": head} for head in heads]
    order = data.draw(st.permutations(range(count)))
    first = merged({"w": base}, arrays, name, samples).weights
    second = merged({"w": base}, arrays, name, samples, order).weights
    assert {key: value.tobytes() for key, value in first.items()} == {
        key: value.tobytes() for key, value in second.items()
    }


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_what_all_agree_on_is_the_result(name: str, dtype: str) -> None:
    from aios_node.engine.quant.dtypes import dtype_of

    base, heads = group(3, 1, spread=1.0)
    head = heads[0].astype(dtype_of(dtype))
    spoiled = head.copy()
    spoiled[0] += 1  # the tensors differ, the other places agree
    result = one(base.astype(head.dtype), [head] * 4 + [spoiled], name)
    assert result[1:].tobytes() == head[1:].tobytes()
    assert one(base.astype(head.dtype), [head] * 5, name).tobytes() == head.tobytes()


@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=6),
    scale=st.integers(1, 1000),
)
def test_only_the_proportions_of_samples_matter(seed: int, counts: list[int], scale: int) -> None:
    base, heads = group(seed, len(counts))
    first = one(base, heads, "fedavg", samples=counts)
    second = one(base, heads, "fedavg", samples=[scale * count for count in counts])
    assert first.tobytes() == second.tobytes()


def test_a_head_with_twice_the_samples_pulls_twice_as_much() -> None:
    zero, one_head = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert one(zero, [one_head, -2 * one_head], "fedavg", samples=[2, 1]).tolist() == [0, 0, 0]
    assert one(zero, [one_head, zero], "fedavg", samples=[1, 3], weighting="equal").tolist() == [0.5] * 3
    unknown = one(zero, [one_head, zero], "fedavg", samples=[7, 0])
    assert unknown.tolist() == [0.5] * 3, "one unknown count makes all heads count the same"


@given(seed=st.integers(0, 999), count=st.integers(3, 9), name=st.sampled_from(["median", "trimmed_mean"]))
def test_median_and_trimmed_mean_stay_between_the_heads(seed: int, count: int, name: str) -> None:
    base, heads = group(seed, count, spread=10.0)
    result = one(base, heads, name)
    assert (np.min(heads, axis=0) <= result).all()
    assert (result <= np.max(heads, axis=0)).all()


def test_a_median_of_two_is_their_middle_even_where_their_sum_is_too_large() -> None:
    large = np.array([3e38, -3e38], np.float32)
    assert one(large, [large, large / 3], "median").tolist() == np.float32([2e38, -2e38]).tolist()


def test_krum_gives_one_head_as_it_is_and_ties_go_to_the_smaller_id() -> None:
    base = np.zeros(2, np.float32)
    ring = [np.array(place, np.float32) for place in ([1, 0], [0, 1], [-1, 0], [0, -1], [-0.0, 0])]
    assert one(base, ring, "krum").tobytes() == ring[4].tobytes()
    pair = [base, base, base + 5, base + 5, base + 100]
    assert one(base, pair, "krum").tolist() == [0, 0]


def test_multi_krum_keeps_as_many_as_it_is_told() -> None:
    base, heads = group(1, 7)
    everything = one(base, heads, "multi_krum", faulty=2, keep=5)
    assert everything.tobytes() == one(base, heads, "multi_krum", faulty=2).tobytes()
    assert one(base, heads, "multi_krum", faulty=2, keep=1).tobytes() == one(base, heads, "krum", faulty=2).tobytes()


def test_ties_trims_each_head_over_the_whole_model() -> None:
    base = {"large": np.zeros(4, np.float32), "small": np.zeros(4, np.float32)}
    heads = [
        {"large": np.float32([4, 3, 2, 1]), "small": np.float32([0.1, 0.1, 0.1, 0.1])},
        {"large": np.float32([-1, 3, 0, 0]), "small": np.float32([0.2, 0, 0, 0])},
    ]
    found = merged(base, heads, "ties", density=0.5).weights
    assert found["large"].tolist() == [4, 3, 2, 1]
    assert found["small"].tolist() == [0, 0, 0, 0]
    whole = merged(base, heads, "ties", density=1.0, scale=2.0).weights
    assert whole["large"].tolist() == [8, 6, 4, 2]
    np.testing.assert_allclose(whole["small"], [0.3, 0.2, 0.2, 0.2], rtol=1e-6)


def test_ties_where_changes_cancel_keeps_the_base() -> None:
    base = np.float32([1, 1])
    assert one(base, [base + 1, base - 1], "ties", density=1.0).tolist() == [1, 1]


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(0, 1e300, allow_subnormal=True), min_size=1, max_size=60),
    density=st.floats(0.01, 1.0),
    cut=st.integers(1, 7),
)
def test_the_trimming_threshold_is_the_exact_order_statistic(values: list[float], density: float, cut: int) -> None:
    from aios_node.delta.merge.ranks import least_kept

    array = np.array(values)
    blocks = [[array[start : start + cut]] for start in range(0, len(array), cut)]
    moved = sorted((value for value in values if value > 0), reverse=True)
    expected = moved[int(np.ceil(density * len(moved))) - 1] if moved else np.inf
    assert least_kept(lambda: iter(blocks), 1, density) == [expected]


def test_an_optimiser_goes_on_where_the_last_merge_left_it() -> None:
    base, heads = group(5, 2)
    first = merged({"w": base}, [{"w": head} for head in heads], "diloco").weights
    assert sorted(first) == ["aios.optimizer/momentum/w", "w"]
    trained = [{**first, "w": first["w"] + np.float32(0.01)}, {**first, "w": first["w"] - np.float32(0.02)}]
    second = merged(first, trained, "diloco").weights
    fresh = merged({"w": first["w"]}, [{"w": head["w"]} for head in trained], "diloco").weights
    assert np.abs(second["w"] - fresh["w"]).max() > 1e-4
    still = merged(second, [second, second], "diloco").weights
    assert np.abs(still["w"] - second["w"]).max() > 1e-4, "momentum carries a tensor on that nobody changed"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("fedsgd", {}, "no merging strategy 'fedsgd'"),
        ("fedavg", {"weigthing": "equal"}, "did you mean 'weighting'"),
        ("fedavg", {"weighting": "size"}, "samples or equal"),
        ("fedavg", {"weighting": 1}, "a word is needed"),
        ("fedadam", {"beta1": 1.0}, "beta1 is 1"),
        ("fedadam", {"tau": 0}, "tau is 0"),
        ("fedyogi", {"learning_rate": float("nan")}, "learning_rate is nan"),
        ("diloco", {"momentum": -0.1}, "momentum is -0.1"),
        ("krum", {"faulty": 1.5}, "a whole number is needed"),
        ("krum", {"faulty": True}, "a whole number is needed"),
        ("trimmed_mean", {"faulty": -1}, "faulty is -1"),
        ("ties", {"density": 0.0}, "density is 0"),
        ("median", {"faulty": 1}, "it has: none"),
    ],
)
def test_wrong_options_are_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        make_strategy(name, options)


def test_whole_numbers_and_floats_make_the_same_options() -> None:
    assert options_of(make_strategy("ties", {"scale": 1})) == options_of(make_strategy("ties", {"scale": 1.0}))
    assert type(options_of(make_strategy("ties", {"scale": 1}))["scale"]) is float


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [("fedavg", {}, 2), ("median", {}, 2), ("trimmed_mean", {"faulty": 2}, 5), ("krum", {"faulty": 2}, 7)],
)
def test_too_few_heads_are_refused(name: str, options: dict[str, Any], least: int) -> None:
    base, heads = group(0, least)
    one(base, heads, name, **options)
    with pytest.raises(BadRequest, match=f"at least {least} heads"):
        one(base, heads[:-1], name, **options)


def test_ids_of_the_tests_are_sorted_as_numbers() -> None:
    assert sorted(version(number) for number in (12, 3, 255)) == [version(3), version(12), version(255)]
