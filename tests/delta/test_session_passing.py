"""Sessions in protocol 2, alone and with peers of protocol 1: any order, cuts, damage, and what is not allowed."""

from __future__ import annotations

import hashlib
import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sync_peers import Exchange, Fault, Node, version_of

from aios_node.delta.exchange.effects import CommitTransfer, OpenStaged, Send, StageChunk
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.exchange.wire import Abort, Chunk, Commit, Have, Hello, Message, Offers, Request, Share, encode
from aios_node.delta.offers import Decision, Offer, PackageInfo, Partial
from aios_node.delta.swarm.description import Description, chunk_hashes
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, HashMismatch, NoBase, StorageFull

KIB = 1024
OLD = random.Random(1).randbytes(90 * KIB)
NEW = OLD[: 20 * KIB] + random.Random(2).randbytes(150 * KIB)
OTHER = random.Random(3).randbytes(40 * KIB)


def pair(one_new: bool = True, other_new: bool = True) -> tuple[Node, Node]:
    """One has the news of ``m``, the other a model of its own. ``new``: speaks protocol 2."""
    one = Node(swarm=Swarm() if one_new else None)
    other = Node(swarm=Swarm() if other_new else None)
    one.add("m", OLD)
    one.add("m", NEW, version_of(OLD))
    other.add("m", OLD)
    other.add("n", OTHER)
    return one, other


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_old_and_new_nodes_understand_each_other_in_any_order(seed: int, one_new: bool, other_new: bool) -> None:
    one, other = pair(one_new, other_new)
    left, right = Exchange(one, other).run(random.Random(seed).randrange)
    assert one.versions == other.versions
    assert not one.staging
    assert not other.staging
    assert not one.packages
    assert not other.packages
    assert left.outcome is not None
    assert left.outcome.error is None
    sent = {result.model: result for result in left.results if result.direction == "sent"}
    got = {result.model: result for result in right.results if result.direction == "received"}
    assert (got["m"].mode, got["m"].bytes, got["m"].hash_ok) == ("delta", sent["m"].bytes, True)
    assert sent["m"].hash_ok


@given(st.integers(0, 2**32), st.dictionaries(st.integers(4, 60), st.sampled_from(Fault), max_size=6))
@settings(max_examples=40)
def test_after_any_fault_the_next_session_goes_on(seed: int, faults: dict[int, Fault]) -> None:
    one, other = pair()
    choose = random.Random(seed).randrange
    Exchange(one, other, faults=faults).run(choose)
    Exchange(one, other).run(choose)
    assert one.versions == other.versions
    assert other.came_again == 0, "a chunk that was staged came again"


@pytest.mark.parametrize(
    ("effect", "error", "goes_on"),
    [
        (CommitTransfer, NoBase("gone"), True),
        (CommitTransfer, HashMismatch("wrong"), True),
        (CommitTransfer, StorageFull("full"), False),
        (StageChunk, StorageFull("full"), False),
        (OpenStaged, StorageFull("full"), False),
    ],
)
def test_what_fails_is_asked_for_in_full_or_left_for_later(effect: type, error: AiosError, goes_on: bool) -> None:
    one, other = pair()
    other.failures[effect] = [error]
    _, right = Exchange(one, other).run()
    assert any(result.error == error.code for result in right.results)
    assert (one.versions == other.versions) is goes_on
    Exchange(one, other).run()
    assert one.versions == other.versions


DATA = random.Random(5).randbytes(40_000)
PACKAGE = PackageInfo(40_000, hashlib.sha256(DATA).hexdigest(), "full", None, 1, 1)
DESCRIPTION = Description(PACKAGE, chunk_hashes([DATA[:16384], DATA[16384:32768], DATA[32768:]]))
SHARE = Share(0, PACKAGE, DESCRIPTION.root, True, 0, 0, DESCRIPTION.hashes)
THEIRS = "b" * 64


class Wants:
    def wants(self, offer: Offer) -> Decision:
        return Decision(want=True)


