"""The price of noise: against closed forms, published figures, another library and numerical integration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.delta.privacy.differential.accountant import Neighbours, Release, noise_for, spent
from aios_node.delta.privacy.differential.rdp import delta_of, epsilon_of, gaussian, sampled_gaussian
from aios_node.engine.errors import BadConfig

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "privacy" / "accountant.json").read_text())
DELTA = 1e-5


def exact_delta(noise: float, epsilon: float) -> float:
    """What a Gaussian mechanism really costs (Balle and Wang 2018, theorem 8)."""

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return normal(1 / (2 * noise) - epsilon * noise) - math.exp(epsilon) * normal(-1 / (2 * noise) - epsilon * noise)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['noise_multiplier']}-{c['rate']}-{c['steps']}")
def test_whole_orders_and_epsilons_are_those_of_another_library(case: dict[str, object]) -> None:
    release = Release(case["noise_multiplier"], rate=case["rate"], steps=case["steps"])  # type: ignore[arg-type]
    curve = {order: release.divergence(order) for order in GOLDEN["orders"]}
    assert [curve[order] for order in GOLDEN["shown"]] == pytest.approx(case["divergences"], rel=1e-7)
    ours = [epsilon_of(curve, delta) for delta in GOLDEN["deltas"]]
    assert ours == pytest.approx(case["epsilons"], rel=1e-7)
    more_orders = [spent([release], delta) for delta in GOLDEN["deltas"]]
    assert all(more <= one * (1 + 1e-9) for more, one in zip(more_orders, ours, strict=True))


def test_orders_between_are_the_integral_of_their_definition() -> None:
    for order, noise, rate, divergence in GOLDEN["integrals"]:
        value = sampled_gaussian(order, noise, rate)
        assert value >= divergence * (1 - 1e-6) - 1e-12, (order, noise, rate)
        if rate < 0.1 or order > 2:  # elsewhere the series ends too late, and a bound stands in for it
            assert value == pytest.approx(divergence, rel=1e-6, abs=1e-12), (order, noise, rate)


def test_ten_thousand_steps_cost_what_was_published() -> None:
    """Abadi et al., "Deep Learning with Differential Privacy" (2016), section 3.2: (1.26, 1e-5), now a bit less."""
    assert 1.0 < spent([Release(4.0, rate=0.01, steps=10_000)], DELTA) < 1.26


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 8.0])
def test_the_bound_is_above_the_truth_and_near_it(noise: float) -> None:
    epsilon = spent([Release(noise)], DELTA)
    assert exact_delta(noise, epsilon) <= DELTA
    assert exact_delta(noise, epsilon * 0.88) > DELTA


def test_uses_of_one_mechanism_add_up_like_less_noise() -> None:
    assert spent([Release(4.0, steps=16)], DELTA) == pytest.approx(spent([Release(1.0)], DELTA))
    assert spent([Release(4.0)] * 16, DELTA) == pytest.approx(spent([Release(1.0)], DELTA))
    assert spent([Release(2.0, Neighbours.REPLACE)], DELTA) == pytest.approx(spent([Release(1.0)], DELTA))


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert spent([], DELTA) == 0
    assert spent([Release(0.0)], DELTA) == math.inf
    assert sampled_gaussian(2.0, 1.0, 0.0) == 0
    assert gaussian(3.0, 0.0) == math.inf


@given(
    noise=st.floats(0.2, 50),
    rate=st.floats(1e-5, 0.9),
    order=st.floats(1.01, 60),
)
@settings(deadline=None, max_examples=60)
def test_sampling_never_costs_more_and_orders_never_less(noise: float, rate: float, order: float) -> None:
    """Divergence grows with the order; taking part at random only hides more."""
    value = sampled_gaussian(order, noise, rate)
    assert 0 <= value <= gaussian(order, noise) * (1 + 1e-9)
    assert value <= sampled_gaussian(order + 0.5, noise, rate) * (1 + 1e-6) + 1e-12


@given(epsilon=st.floats(0.05, 20), steps=st.integers(1, 1000), kind=st.sampled_from(Neighbours))
@settings(deadline=None, max_examples=40)
def test_noise_for_a_budget_meets_it_and_hardly_more(epsilon: float, steps: int, kind: Neighbours) -> None:
    noise = noise_for(epsilon, DELTA, neighbours=kind, steps=steps)
    assert spent([Release(noise, kind, steps=steps)], DELTA) <= epsilon
    assert spent([Release(noise * 0.999, kind, steps=steps)], DELTA) > epsilon


@given(noise=st.floats(0.3, 20), delta=st.floats(1e-12, 0.1))
@settings(deadline=None, max_examples=40)
def test_delta_and_epsilon_are_each_others_inverse(noise: float, delta: float) -> None:
    curve = {order: gaussian(order, noise) for order in GOLDEN["orders"]}
    epsilon = epsilon_of(curve, delta)
    if epsilon > 0:
        assert delta_of(curve, epsilon) == pytest.approx(delta, rel=1e-6)
    else:
        assert delta_of(curve, 0.0) <= delta * (1 + 1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Release(-1.0),
        lambda: Release(math.nan),
        lambda: Release(1.0, rate=0.0),
        lambda: Release(1.0, rate=1.5),
        lambda: Release(1.0, steps=0),
        lambda: Release(1.0, Neighbours.REPLACE, rate=0.5),
        lambda: spent([Release(1.0)], 0.0),
        lambda: spent([Release(1.0)], 1.0),
        lambda: noise_for(0.0, DELTA),
        lambda: noise_for(1e-9, DELTA, steps=10**9),
    ],
)
def test_what_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(BadConfig, match="must be"):
        wrong()  # type: ignore[operator]
