"""Common ancestors, small files, samples: what a merge begins from."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.merge.files import merge_files
from aios_node.delta.merge.lineage import ancestors, merge_base, merge_bases
from aios_node.delta.merge.samples import counted, learned, since, total_samples
from aios_node.engine.errors import BadRequest


def test_two_heads_meet_where_they_parted() -> None:
    parents = {"b": ["a"], "c": ["b"], "d": ["b"], "e": ["d"]}
    assert merge_bases(parents, ["c", "e"]) == ("b",)
    assert merge_base(parents, ["e", "c"]) == "b"


def test_three_heads_meet_at_what_all_descend_from() -> None:
    parents = {"b": ["a"], "x": ["b"], "y": ["b"], "z": ["a"]}
    assert merge_base(parents, ["x", "y", "z"]) == "a"


def test_of_several_best_ancestors_the_smallest_id_is_taken() -> None:
    crossed = {"a": ["o"], "b": ["o"], "m": ["a", "b"], "n": ["b", "a"]}
    assert merge_bases(crossed, ["m", "n"]) == ("a", "b")
    assert merge_base(crossed, ["n", "m"]) == "a"


def test_partial_merges_meet_at_the_head_they_share() -> None:
    parents = {"a": ["o"], "b": ["o"], "c": ["o"], "ab": ["a", "b"], "ac": ["a", "c"]}
    assert merge_base(parents, ["ab", "ac"]) == "a"


def test_networks_that_began_apart_are_not_merged() -> None:
    with pytest.raises(BadRequest, match="no common ancestor that is known here"):
        merge_base({"x": ["a"], "y": ["b"]}, ["x", "y"])


def test_a_head_and_its_ancestor_are_not_merged() -> None:
    with pytest.raises(BadRequest, match="y descends from x: there is nothing to merge"):
        merge_base({"x": ["a"], "y": ["x"]}, ["y", "x"])


@pytest.mark.parametrize("heads", [[], ["x"], ["x", "x"]])
def test_one_version_is_no_merge(heads: list[str]) -> None:
    with pytest.raises(BadRequest, match="two different versions"):
        merge_base({"x": ["a"]}, heads)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """A random history: every version has parents among the earlier ones."""
    names = [f"{number:02}" for number in range(draw(st.integers(3, 12)))]
    return {
        name: draw(st.lists(st.sampled_from(names[:place]), min_size=1, max_size=2, unique=True))
        for place, name in enumerate(names)
        if place
    }


@given(graphs(), st.data())
def test_bases_are_common_ancestors_that_no_other_descends_from(
    graph: dict[str, list[str]], data: st.DataObject
) -> None:
    heads = data.draw(st.lists(st.sampled_from(sorted(graph)), min_size=2, max_size=3, unique=True))
    found = merge_bases(graph, heads)
    common = set.intersection(*(ancestors(graph, head) for head in heads))
    assert set(found) <= common
    for one, other in itertools.permutations(found, 2):
        assert one not in ancestors(graph, other)
    assert all(any(version in ancestors(graph, base) for base in found) for version in common)
    assert found == merge_bases(graph, heads[::-1])


# ---- files


def test_a_file_that_one_head_changed_is_taken_over() -> None:
    base = {"config.json": "1", "vocab": "1", "gone": "1"}
    heads = {"x": {"config.json": "2", "vocab": "1", "gone": "1"}, "y": {"config.json": "1", "vocab": "1", "new": "3"}}
    assert merge_files(base, heads) == {"config.json": "x", "vocab": None, "new": "y"}


def test_the_same_change_twice_is_no_conflict() -> None:
    assert merge_files({"f": "1"}, {"y": {"f": "2"}, "x": {"f": "2"}}) == {"f": "x"}
    assert merge_files({"f": "1"}, {"y": {}, "x": {}}) == {}


def test_different_changes_are_a_conflict() -> None:
    with pytest.raises(BadRequest, match="x, y changed the file f in different ways"):
        merge_files({"f": "1"}, {"y": {"f": "3"}, "x": {"f": "2"}})
    with pytest.raises(BadRequest, match="different ways"):
        merge_files({"f": "1"}, {"y": {}, "x": {"f": "2"}})


def test_by_majority_a_few_heads_cannot_name_a_file() -> None:
    base = {"config.json": "1", "gone": "1"}
    honest: dict[str, str] = dict(base)
    heads = {"a": {"config.json": "bad"}, "b": honest, "c": honest}
    assert merge_files(base, heads, majority=True) == {"config.json": None, "gone": None}
    changed = {"config.json": "2", "new": "3", "gone": "1"}
    assert merge_files(base, {"a": {"config.json": "bad"}, "b": changed, "c": changed}, majority=True) == {
        "config.json": "b",
        "gone": None,
        "new": "b",
    }
    assert merge_files(base, {"a": changed, "b": honest}, majority=True) == {"config.json": None, "gone": None}


# ---- samples


def test_a_head_counts_what_it_learned_since_the_ancestor() -> None:
    base = learned({"method": "x"}, None, 1000)
    once = learned({}, base, 20)
    twice = learned({}, once, 5)
    assert base == {"method": "x", "samples": 1000, "total_samples": 1000}
    assert twice == {"samples": 5, "total_samples": 1025}
    assert since(base, [once, twice, base, None]) == [20, 25, 0, 0]


def test_one_unknown_count_makes_all_the_same() -> None:
    assert counted([20, 25]) == (20, 25)
    assert counted([20, 0]) == (1, 1)


@pytest.mark.parametrize("told", [None, -1, 1.5, "7", True, 2**60, [3]])
def test_counts_that_make_no_sense_are_unknown(told: object) -> None:
    assert total_samples({"total_samples": told}) == 0
    assert total_samples(None) == 0
