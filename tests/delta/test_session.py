"""Whole exchanges between two peers in memory: both directions, any order, cuts, damage, resumption."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sync_peers import Exchange, Fault, Node, version_of

from aios_node.delta.exchange.effects import CommitTransfer, FindStaged, PreparePackage, ReadChunk, StageChunk
from aios_node.delta.exchange.session import SessionConfig
from aios_node.delta.offers import Decision, Offer
from aios_node.engine.errors import (
    AiosError,
    BadWeights,
    Busy,
    Corrupt,
    HashMismatch,
    NoBase,
    StorageError,
    StorageFull,
    Unauthenticated,
    UnknownVersion,
)

KIB = 1024
OLD = random.Random(1).randbytes(90 * KIB)
NEW = OLD[: 20 * KIB] + random.Random(2).randbytes(70 * KIB)  # as a delta: 5 chunks of 16 KiB
OTHER = random.Random(3).randbytes(40 * KIB)


def pair() -> tuple[Node, Node]:
    """One has the news of ``m``; the other has the old ``m`` and a model of its own."""
    one, other = Node(), Node()
    one.add("m", OLD)
    one.add("m", NEW, version_of(OLD))
    other.add("m", OLD)
    other.add("n", OTHER)
    return one, other


def same(one: Node, other: Node) -> bool:
    return one.versions == other.versions


def test_both_directions_in_one_stream() -> None:
    one, other = pair()
    left, right = Exchange(one, other).run()
    assert same(one, other)
    sent = {result.model: result for result in left.results if result.direction == "sent"}
    got = {result.model: result for result in left.results if result.direction == "received"}
    assert set(sent) == {"m"}
    assert set(got) == {"n"}
    assert sent["m"].mode == "delta"
    assert (sent["m"].from_version, sent["m"].to_version) == (version_of(OLD), version_of(NEW))
    assert got["n"].mode == "full"
    assert sent["m"].bytes < got["n"].bytes * 2
    mirrored = [(r.model, r.mode, r.bytes, r.hash_ok, r.from_version, r.full_bytes) for r in right.results]
    assert sorted(mirrored) == sorted(
        (r.model, r.mode, r.bytes, r.hash_ok, r.from_version, r.full_bytes) for r in left.results
    )
    assert left.outcome is not None
    assert right.outcome is not None
    assert left.outcome.error is right.outcome.error is None
    assert not one.packages
    assert not other.packages
    assert not one.staging
    assert not other.staging


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 3))
def test_any_order_of_events_ends_the_same(seed: int, window: int, parallel: int) -> None:
    one, other = pair()
    for index in range(5):
        one.add(f"extra-{index}", OTHER[index:])
    config = SessionConfig(window=window, parallel=parallel, served=parallel)
    left, right = Exchange(one, other, config=config).run(random.Random(seed).randrange)
    assert same(one, other)
    assert {result.error for result in (*left.results, *right.results)} == {None}


@given(
    st.integers(0, 2**32),
    st.lists(st.dictionaries(st.integers(0, 40), st.sampled_from(list(Fault)), max_size=3), max_size=4),
)
def test_after_any_faults_a_clean_session_brings_everyone_together(seed: int, sessions: list[dict[int, Fault]]) -> None:
    one, other = pair()
    choose = random.Random(seed).randrange
    for faults in sessions:
        Exchange(one, other, faults=faults).run(choose)
    Exchange(one, other).run(choose)
    assert same(one, other)
    assert one.came_again == other.came_again == 0, "a chunk that was staged durably was sent again"


@pytest.mark.parametrize("cut", range(40))
def test_a_cut_anywhere_costs_only_what_was_in_flight(cut: int) -> None:
    one, other = pair()
    Exchange(one, other, faults={cut: Fault.CUT}).run()
    staged = {key: len(entry.chunks) for key, entry in other.staging.items()}
    exchange = Exchange(one, other)
    _, right = exchange.run()
    assert same(one, other)
    assert one.came_again == other.came_again == 0
    again = [result for result in right.results if result.direction == "received"]
    for result in again:
        assert bool(result.resumed_bytes) == bool(sum(staged.values()))
    assert max(other.received.values()) == 1


def test_when_everything_is_staged_only_the_commit_travels() -> None:
    one, other = pair()
    other.failures[CommitTransfer] = [StorageError("the disk is read-only")]
    _, right = Exchange(one, other).run()
    failed = next(result for result in right.results if result.direction == "received")
    assert (failed.error, failed.hash_ok) == ("storage_error", False)
    _, right = Exchange(one, other).run()
    done = next(result for result in right.results if result.direction == "received")
    assert (done.bytes, done.hash_ok, done.resumed_bytes) == (0, True, failed.bytes)
    assert same(one, other)


def test_another_package_under_the_same_key_begins_anew() -> None:
    def one_way() -> tuple[Node, Node]:
        one, other = pair()
        del other.versions["n", version_of(OTHER)]
        return one, other

    number = chunk_message(*one_way(), index=2)
    one, other = one_way()
    Exchange(one, other, faults={number: Fault.CUT}).run()
    (staged,) = other.staging.values()
    assert (staged.package.mode, len(staged.chunks)) == ("delta", 2)
    del one.versions["m", version_of(OLD)]  # the base is gone: the same key now brings a full package
    _, right = Exchange(one, other).run()
    done = next(result for result in right.results if result.direction == "received")
    assert (done.mode, done.resumed_bytes, done.from_version) == ("full", 0, None)
    assert other.versions["m", version_of(NEW)] == NEW


@pytest.mark.parametrize(
    "error", [NoBase("gone"), HashMismatch("bad"), Corrupt("the base is damaged"), UnknownVersion("no base")]
)
def test_a_delta_that_cannot_be_applied_is_asked_for_in_full_at_once(error: AiosError) -> None:
    one, other = pair()
    other.failures[CommitTransfer] = [error]
    left, right = Exchange(one, other).run()
    got = [(r.mode, r.error, r.hash_ok) for r in right.results if r.direction == "received"]
    assert got == [("delta", error.code, False), ("full", None, True)]
    sent = [(r.mode, r.error) for r in left.results if r.direction == "sent"]
    assert sent == [("delta", error.code), ("full", None)]
    assert same(one, other)


@pytest.mark.parametrize(
    "error", [HashMismatch("bad"), BadWeights("NaN"), Unauthenticated("not the author"), NoBase("odd")]
)
def test_bad_content_is_thrown_away_and_the_next_attempt_succeeds(error: AiosError) -> None:
    one, other = Node(), Node()
    one.add("n", OTHER)
    other.failures[CommitTransfer] = [error]
    _, right = Exchange(one, other).run()
    assert [(r.error, r.hash_ok, r.message) for r in right.results] == [(error.code, False, error.message)]
    assert not other.versions
    assert not other.staging
    Exchange(one, other).run()
    assert same(one, other)


def test_a_full_disk_ends_one_transfer_and_keeps_what_was_staged() -> None:
    one, other = pair()
    one.add("small", OTHER[:100])
    other.failures[StageChunk] = [StorageFull("no space")]
    left, right = Exchange(one, other).run()
    errors = {r.model: r.error for r in right.results}
    assert sorted(errors.values(), key=str) == [None, None, "storage_full"]
    assert [r.error for r in left.results if r.error] == ["storage_full"]
    Exchange(one, other).run()
    assert same(one, other)
    assert other.came_again == 0


@pytest.mark.parametrize("kind", [PreparePackage, ReadChunk, FindStaged])
def test_what_cannot_be_prepared_read_or_looked_up_ends_one_transfer(kind: type) -> None:
    one, other = Node(), Node()
    one.add("m", OLD)
    one.add("n", OTHER)
    (other if kind is FindStaged else one).failures[kind] = [Busy("later")]
    _, right = Exchange(one, other).run()
    assert sorted((r.hash_ok, r.error or "") for r in right.results) == [(False, "busy"), (True, "")]
    Exchange(one, other).run()
    assert same(one, other)


def chunk_message(one: Node, other: Node, index: int = 0) -> int:
    """The number of the message that carries a chunk, in the exchange as it goes without faults."""
    exchange = Exchange(one, other)
    numbers: list[int] = []
    carry = exchange._carry

    def noted(side: int, metadata: bytes, data: bytes) -> None:
        if data:
            numbers.append(exchange.messages)
        carry(side, metadata, data)

    exchange._carry = noted  # type: ignore[method-assign]
    exchange.run()
    return numbers[index]


@pytest.mark.parametrize("index", [0, 1, -1])
def test_a_damaged_chunk_is_asked_for_once_more(index: int) -> None:
    number = chunk_message(*pair(), index)
    one, other = pair()
    left, right = Exchange(one, other, faults={number: Fault.FLIP_DATA}).run()
    assert same(one, other)
    assert {r.error for r in (*left.results, *right.results)} == {None}
    assert max([*one.received.values(), *other.received.values()]) == 1


def test_a_chunk_damaged_twice_ends_the_transfer_and_the_next_attempt_succeeds() -> None:
    one, other = Node(), Node()
    one.add("tiny", OTHER[:100])
    number = chunk_message(one, Node())
    faults = dict.fromkeys(range(number, number + 20), Fault.FLIP_DATA)
    left, right = Exchange(one, other, faults=faults).run()
    assert [r.error for r in right.results] == ["corrupt"]
    assert [r.error for r in left.results] == ["corrupt"]
    Exchange(one, other).run()
    assert same(one, other)


def test_heads_that_diverged_are_both_exchanged() -> None:
    one, other = Node(), Node()
    for node, news in ((one, NEW), (other, OLD[: 50 * KIB] + OTHER)):
        base = node.add("m", OLD)
        node.add("m", news, base)
    Exchange(one, other).run()
    assert same(one, other)
    assert len(one.versions) == 3


def test_news_of_several_generations_comes_from_the_newest_base_there_is() -> None:
    one, other = Node(), Node()
    chain = [OLD, NEW, NEW[: 60 * KIB] + OTHER]
    versions = [one.add("m", content) for content in chain]
    for parent, child in pairwise(versions):
        one.parents[child] = (parent, *one.parents[parent])
    other.add("m", OLD)
    _, right = Exchange(one, other, config=SessionConfig(parallel=1)).run()
    received = [(r.from_version, r.to_version, r.mode) for r in right.results]
    assert received == [(versions[0], versions[1], "delta"), (versions[1], versions[2], "delta")]


def test_what_the_policy_refuses_does_not_travel() -> None:
    class Picky(Node):
        def wants(self, offer: Offer) -> Decision:
            return Decision(want=False, reason="not subscribed")

    one, other = Node(), Picky()
    one.add("m", OLD)
    _, right = Exchange(one, other).run()
    assert right.results == []
    assert right.outcome is not None
    assert right.outcome.error is None


def test_hundreds_of_models_in_one_session() -> None:
    one, other = Node(), Node()
    for index in range(300):
        one.add(f"m{index}", OTHER[:index])
    one.add("empty", b"")
    Exchange(one, other).run()
    assert same(one, other)
    assert len(other.versions) == 301


def test_a_package_that_is_too_large_is_refused_before_it_is_staged() -> None:
    one, other = Node(), Node()
    one.add("m", OLD)
    one.add("n", OTHER)
    _, right = Exchange(one, other, config=SessionConfig(package_bytes=50 * KIB)).run()
    assert {r.model: r.error for r in right.results} == {"m": "too_large", "n": None}
    assert set(other.versions) == {("n", version_of(OTHER))}
