"""Relations between versions, checked against walks over random graphs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.lineage import ancestors, heads, meeting_points, nearest, relation

PARENTS = {"d": ("b", "c"), "b": ("a",), "c": ("a",), "e": ("c",), "a": ("root",)}


def test_relations_of_a_small_history() -> None:
    assert relation("d", "d", PARENTS) == "same"
    assert relation("d", "a", PARENTS) == "ahead"
    assert relation("a", "e", PARENTS) == "behind"
    assert relation("d", "e", PARENTS) == "diverged"
    assert relation("d", "stranger", PARENTS) == "diverged"
    assert list(ancestors("d", PARENTS)) == ["b", "c", "a", "root"]
    assert heads("abcde", PARENTS) == ("d", "e")
    assert meeting_points("d", "e", PARENTS) == ("c",)
    assert meeting_points("d", "b", PARENTS) == ("b",)
    assert meeting_points("d", "stranger", PARENTS) == ()


def test_the_nearest_base_is_the_first_that_is_held() -> None:
    assert nearest(["c", "b", "a"], {"a", "b"}) == "b"
    assert nearest(["c"], {"a"}) is None
    assert nearest([], {"a"}) is None


def test_two_merges_of_the_same_parents_meet_in_both() -> None:
    crossed = {"x": ("a", "b"), "y": ("a", "b")}
    assert meeting_points("x", "y", crossed) == ("a", "b")


@st.composite
def histories(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Versions whose parents come before them."""
    count = draw(st.integers(1, 9))
    names = [f"v{index}" for index in range(count)]
    return {
        name: tuple(draw(st.lists(st.sampled_from(names[:index]), max_size=3, unique=True))) if index else ()
        for index, name in enumerate(names)
    }


@given(histories())
def test_relations_are_mirror_images_and_heads_cover_everything(parents: dict[str, tuple[str, ...]]) -> None:
    mirror = {"same": "same", "ahead": "behind", "behind": "ahead", "diverged": "diverged"}
    for one in parents:
        for other in parents:
            assert relation(one, other, parents) == mirror[relation(other, one, parents)]
            common = meeting_points(one, other, parents)
            assert common == meeting_points(other, one, parents)
            assert all(relation(one, point, parents) in {"same", "ahead"} for point in common)
    tips = heads(parents.keys(), parents)
    covered = {version for tip in tips for version in (tip, *ancestors(tip, parents))}
    assert covered == set(parents)
    assert all(relation(one, other, parents) == "diverged" for one in tips for other in tips if one != other)


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("abcd"), max_size=3).map(tuple)))
def test_a_forged_cycle_ends_the_walk(parents: dict[str, tuple[str, ...]]) -> None:
    for version in "abcd":
        found = list(ancestors(version, parents))
        assert len(found) == len(set(found)) <= 3
        assert version not in found
