"""Noise and clipping: the distribution that was promised, the bound that was promised, and what an attacker gains."""

from __future__ import annotations

import hashlib
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from aios_node.delta.privacy.contribution import NoisySum
from aios_node.delta.privacy.differential.accountant import Neighbours, Release, spent
from aios_node.delta.privacy.differential.grid import Grid, clip
from aios_node.delta.privacy.differential.mechanism import make_private, private_sum
from aios_node.delta.privacy.differential.noise import discrete_gaussian
from aios_node.delta.privacy.layout import Layout
from aios_node.delta.privacy.random import Random
from aios_node.engine.errors import BadConfig, BadRequest, BadWeights


def repeatable(seed: int) -> Random:
    """Bytes that a test can have again; hashing keeps them as good as random."""
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}:{count}".encode()).digest(size)

    return random


def probabilities(bits: int, most: int) -> NDArray[np.float64]:
    """The discrete Gaussian on -most..most by its definition."""
    weights = np.exp(-(np.arange(-most, most + 1, dtype=np.float64) ** 2) / 2 ** (2 * bits + 1))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_noise_has_the_distribution_that_its_name_says(bits: int) -> None:
    """Chi-squared over all values within four deviations; 5 standard deviations of the statistic are allowed."""
    count, most = 400_000, 4 * 2**bits
    values = discrete_gaussian(count, bits, repeatable(bits))
    seen = np.bincount(np.clip(values, -most, most) + most, minlength=2 * most + 1)
    expected = probabilities(bits, 10 * most)
    middle = len(expected) // 2
    folded = expected[middle - most : middle + most + 1].copy()
    folded[[0, -1]] = expected[: middle - most + 1].sum()
    chi = float(((seen - count * folded) ** 2 / (count * folded)).sum())
    freedom = 2 * most
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("bits", [10, 24])
def test_fine_noise_is_gaussian_to_the_fourth_moment_and_independent(bits: int) -> None:
    count = 300_000
    values = discrete_gaussian(count, bits, repeatable(bits)) / 2**bits
    error = 5 / math.sqrt(count)
    assert abs(values.mean()) < error
    assert abs((values**2).mean() - 1) < math.sqrt(2) * error
    assert abs((values**3).mean()) < math.sqrt(15) * error
    assert abs((values**4).mean() - 3) < math.sqrt(96) * error
    assert abs((values[1:] * values[:-1]).mean()) < error
    assert np.unique(values).size > count * 0.9 or bits == 10


def test_noise_is_never_the_same_twice_and_a_seed_decides_it() -> None:
    assert (discrete_gaussian(64, 20) != discrete_gaussian(64, 20)).any()
    long, short = discrete_gaussian(100_000, 20, repeatable(1)), discrete_gaussian(1000, 20, repeatable(1))
    np.testing.assert_array_equal(long[:1000], short)


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(
    update=npst.arrays(np.float64, st.integers(0, 40), elements=FLOATS),
    clip_norm=st.floats(1e-6, 1e6),
    noise=st.one_of(st.just(0.0), st.floats(1e-6, 1e4)),
)
@settings(deadline=None, max_examples=200)
def test_no_update_leaves_longer_than_the_clip_norm(
    update: NDArray[np.float64], clip_norm: float, noise: float
) -> None:
    """In whole numbers, so exactly; and what is shorter keeps its direction to within a step per number."""
    grid = Grid.of(clip_norm, noise)
    steps = clip(update, grid)
    assert sum(int(step) ** 2 for step in steps) <= grid.norm**2
    assert grid.noise_multiplier >= noise
    length = math.hypot(*update)
    if length <= clip_norm * 0.999:
        assert np.abs(steps * grid.step - update).max(initial=0) <= grid.step * (1 + 1e-9)
    elif math.isfinite(length):
        expected = update / length * clip_norm
        assert np.abs(steps * grid.step - expected).max() <= grid.step * (1 + 1e-9) + clip_norm * 1e-3


@given(clip_norm=st.floats(1e-6, 1e6), noise=st.floats(1e-6, 1e4))
@settings(deadline=None)
def test_a_grid_has_the_noise_that_was_asked_for(clip_norm: float, noise: float) -> None:
    grid = Grid.of(clip_norm, noise)
    assert grid.norm * grid.step == pytest.approx(clip_norm)
    assert noise <= grid.noise_multiplier <= noise * 1.001
    assert 2**grid.bits * grid.step == pytest.approx(noise * clip_norm, rel=1e-3)


