"""Lineage, prefixes and what garbage collection may drop, on pictures made by hand."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.offers import Source
from aios_node.delta.store.heads import Facts, Heads, Member, ModelState, Pointers, expendable
from aios_node.engine.errors import BadRequest, UnknownModel, UnknownVersion


def vid(number: int) -> str:
    return f"{number:064x}"


def picture(*facts: Facts, models: dict[str, tuple[list[int], int | None, int | None]]) -> Heads:
    states = {
        name: ModelState(
            Pointers(
                name,
                None if active is None else vid(active),
                None if previous is None else vid(previous),
            ),
            tuple(Member(vid(number), "2026-01-01T00:00:00Z") for number in versions),
        )
        for name, (versions, active, previous) in models.items()
    }
    return Heads(MappingProxyType(states), MappingProxyType({known.id: known for known in facts}))


def facts(number: int, *parents: int, ancestors: tuple[int, ...] = (), source: str | None = None) -> Facts:
    return Facts(
        vid(number),
        tuple(vid(parent) for parent in parents),
        ancestors=tuple(vid(ancestor) for ancestor in ancestors),
        derived_from=Source(source, vid(99)) if source else None,
    )


def test_a_chain_has_one_head() -> None:
    heads = picture(facts(1), facts(2, 1), facts(3, 2), models={"m": ([1, 2, 3], 3, 2)})
    assert heads.heads("m") == (vid(3),)
    assert heads.ancestors(vid(3)) == (vid(2), vid(1))
    assert heads.lineage("m") == {vid(1): (), vid(2): (vid(1),), vid(3): (vid(2),)}


def test_diverged_versions_are_two_heads_until_they_are_merged() -> None:
    root, left, right, merge = facts(1), facts(2, 1), facts(3, 1), facts(4, 2, 3)
    assert picture(root, left, right, models={"m": ([1, 2, 3], 2, 1)}).heads("m") == (vid(3), vid(2))
    merged = picture(root, left, right, merge, models={"m": ([1, 2, 3, 4], 4, 2)})
    assert merged.heads("m") == (vid(4),)
    assert merged.ancestors(vid(4)) == (vid(2), vid(3), vid(1))


def test_where_diverged_heads_meet_is_kept_however_old() -> None:
    """Heads 7 and 8 meet at 2, all three at 1; 3 to 6 only lead to a head."""
    chain = [facts(1), facts(2, 1), *(facts(number, number - 1) for number in range(3, 8)), facts(8, 2), facts(9, 1)]
    heads = picture(*chain, models={"m": (list(range(1, 10)), 7, 6)})
    assert heads.bases("m") == {vid(1), vid(2)}
    gone = {version for _, version in expendable(heads, keep_last=0)}
    assert gone == {vid(number) for number in (3, 4, 5)}
    assert picture(*chain[:7], models={"m": (list(range(1, 8)), 7, 6)}).bases("m") == frozenset()


def test_lineage_reaches_across_versions_whose_files_are_gone() -> None:
    heads = picture(facts(1), facts(2, 1), facts(3, 2), models={"m": ([1, 3], 3, 1)})
    assert heads.heads("m") == (vid(3),)


def test_told_ancestors_bridge_versions_that_never_were_here() -> None:
    told = facts(5, 4, ancestors=(3, 2, 1))
    heads = picture(facts(1), told, models={"m": ([1, 5], 5, 1)})
    assert heads.heads("m") == (vid(5),)
    assert heads.ancestors(vid(5)) == (vid(4), vid(3), vid(2), vid(1))


def test_a_long_history_of_merges_is_walked_once() -> None:
    chain = [facts(0)]
    for number in range(1, 3 * 60, 3):
        chain += [facts(number, number - 1), facts(number + 1, number - 1), facts(number + 2, number, number + 1)]
    last = len(chain) - 1
    heads = picture(*chain, models={"m": ([0, last], last, 0)})
    assert len(heads.ancestors(vid(last))) == last
    assert heads.heads("m") == (vid(last),)


def test_a_liar_cannot_make_heads_vanish() -> None:
    child = facts(2, 1)
    liar = facts(1, ancestors=(2,))
    heads = picture(liar, child, models={"m": ([1, 2], 2, 1)})
    assert heads.heads("m") == (vid(2),)
    assert not picture(child, models={"m": ([2], None, None)}).admits(liar)
    assert picture(child, models={"m": ([2], None, None)}).admits(facts(1))


@pytest.mark.parametrize("prefix", ["000", "", "00", "xyz0", "0000/..", "0" * 65, "ABCD"])
def test_a_prefix_needs_four_digits(prefix: str) -> None:
    heads = picture(facts(1), models={"m": ([1], None, None)})
    with pytest.raises(UnknownVersion, match="4 or more"):
        heads.resolve("m", prefix)


def test_prefixes_resolve_or_name_the_candidates() -> None:
    one, two = "abcd" + "0" * 60, "abcd" + "0" * 50 + "1" * 10
    state = ModelState(Pointers("m"), (Member(one, ""), Member(two, "")))
    heads = Heads(MappingProxyType({"m": state}), MappingProxyType({one: Facts(one), two: Facts(two)}))
    assert heads.resolve("m", one) == one
    with pytest.raises(UnknownVersion) as caught:
        heads.resolve("m", "abcd00")
    assert one[:55] in str(caught.value)
    assert two[:55] in str(caught.value)
    with pytest.raises(UnknownVersion, match="it has abcd00000000"):
        heads.resolve("m", "ffff")


def test_unknown_models_are_answered_with_what_exists() -> None:
    heads = picture(facts(1), models={"minilm": ([1], None, None)})
    with pytest.raises(UnknownModel, match="did you mean minilm"):
        heads.info("minilmm")
    with pytest.raises(BadRequest, match="not a model name"):
        heads.info("../minilm")
    with pytest.raises(UnknownVersion, match="minilm has no version"):
        heads.member("minilm", vid(2))


def test_derived_models_are_those_whose_active_version_says_so() -> None:
    heads = picture(
        facts(1),
        facts(2, source="minilm"),
        facts(3, source="minilm"),
        facts(4, source="other"),
        models={
            "minilm": ([1], 1, None),
            "minilm.int8": ([2], 2, None),
            "minilm.int4": ([3], None, None),
            "x": ([3, 4], 4, 3),
        },
    )
    assert heads.derived("minilm") == ("minilm.int8",)


def test_information_is_newest_first() -> None:
    heads = picture(facts(1), facts(2, 1), models={"m": ([1, 2], None, None)})
    assert [info.id for info in heads.info("m")] == [vid(2), vid(1)]
    assert heads.info("m")[0].parents == (vid(1),)


def test_collection_keeps_what_anyone_may_need() -> None:
    chain = [facts(1), *(facts(number, number - 1) for number in range(2, 9))]
    heads = picture(*chain, models={"m": ([1, 2, 3, 4, 5, 6, 7, 8], 3, 2)})
    assert expendable(heads, keep_last=2) == tuple(("m", vid(number)) for number in (1, 4, 5, 6))
    assert expendable(heads, keep_last=0, keep=[vid(5)]) == tuple(("m", vid(number)) for number in (1, 4, 6, 7))
    assert expendable(heads, keep_last=99) == ()


def test_a_version_goes_only_when_no_model_has_it() -> None:
    heads = picture(facts(1), facts(2, 1), models={"a": ([1, 2], 2, None), "b": ([1], 1, None)})
    assert expendable(heads, keep_last=0) == ()
    heads = picture(facts(1), facts(2, 1), facts(3, 1), models={"a": ([1, 2], 2, None), "b": ([1, 3], None, None)})
    members = expendable(heads, keep_last=0)
    assert members == (("a", vid(1)), ("b", vid(1)))
    assert heads.without(members) == {vid(1)}
    assert heads.without(members[:1]) == frozenset()


@given(
    st.integers(1, 12).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.lists(st.tuples(st.integers(1, count), st.integers(1, count)), max_size=20),
            st.sets(st.integers(1, count), min_size=1),
            st.integers(0, 4),
            st.sets(st.integers(1, count)),
        )
    )
)
def test_heads_and_collection_on_any_graph(
    given: tuple[int, list[tuple[int, int]], set[int], int, set[int]],
) -> None:
    count, edges, present, keep_last, pinned = given
    parents: dict[int, set[int]] = {number: set() for number in range(1, count + 1)}
    for one, other in edges:
        if one != other:
            parents[max(one, other)].add(min(one, other))
    reach: dict[int, set[int]] = {}
    for number in sorted(parents):
        reach[number] = set(parents[number]).union(*(reach[parent] for parent in parents[number]))
    versions = sorted(present)
    active = versions[0]
    heads = picture(
        *(facts(number, *sorted(above)) for number, above in parents.items()), models={"m": (versions, active, None)}
    )

    tops = {number for number in versions if not any(number in reach[other] for other in versions)}
    assert set(heads.heads("m")) == {vid(number) for number in tops}
    for number in versions:
        assert set(heads.ancestors(vid(number))) == {vid(above) for above in reach[number]}
    gone = {version for _, version in expendable(heads, keep_last=keep_last, keep=map(vid, pinned))}
    kept = tops | {active} | (set(versions[-keep_last:]) if keep_last else set()) | pinned
    assert gone == {vid(number) for number in versions if number not in kept}
