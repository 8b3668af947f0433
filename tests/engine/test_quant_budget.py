"""Sharing out bytes: against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadConfig
from aios_node.engine.quant import budget as module
from aios_node.engine.quant.budget import Option, allocate, bytes_for
from aios_node.engine.quant.recipe import Settings

OPTIONS = st.builds(Option, st.none(), st.integers(0, 12), st.integers(0, 20).map(float))
CHOICES = st.dictionaries(st.text(max_size=3), st.lists(OPTIONS, min_size=1, max_size=5), max_size=5)


def totals(options: tuple[Option, ...]) -> tuple[int, float]:
    return sum(option.nbytes for option in options), sum(option.loss for option in options)


@given(choices=CHOICES, budget=st.integers(0, 50))
def test_nothing_that_fits_loses_less(choices: dict[str, list[Option]], budget: int) -> None:
    every = [totals(options) for options in itertools.product(*choices.values())]
    fitting = [loss for nbytes, loss in every if nbytes <= budget]
    if not fitting:
        with pytest.raises(BadConfig, match=f"{min(nbytes for nbytes, _ in every)} bytes"):
            allocate(choices, budget)
        return
    found = allocate(choices, budget)
    assert set(found) == set(choices)
    assert all(option in choices[name] for name, option in found.items())
    nbytes, loss = totals(tuple(found.values()))
    assert nbytes <= budget
    assert loss == min(fitting)


@given(choices=CHOICES, budget=st.integers(0, 50), most=st.integers(0, 2))
def test_a_cut_search_still_fits(choices: dict[str, list[Option]], budget: int, most: int) -> None:
    """With hardly any partial choices kept, what comes out fits, and never loses more than in the first try."""
    if sum(min(option.nbytes for option in options) for options in choices.values()) > budget:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_KEPT", 0)
        first = totals(tuple(allocate(choices, budget).values()))
        patch.setattr(module, "_MOST_KEPT", most)
        cut = totals(tuple(allocate(choices, budget).values()))
    assert max(first[0], cut[0]) <= budget
    assert cut[1] <= first[1]


def model(tensors: int) -> dict[str, list[Option]]:
    """A few bits per weight for each of many tensors, one of them as large as half of the others together."""
    random = np.random.default_rng(3)
    sizes = {f"layer.{number}": int(random.integers(100_000, 600_000)) for number in range(tensors)}
    sizes["embeddings"] = sum(sizes.values()) // 2
    return {
        name: [
            Option(Settings("int2", False, 0, 16), int(size * bits / 8), float(importance * 4.0**-bits * size))
            for bits in (2.28, 2.56, 3.1, 4.28, 6, 8)
        ]
        for (name, size), importance in zip(sizes.items(), random.lognormal(0, 1.5, len(sizes)), strict=True)
    }


@pytest.mark.parametrize("tensors", [40, 300])
def test_a_whole_model_is_filled_up_to_its_budget(tensors: int) -> None:
    choices = model(tensors)
    budget = bytes_for(4.28, sum(options[-1].nbytes for options in choices.values()))
    found = allocate(choices, budget)
    used = sum(option.nbytes for option in found.values())
    assert 0.999 * budget <= used <= budget
    assert len({option.nbytes * 8 // 100_000 for option in found.values()}) > 2
    assert allocate(dict(reversed(choices.items())), budget) == found


def test_more_bytes_never_lose_more() -> None:
    choices = model(12)
    least = sum(options[0].nbytes for options in choices.values())
    losses = [
        sum(each.loss for each in allocate(choices, least + more).values()) for more in range(0, 4_000_000, 250_000)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


def test_what_cannot_be_is_refused() -> None:
    assert allocate({}, 0) == {}
    with pytest.raises(BadConfig, match="'a' has no options"):
        allocate({"a": []}, 5)
    with pytest.raises(BadConfig, match="with the smallest choice for every tensor it is 7 bytes"):
        allocate({"a": [Option(None, 3, 1)], "b": [Option(None, 4, 1), Option(None, 9, 0)]}, 6)
    for nbytes, loss in ((-1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(BadConfig, match="an option of"):
            Option(None, nbytes, loss)


def test_bytes_for_bits_per_weight() -> None:
    assert bytes_for(2.6, 100) == 32
    for bits in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BadConfig, match="bits per weight"):
            bytes_for(bits, 100)