def advantage(noise: float, epsilon: float, delta: float) -> float:
    """The most by which an attacker beats (epsilon, delta) on neighbours, in standard errors of the counting.

    The neighbours are a clipped update, and none. The best attacker says "there" above a threshold.
    """
    grid, count = Grid.of(1.0, noise), 200_000
    there, absent = (
        discrete_gaussian(count, grid.bits, repeatable(seed)) + clip(np.array([value]), grid)[0]
        for seed, value in ((1, 7.0), (2, 0.0))
    )
    best = -math.inf
    for threshold in np.quantile(there, np.linspace(0.01, 0.99, 50)):
        hit, false = float((there > threshold).mean()), float((absent > threshold).mean())
        error = math.sqrt((hit * (1 - hit) + math.exp(2 * epsilon) * (false * (1 - false) + 1 / count)) / count)
        best = max(best, (hit - math.exp(epsilon) * false - delta) / error)
    return best


@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0])
def test_an_attacker_gains_no_more_than_was_claimed(noise: float) -> None:
    """hit <= e**epsilon * false + delta at every threshold; with half the noise the same claim would be broken."""
    delta = 1e-2
    epsilon = spent([Release(noise)], delta)
    assert advantage(noise, epsilon, delta) < 5
    assert advantage(noise / 2, epsilon, delta) > 5


RNG = np.random.default_rng(5)
BASE = {
    "a": RNG.normal(size=(30, 20)).astype(np.float32),
    "b": RNG.normal(size=50).astype(ml_dtypes.bfloat16),
    "fixed": np.arange(6),
}
TARGET = {**BASE, "a": BASE["a"] + np.float32(0.5), "b": (BASE["b"].astype(np.float32) * 1.25).astype(BASE["b"].dtype)}


def update_of(private: dict[str, object]) -> NDArray[np.float64]:
    parts = [np.asarray(private[name]).astype(np.float64) - BASE[name].astype(np.float64) for name in ("a", "b")]
    return np.concatenate([part.reshape(-1) for part in parts])


def test_a_private_version_is_near_the_clipped_one_with_noise_of_the_stated_size() -> None:
    clipped = make_private(BASE, TARGET, ["a", "b"], Grid.of(2.0, 0.0))
    assert clipped.clipped
    assert clipped.length == pytest.approx(12.4, abs=0.5)
    assert np.linalg.norm(update_of(clipped.weights)) == pytest.approx(2.0, abs=0.05)
    noised = make_private(BASE, TARGET, ["a", "b"], Grid.of(2.0, 1.5), repeatable(3))
    noise = update_of(noised.weights) - update_of(clipped.weights)
    assert noise.std() == pytest.approx(3.0, rel=0.15)
    assert {name: part.dtype for name, part in noised.weights.items()} == {n: p.dtype for n, p in BASE.items()}
    assert noised.weights["fixed"] is BASE["fixed"]
    again = make_private(BASE, TARGET, ["a", "b"], Grid.of(2.0, 1.5), repeatable(3))
    assert all((again.weights[name] == noised.weights[name]).all() for name in BASE)


def test_tensors_that_did_not_change_get_noise_too() -> None:
    """Otherwise their rest would tell that the data did not touch them."""
    private = make_private(BASE, {**BASE}, ["a", "b"], Grid.of(1.0, 1.0))
    assert (private.weights["a"] != BASE["a"]).mean() > 0.99


def test_what_would_pass_by_the_noise_is_refused() -> None:
    grid = Grid.of(1.0, 1.0)
    with pytest.raises(BadRequest, match="'b' changed"):
        make_private(BASE, TARGET, ["a"], grid)
    with pytest.raises(BadRequest, match="before quantising"):
        make_private(BASE, {**TARGET, "fixed": BASE["fixed"] + 1}, ["a", "b", "fixed"], grid)
    with pytest.raises(BadRequest, match="shape"):
        make_private(BASE, {**TARGET, "a": np.zeros(600, np.float32)}, ["a", "b"], grid)
    with pytest.raises(BadRequest, match="different tensors"):
        make_private(BASE, TARGET, ["a", "b", "c"], grid)
    half = {"h": np.zeros(4, np.float16)}
    with pytest.raises(BadWeights, match="too large"):
        make_private(half, half, ["h"], Grid.of(1e6, 10.0))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_numbers_without_a_length_are_refused(poison: float) -> None:
    with pytest.raises(BadWeights, match="NaN or infinity"):
        clip(np.array([1.0, poison]), Grid.of(1.0, 1.0))
    with pytest.raises(BadWeights, match="NaN or infinity"):
        make_private(BASE, {**TARGET, "a": TARGET["a"] * np.float32(poison)}, ["a", "b"], Grid.of(1.0, 1.0))


