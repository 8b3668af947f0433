"""What recipes say that privacy has cost: sums along lineages, and entries of strangers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.delta.privacy.differential.accountant import Neighbours, Release, spent
from aios_node.delta.privacy.differential.grid import Grid
from aios_node.delta.privacy.ledger import Look, Spent, epsilon_of_rho, lineage_spent, recipe_entry, rho_of

DELTA = 1e-5


def private(noise: float, before: Spent) -> dict[str, Any]:
    """A recipe as it comes back from a manifest."""
    grid = Grid.of(1.0, noise)
    release = Release(grid.noise_multiplier, Neighbours.REPLACE)
    entry: dict[str, Any] = json.loads(json.dumps(recipe_entry(1.0, release, DELTA, before), allow_nan=False))
    return {"method": "lora-merged", "privacy": entry}


def look_in(versions: dict[str, tuple[dict[str, Any] | None, tuple[str, ...]]]) -> Look:
    return versions.get


@given(noises=st.lists(st.floats(0.1, 50), min_size=1, max_size=6), kind=st.sampled_from(Neighbours))
@settings(deadline=None, max_examples=40)
def test_rho_adds_up_to_what_the_accountant_says(noises: list[float], kind: Neighbours) -> None:
    releases = [Release(noise, kind) for noise in noises]
    total = sum((Spent(rho_of(release), 1) for release in releases), start=Spent())
    assert total.epsilon(DELTA) == pytest.approx(spent(releases, DELTA), rel=1e-9)
    assert total.releases == len(noises)


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert Spent().epsilon(DELTA) == epsilon_of_rho(0.0, DELTA) == 0
    assert rho_of(Release(0.0)) == math.inf
    assert Spent(unprotected=1).epsilon(DELTA) == math.inf


def test_a_recipe_tells_for_all_that_is_before_it() -> None:
    first = private(1.0, Spent())
    second = private(2.0, lineage_spent(("1",), look_in({"1": (first, ())})))
    look = look_in({"2": (second, ("1",)), "imported": (None, ("2",))})
    total = lineage_spent(("imported",), look)
    assert total.releases == 2
    assert total.complete
    exact = spent([Release(1.0, Neighbours.REPLACE), Release(2.0, Neighbours.REPLACE)], DELTA)
    assert total.epsilon(DELTA) == pytest.approx(exact, rel=1e-3)
    assert second["privacy"]["lineage"]["epsilon"] == pytest.approx(exact, rel=1e-3)


def test_merged_lineages_add_up_and_never_too_little() -> None:
    one, two = private(1.0, Spent()), private(3.0, Spent())
    versions = {"m": ({"method": "merge"}, ("1", "2")), "1": (one, ("0",)), "2": (two, ("0",)), "0": (None, ())}
    merged = lineage_spent(("m",), look_in(versions))
    assert merged.releases == 2
    assert merged.rho == pytest.approx(sum(recipe["privacy"]["lineage"]["rho"] for recipe in (one, two)))


def test_bare_training_and_forgotten_ancestors_are_told() -> None:
    versions = {"2": ({"method": "lora-merged"}, ("1", "0")), "1": ({"method": "lora-merged"}, ("0",)), "0": (None, ())}
    assert lineage_spent(("2",), look_in(versions)) == Spent(unprotected=2)
    del versions["0"]
    assert lineage_spent(("2",), look_in(versions)) == Spent(unprotected=2, complete=False)


LINEAGE = {"rho": 0.5, "releases": 1, "unprotected": 0, "complete": True}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"lineage": 3},
        *({"lineage": {**LINEAGE, "rho": bad}} for bad in (None, -1, "0", True, math.inf, math.nan)),
        *({"lineage": {**LINEAGE, "releases": bad}} for bad in (None, -1, 0.5, 2**60)),
        {"lineage": {**LINEAGE, "complete": 1}},
        {"lineage": {}},
    ],
)
def test_entries_without_sense_make_nothing_cheaper(entry: Any) -> None:
    assert lineage_spent(("1",), look_in({"1": ({"privacy": entry}, ())})) == Spent(unprotected=1)


def test_an_entry_in_order_is_read() -> None:
    assert lineage_spent(("1",), look_in({"1": ({"privacy": {"lineage": LINEAGE}}, ("0",))})) == Spent(0.5, 1)
