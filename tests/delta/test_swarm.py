"""Gathering a package from several suppliers: who is asked for what, and what happens to wrong chunks."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.chunks import TransferKey, chunk_span
from aios_node.delta.offers import Offer, PackageInfo
from aios_node.delta.swarm.bitmaps import Counts, first_from, from_ranges, full, indices, to_ranges
from aios_node.delta.swarm.description import Description, chunk_hashes, spread
from aios_node.delta.swarm.gathering import Gathering, Stage
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import Busy, HashMismatch, ProtocolError

VERSION = "a" * 64
KEY = TransferKey("m", VERSION)
OFFER = Offer("m", VERSION)
DATA = random.Random(7).randbytes(12 * 16384)
COUNT = 12


def describe(data: bytes = DATA) -> Description:
    spans = [chunk_span(len(data), index) for index in range(-(-len(data) // 16384))]
    hashes = chunk_hashes([data[at : at + length] for at, length in spans])
    package = PackageInfo(len(data), hashlib.sha256(data).hexdigest(), "full", None, 1, 1)
    return Description(package, hashes)


def piece(index: int, data: bytes = DATA) -> bytes:
    offset, length = chunk_span(len(data), index)
    return data[offset : offset + length]


def gathering(*suppliers: tuple[int, bool]) -> Gathering:
    """With these suppliers (link, origin), all of which hold everything unless they are no origins."""
    found = Gathering(KEY, describe(), OFFER, ("raw",))
    found.opened([(0, COUNT)])
    for link, origin in suppliers:
        found.join(link, 0, origin)
        if origin:
            found.holds(link, full(COUNT))
    return found


@given(st.sets(st.integers(0, 300)), st.integers(0, 300))
def test_bitmaps_are_sets(members: set[int], start: int) -> None:
    bits = sum(1 << member for member in members)
    assert list(indices(bits)) == sorted(members)
    assert from_ranges(to_ranges(bits), 301) == bits
    if members:
        later = [member for member in members if member >= start]
        assert first_from(bits, start) == min(later or members)


@given(st.lists(st.integers(0, 255), max_size=9), st.integers(1, 255), st.data())
def test_counts_find_the_rarest(holders: list[int], wanted: int, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(range(len(holders))))) if holders else set()
    counts = Counts()
    for bits in holders:
        counts.add(bits)
    for place in gone:
        counts.remove(holders[place])
    left = [bits for place, bits in enumerate(holders) if place not in gone]
    number = {index: sum(bits >> index & 1 for bits in left) for index in range(8)}
    fewest = min(number[index] for index in indices(wanted))
    assert set(indices(counts.rarest(wanted))) == {i for i in indices(wanted) if number[i] == fewest}
    assert set(indices(counts.any())) == {index for index in range(8) if number[index]}


@given(st.integers(1, 10_000), st.integers(0, 500))
def test_receivers_begin_at_places_within_the_package(count: int, turn: int) -> None:
    assert 0 <= spread(turn, count) < count
    assert len({spread(each, 1024) for each in range(16)}) == 16


def test_two_suppliers_are_asked_for_different_chunks() -> None:
    found = gathering((1, True), (2, True))
    one, other = found.ask(1), found.ask(2)
    assert one
    assert other
    assert one & other == 0


def test_an_origin_is_asked_only_for_what_nobody_else_has() -> None:
    found = gathering((1, True), (2, False))
    found.holds(2, 0b111)
    assert found.ask(1) & 0b111 == 0
    assert found.ask(2) == 0b111


def test_what_another_can_give_is_taken_back_from_the_origin() -> None:
    found = gathering((1, True), (2, False))
    asked = found.ask(1)
    found.holds(2, full(COUNT))
    assert found.take_stops(1) == asked
    assert found.ask(2) & asked
    lowest = next(indices(asked))
    assert found.expects(1, lowest)  # it may be on its way already
    assert found.arrived(1, lowest, piece(lowest)) is True


def test_the_rarest_chunk_is_asked_for_first() -> None:
    found = gathering((1, False), (2, False), (3, False))
    found.holds(1, 0b1111)
    found.holds(2, 0b0111)
    found.holds(3, 0b0111)
    assert 3 in indices(found.ask(1))


def test_the_last_chunks_are_asked_of_a_second_supplier_and_the_loser_is_stopped() -> None:
    found = gathering((1, False), (2, False))
    for index in range(COUNT - 1):
        found.staged(index)
    last = 1 << COUNT - 1
    found.holds(1, full(COUNT))
    found.holds(2, full(COUNT))
    assert found.ask(1) == last
    assert found.ask(2) == last
    assert found.arrived(2, COUNT - 1, piece(COUNT - 1)) is True
    assert found.take_stops(1) == last
    assert found.arrived(1, COUNT - 1, piece(COUNT - 1)) is None
    found.staged(COUNT - 1)
    assert found.complete


def test_a_wrong_chunk_is_noticed_at_once_and_asked_of_another() -> None:
    found = gathering((1, False), (2, False))
    found.holds(1, 1)
    found.holds(2, 1)
    assert found.ask(1) == 1
    assert found.arrived(1, 0, bytes(16384)) is False
    found.leave(1)
    assert found.ask(2) == 1


def test_a_gone_supplier_leaves_its_chunks_to_others() -> None:
    found = gathering((1, True))
    asked = found.ask(1)
    found.leave(1)
    assert found.stage is Stage.IDLE
    found.opened([(0, COUNT)])
    found.join(2, 0, origin=True)
    found.holds(2, full(COUNT))
    assert found.ask(2) == asked


def test_packages_with_other_hashes_are_other_packages() -> None:
    swarm = Swarm()
    link = swarm.connect("liar", lambda: None)
    description = describe()
    forged = Description(description.package, bytes(len(description.hashes)))
    assert forged.root != description.root
    begun = swarm.begin(link, KEY, forged, OFFER, ("raw",))
    begun.opened([(0, COUNT)])
    with pytest.raises(Busy, match="another package"):
        swarm.begin(link, KEY, description, OFFER, ("raw",))
    swarm.finished(begun, HashMismatch("no good"), poisoned=True)
    with pytest.raises(HashMismatch, match="was not what it promised"):
        swarm.begin(link, KEY, forged, OFFER, ("raw",))
    assert swarm.begin(link, KEY, description, OFFER, ("raw",)).description is description


def test_who_sent_a_wrong_chunk_is_not_asked_again_in_a_later_session() -> None:
    swarm = Swarm()
    first = swarm.connect("liar", lambda: None)
    begun = swarm.begin(first, KEY, describe(), OFFER, ("raw",))
    swarm.ban(first, begun)
    swarm.leave(first)
    again, honest = swarm.connect("liar", lambda: None), swarm.connect("honest", lambda: None)
    with pytest.raises(HashMismatch, match="sent wrong chunks"):
        swarm.begin(again, KEY, describe(), OFFER, ("raw",))
    assert swarm.begin(honest, KEY, describe(), OFFER, ("raw",)) is begun


def test_a_version_is_received_in_one_way_at_a_time() -> None:
    swarm = Swarm()
    other = TransferKey("m", VERSION, "b" * 64)
    assert swarm.claim(1, KEY, alone=False)
    assert swarm.claim(2, KEY, alone=False)
    assert not swarm.claim(3, other, alone=False)
    assert not swarm.claim(3, KEY, alone=True)
    swarm.release(1, "m", VERSION)
    swarm.leave(2)
    assert swarm.claim(3, KEY, alone=True)
    assert not swarm.claim(1, KEY, alone=False)


def test_hashes_must_be_one_per_chunk() -> None:
    with pytest.raises(ProtocolError, match="hashes"):
        Description(describe().package, b"x" * 31)


def test_what_nobody_sends_is_forgotten_when_something_newer_is_here() -> None:
    swarm = Swarm()
    link = swarm.connect("", lambda: None)
    old = swarm.begin(link, KEY, describe(), OFFER, ("raw",))
    old.opened([(0, COUNT)])
    old.join(link, 0, origin=True)
    assert list(swarm.live()) == [old]
    old.leave(link)
    assert list(swarm.live()) == []
    assert list(swarm.offered()) == [old]
    newer = Offer("m", "c" * 64, lineage=(VERSION,))
    found = swarm.begin(link, TransferKey("m", newer.version), describe(), newer, ("raw",))
    swarm.finished(found, None)
    assert list(swarm.offered()) == []


def test_packages_on_their_way_are_bounded() -> None:
    swarm = Swarm()
    link = swarm.connect("", lambda: None)
    for number in range(200):
        version = f"{number:064x}"
        swarm.begin(link, TransferKey("m", version), describe(), Offer("m", version), ("raw",))
    assert len(list(swarm.offered())) <= 64