@pytest.mark.parametrize(
    ("clip_norm", "noise"), [(0.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, -1.0), (1.0, 1e9)]
)
def test_grids_that_cannot_be_are_refused(clip_norm: float, noise: float) -> None:
    with pytest.raises(BadConfig, match="must be"):
        Grid.of(clip_norm, noise)


@pytest.mark.parametrize("bits", [1, 25])
def test_noise_out_of_range_is_refused(bits: int) -> None:
    with pytest.raises(BadRequest, match="grid steps"):
        discrete_gaussian(1, bits)


def test_a_single_nodes_update_costs_as_neighbours_that_replace_each_other() -> None:
    """Two updates of clip norm C lie up to 2 C apart: the same noise is worth half as much."""
    noise = Grid.of(1.0, 2.0).noise_multiplier
    local, central = (spent([Release(noise, kind)], 1e-5) for kind in (Neighbours.REPLACE, Neighbours.ADD_REMOVE))
    assert local == pytest.approx(spent([Release(noise / 2)], 1e-5))
    assert local > central


# --- many nodes -------------------------------------------------------------------------------------------------------


def test_an_aggregator_that_sees_all_adds_noise_once() -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(size=(40, 50))} for _ in range(6)]
    layout, grid = Layout.of(updates[0]), Grid.of(1.0, 0.01)
    total = private_sum(updates, layout, grid, repeatable(0))["w"]
    clipped = sum(update["w"] / np.linalg.norm(update["w"]) for update in updates)
    assert (total - clipped).std() == pytest.approx(0.01, rel=0.1)
    assert np.linalg.norm(private_sum(updates[:1], layout, Grid.of(1.0, 0.0))["w"]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("bits", [32, 64])
def test_parts_of_noise_add_up_to_what_the_sum_claims(bits: int) -> None:
    """All participants there: more than the claim; only the honest ones: the claim."""
    noisy = NoisySum(clip_norm=2.0, noise_multiplier=1.5, participants=9, honest=4, bits=bits)
    zeros = np.zeros(20_000)
    parts = [noisy.contribution(zeros, repeatable(seed)) for seed in range(9)]
    for count in (4, 9):
        noise = noisy.decode(sum(parts[1:count], start=parts[0]))
        assert noise.std() == pytest.approx(2.0 * 1.5 * math.sqrt(count / 4), rel=0.03)
    assert noisy.release.noise_multiplier >= 1.5
    assert noisy.release.noise_multiplier == pytest.approx(1.5, rel=1e-3)
    assert spent([noisy.release], 1e-5) <= spent([Release(1.5)], 1e-5)


def test_a_noisy_sum_is_the_sum_of_clipped_updates() -> None:
    noisy = NoisySum(clip_norm=1.0, noise_multiplier=1e-3, participants=3, honest=2)
    updates = [np.full(100, value) for value in (0.01, -0.02, 5.0)]
    total = noisy.decode(sum((noisy.contribution(update) for update in updates), start=np.zeros(100, "<u4")))
    assert total == pytest.approx(np.full(100, 0.01 - 0.02 + 0.1), abs=0.01)


@pytest.mark.parametrize(
    ("honest", "noise", "message"), [(0, 1.0, "noise of 0"), (4, 1.0, "noise of 4"), (3, 1e-6, "must be")]
)
def test_noisy_sums_that_cannot_be_are_refused(honest: int, noise: float, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        NoisySum(1.0, noise, 3, honest).contribution(np.zeros(1))


def test_a_ring_too_small_for_the_noise_is_refused() -> None:
    with pytest.raises(BadConfig, match="larger for numbers up to 2047"):
        NoisySum(1.0, 1e-5, 1 << 20, 1).contribution(np.zeros(1))