class Script:
    """A session of protocol 2 that hears what a test says; what its driver does succeeds at once."""

    def __init__(self, offer: Offer | None = None) -> None:
        self.session = SyncSession([], Wants(), swarm=Swarm(), peer="other")
        self.said: list[Message] = []
        self.staged: list[int] = []
        self.number = 0
        self._take(self.session.start())
        self.hear(Hello((1, 2), ("raw",)), Offers((offer or Offer("m", THEIRS),), last=True))

    def hear(self, *messages: Message) -> None:
        for message in messages:
            self._take(self.session.receive(*encode(message, self.number)))
            self.number += 1

    def _take(self, effects: list) -> None:  # type: ignore[type-arg]
        for effect in effects:
            value: object = None
            match effect:
                case OpenStaged():
                    value = ((0, 3),)
                case StageChunk():
                    self.staged.append(effect.index)
                case Send():
                    self.said.append(effect.message)
            self._take(self.session.complete(effect, value))  # type: ignore[arg-type]

    def all(self, kind: type) -> list:  # type: ignore[type-arg]
        return [message for message in self.said if isinstance(message, kind)]

    @property
    def error(self) -> str | None:
        codes = [message.code for message in self.said if isinstance(message, Abort)]
        return codes[-1] if codes else None


def chunk(index: int, data: bytes | None = None) -> Chunk:
    offset = index * 16384
    content = DATA[offset : offset + 16384] if data is None else data
    return Chunk(0, index, offset, zlib.crc32(content), content)


def test_chunks_are_asked_for_and_committed() -> None:
    script = Script()
    script.hear(SHARE, Have(0, ((0, 3),)))
    assert script.all(Request)[0].chunks == ((0, 3),)
    script.hear(chunk(2), chunk(0), chunk(1))
    assert sorted(script.staged) == [0, 1, 2]
    assert script.said[-2].kind == "committed"
    assert script.said[-1].kind == "done"


@pytest.mark.parametrize(
    "messages",
    [
        (replace(SHARE, root="a" * 64),),
        (replace(SHARE, data=DESCRIPTION.hashes[32:]), SHARE),
        (replace(SHARE, first=1),),
        (replace(SHARE, data=b""),),
        (SHARE, SHARE),
        (SHARE, Have(1, ((0, 1),))),
        (SHARE, chunk(0)),
        (SHARE, Have(0, ((0, 3),)), chunk(0, b"short")),
        (SHARE, Have(0, ((0, 3),)), chunk(0, bytes(16384))),
        (SHARE, Have(0, ((0, 3),)), replace(chunk(0), index=3)),
        (SHARE, Have(0, ((0, 3),)), replace(chunk(0), index=9)),
        (SHARE, Commit(0, 0, PACKAGE)),
        (Request(0, ((0, 1),), ()),),
        (chunk(0),),
        (Have(0, ((0, 1),)),),
    ],
)
def test_what_must_not_come_ends_the_transfer_or_the_session(messages: tuple[Message, ...]) -> None:
    script = Script()
    script.hear(*messages)
    assert script.error in {"protocol_error", "hash_mismatch", "corrupt"}
    assert not script.staged


def test_a_chunk_damaged_on_the_way_is_asked_for_again_once() -> None:
    script = Script()
    script.hear(SHARE, Have(0, ((0, 3),)))
    damaged = replace(chunk(1), data=bytes(16384))
    script.hear(damaged)
    assert script.all(Request)[-1].chunks == ((1, 2),)
    script.hear(damaged)
    assert script.error == "corrupt"


def test_a_partial_offer_is_taken_only_where_it_can_be_used() -> None:
    fits = Offer("m", THEIRS, partial=Partial(None, DESCRIPTION.root, ("raw",)))
    assert [message.kind for message in Script(fits).said].count("want") == 1
    for useless in (Partial("c" * 64, DESCRIPTION.root, ("raw",)), Partial(None, DESCRIPTION.root, ("future",))):
        assert "want" not in [message.kind for message in Script(replace(fits, partial=useless)).said]


def test_protocol_one_knows_none_of_it() -> None:
    session = SyncSession([], Wants())
    session.start()
    for number, message in enumerate((Hello((1, 2), ("raw",)), Offers((), last=True))):
        for effect in session.receive(*encode(message, number)):
            session.complete(effect)
    session.receive(*encode(Have(0, ((0, 1),)), 2))
    assert session.over
