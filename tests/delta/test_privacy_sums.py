"""Secure sums between several participants: exact, whoever drops out when, and closed to everybody who cheats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sums import Drop, Node, Run, nodes_of, repeatable, terms_of, vectors_of, verify

from aios_node.delta.privacy.aggregation import keys
from aios_node.delta.privacy.aggregation.aggregator import Aggregator, Failed, Sum, Tell
from aios_node.delta.privacy.aggregation.masks import apply_mask
from aios_node.delta.privacy.aggregation.messages import (
    Consent,
    Consents,
    Delivery,
    FromParticipant,
    Keys,
    Masked,
    Reveal,
    Roster,
    Round,
    Shares,
    Survivors,
    sign,
)
from aios_node.delta.privacy.aggregation.participant import Participant
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.shamir import SHARE_BYTES, combine
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.engine.errors import AiosError, BadConfig, BadRequest, ProtocolError, Unauthenticated

COUNTED = (Drop.BEFORE_CONSENT, Drop.BEFORE_REVEAL)
"""Who drops out here has given its vector: it stays in the sum."""


def run_of(count: int, threshold: int, drops: dict[int, Drop] | None = None, length: int = 5, bits: int = 32) -> Run:
    nodes = nodes_of(count)
    terms = terms_of(nodes, threshold, length, bits)
    named = {nodes[index].node_id: drop for index, drop in (drops or {}).items()}
    return Run(terms, nodes, vectors_of(nodes, terms), named)


def expected(run: Run) -> tuple[Residues, tuple[str, ...]]:
    members = tuple(sorted(node for node in run.vectors if run.drops.get(node, Drop.BEFORE_REVEAL) in COUNTED))
    total = np.zeros(run.terms.length, run.terms.dtype)
    for member in members:
        total += run.vectors[member]
    return total, members


def assert_exact(run: Run, end: Sum | Failed) -> None:
    assert isinstance(end, Sum)
    total, members = expected(run)
    np.testing.assert_array_equal(end.total, total)
    assert end.contributors == members
    assert run.aggregator.round is Round.DONE


@pytest.mark.parametrize(("count", "threshold"), [(2, 2), (3, 2), (5, 3), (8, 6)])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_of_everybody_is_exact(count: int, threshold: int, bits: int) -> None:
    run = run_of(count, threshold, bits=bits, length=1000)
    assert_exact(run, run.play())
    assert run.refused == []


@pytest.mark.parametrize("drop", Drop)
@pytest.mark.parametrize("who", [(0,), (4,), (1, 3)])
def test_the_sum_of_those_who_stay_is_exact(drop: Drop, who: tuple[int, ...]) -> None:
    run = run_of(5, 3, dict.fromkeys(who, drop))
    assert_exact(run, run.play())


@pytest.mark.parametrize("drop", Drop)
def test_below_the_threshold_the_sum_stays_closed(drop: Drop) -> None:
    """And nobody who is left gives away a share before enough have consented."""
    run = run_of(5, 3, dict.fromkeys((0, 2, 4), drop))
    end = run.play()
    assert end == Failed(drop.value, "2 answered, 3 are needed")
    assert run.aggregator.close() == []
    revealed = sum(isinstance(message, Reveal) for message in run.heard)
    assert revealed == (2 if drop is Drop.BEFORE_REVEAL else 0)
    assert run.aggregator.round is Round.FAILED
    assert not run.aggregator.waiting


@given(
    count=st.integers(2, 7),
    drops=st.dictionaries(st.integers(0, 6), st.sampled_from(Drop), max_size=5),
    spare=st.integers(0, 6),
)
@settings(deadline=None, max_examples=60)
def test_whoever_drops_when_the_sum_is_exact_or_closed(count: int, drops: dict[int, Drop], spare: int) -> None:
    """And never do shares of both secrets of one member leave anybody's hands."""
    threshold = min(count, count // 2 + 1 + spare)
    run = run_of(count, threshold, {index: drop for index, drop in drops.items() if index < count})
    end = run.play()
    alive = count - len(run.drops)
    assert isinstance(end, Sum) == (alive >= threshold)
    if isinstance(end, Sum):
        assert_exact(run, end)
    opened = [message for message in run.heard if isinstance(message, Reveal)]
    seeds = {owner for message in opened for owner, _ in message.seeds}
    mask_keys = {owner for message in opened for owner, _ in message.mask_keys}
    assert not seeds & mask_keys


# --- what the aggregator sees -----------------------------------------------------------------------------------------


def masked_by(vectors: Callable[[Terms], Residues], session: int, length: int = 4096) -> Residues:
    """What the aggregator is sent by the first of three participants."""
    nodes = nodes_of(3)
    terms = terms_of(nodes, 2, length, session=session)
    given_ = {node.node_id: vectors(terms) for node in nodes}
    run = Run(terms, nodes, given_)
    run.play()
    message = next(one for one in run.heard if isinstance(one, Masked) and one.sender == nodes[0].node_id)
    return np.frombuffer(message.data, terms.dtype)


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_one_masked_vector_is_uniform_whatever_is_in_it(value: int) -> None:
    """Chi-squared over bytes and over their halves; 5 standard deviations are allowed."""
    seen = masked_by(lambda terms: np.full(terms.length, value, terms.dtype), session=value % 97)
    data = seen.view(np.uint8)
    for counts in (np.bincount(data, minlength=256), np.bincount(data & 15, minlength=16)):
        mean = counts.sum() / len(counts)
        chi = float(((counts - mean) ** 2 / mean).sum())
        assert abs(chi - len(counts) + 1) < 5 * np.sqrt(2 * len(counts))
    assert abs(np.corrcoef(seen[1:].astype(float), seen[:-1].astype(float))[0, 1]) < 5 / np.sqrt(len(seen))


def test_the_mask_does_not_depend_on_the_vector() -> None:
    """A one-time pad: the same secrets hide any vector, so a masked one fits every vector equally well."""
    rng = np.random.default_rng(1)
    one, other = (rng.integers(0, 2**32, 4096).astype("<u4") for _ in range(2))
    first, second = (masked_by(lambda terms, v=vector: v, session=5) for vector in (one, other))
    np.testing.assert_array_equal(first - one, second - other)


def test_no_mask_is_used_twice() -> None:
    zeros = [masked_by(lambda terms: np.zeros(terms.length, terms.dtype), session=session) for session in (1, 2)]
    assert (zeros[0] != zeros[1]).mean() > 0.99
    np.testing.assert_array_less(0, zeros[0].astype(float) + zeros[1].astype(float))


# --- an aggregator that cheats ----------------------------------------------------------------------------------------


class Stage:
    """Honest participants, led by hand to the round where the aggregator cheats."""

    def __init__(self, count: int = 4, threshold: int = 3) -> None:
        self.nodes = nodes_of(count)
        self.terms = terms_of(self.nodes, threshold)
        vectors = vectors_of(self.nodes, self.terms)
        self.all = [
            Participant(self.terms, node, verify, vectors[node.node_id], repeatable(node.node_id))
            for node in self.nodes
        ]
        self.keys = [one.begin() for one in self.all]
        self.roster = Roster(tuple(self.keys))

    def shares(self) -> list[Shares]:
        return [one.handle(self.roster) for one in self.all]  # type: ignore[misc]

    def delivery(self, shares: list[Shares], receiver: int) -> Delivery:
        me = self.nodes[receiver].node_id
        return Delivery(tuple((one.sender, dict(one.sealed)[me]) for one in shares if one.sender != me))

    def to_vectors(self) -> list[FromParticipant]:
        shares = self.shares()
        return [one.handle(self.delivery(shares, index)) for index, one in enumerate(self.all)]

    def ids(self, *which: int) -> tuple[str, ...]:
        return tuple(self.nodes[index].node_id for index in which)


def test_a_second_list_of_survivors_is_refused_and_ends_the_session() -> None:
    """This is how an aggregator would ask for both secrets of one member: once as survivor, once as dropped."""
    stage = Stage()
    stage.to_vectors()
    first = stage.all[0]
    first.handle(Survivors(stage.ids(0, 1, 2, 3)))
    with pytest.raises(ProtocolError, match="Survivors is not allowed"):
        first.handle(Survivors(stage.ids(0, 1, 2)))
    with pytest.raises(ProtocolError, match="not allowed"):
        first.handle(Consents(()))
    assert first.round is Round.FAILED


def test_different_lists_for_different_participants_open_nothing() -> None:
    stage = Stage()
    stage.to_vectors()
    lists = [stage.ids(0, 1, 2, 3), stage.ids(0, 1, 2, 3), stage.ids(0, 2, 3), stage.ids(0, 2, 3)]
    consents = [one.handle(Survivors(names)) for one, names in zip(stage.all, lists, strict=True)]
    everybody = Consents(tuple((consent.sender, consent.signature) for consent in consents))
    with pytest.raises(Unauthenticated, match="was not signed by it for this sum"):
        stage.all[0].handle(everybody)
    with pytest.raises(ProtocolError, match="only 2 are left"):
        stage.all[2].handle(Consents(everybody.signatures[:1] + everybody.signatures[2:3]))


def test_a_participant_reveals_once_and_then_knows_nothing() -> None:
    stage = Stage()
    stage.to_vectors()
    names = stage.ids(0, 1, 2)
    consents = [stage.all[index].handle(Survivors(names)) for index in range(3)]
    signed = Consents(tuple((consent.sender, consent.signature) for consent in consents))
    reveal = stage.all[0].handle(signed)
    assert isinstance(reveal, Reveal)
    assert [owner for owner, _ in reveal.seeds] == list(names)
    assert [owner for owner, _ in reveal.mask_keys] == list(stage.ids(3))
    with pytest.raises(ProtocolError, match="not allowed"):
        stage.all[0].handle(signed)
    assert not any(isinstance(part, bytes) and len(part) == 32 for part in vars(stage.all[0]).values())
    assert "mask_key" not in repr(vars(stage.all[1])["_secrets"])


@pytest.mark.parametrize(
    "names",
    [(1, 2, 3), (0, 1), (0, 0, 1, 2)],
    ids=["without the one it asks", "too few", "one twice"],
)
def test_lists_that_would_open_too_much_are_refused(names: tuple[int, ...]) -> None:
    stage = Stage()
    stage.to_vectors()
    with pytest.raises(ProtocolError, match=r"names a group|are left"):
        stage.all[0].handle(Survivors(stage.ids(*names)))


def test_strangers_in_a_list_are_refused() -> None:
    stage = Stage()
    stage.to_vectors()
    with pytest.raises(ProtocolError, match="strangers"):
        stage.all[0].handle(Survivors((*stage.ids(0, 1, 2), Node(99).node_id)))


def test_keys_that_the_aggregator_made_itself_are_refused() -> None:
    """Otherwise it could stand between all of them and take every mask off."""
    stage = Stage()
    forged = replace(stage.keys[1], mask_key=stage.keys[2].mask_key)
    with pytest.raises(Unauthenticated, match="keys of"):
        stage.all[0].handle(Roster((stage.keys[0], forged, *stage.keys[2:])))
    stage = Stage()
    with pytest.raises(ProtocolError, match="other keys for this node"):
        stage.all[1].handle(Roster((stage.keys[0], forged, *stage.keys[2:])))


def test_keys_of_another_session_are_refused() -> None:
    stage, nodes = Stage(), nodes_of(4)
    other = terms_of(nodes, 3, session=1)
    old = sign(other, replace(stage.keys[1], signature=b""), nodes[1])
    with pytest.raises(Unauthenticated):
        stage.all[0].handle(Roster((stage.keys[0], old, *stage.keys[2:])))


def test_public_keys_that_share_no_secret_are_refused_by_everybody() -> None:
    stage = Stage()
    weak = sign(stage.terms, replace(stage.keys[1], mask_key="00" * 32, signature=b""), stage.nodes[1])
    with pytest.raises(ProtocolError, match="low order"):
        stage.all[0].handle(Roster((stage.keys[0], weak, *stage.keys[2:])))
    with pytest.raises(ProtocolError, match="low order"):
        Aggregator(stage.terms, verify).handle(weak)


def test_a_vector_leaves_only_with_enough_others_to_hide_among() -> None:
    stage = Stage()
    shares = stage.shares()
    alone = Delivery(stage.delivery(shares, 0).sealed[:1])
    with pytest.raises(ProtocolError, match="only 2 are left"):
        stage.all[0].handle(alone)
    assert stage.all[0].round is Round.FAILED


def test_who_left_answers_nothing_more() -> None:
    stage = Stage()
    stage.all[0].forget()
    with pytest.raises(ProtocolError, match="not allowed"):
        stage.all[0].handle(stage.roster)
    with pytest.raises(ProtocolError, match="left the sum"):
        stage.all[0].begin()


# --- participants that cheat ------------------------------------------------------------------------------------------


def tampered(change: Callable[[FromParticipant, Run], FromParticipant], liar: int = 0) -> tuple[Run, Sum | Failed]:
    """A run in which one participant's messages are changed, and signed anew by it."""
    run = run_of(5, 3)
    node = run.nodes[liar]

    def tamper(message: FromParticipant) -> FromParticipant:
        if message.sender != node.node_id:
            return message
        changed = change(message, run)
        return message if changed is message else sign(run.terms, replace(changed, signature=b""), node)

    run.tamper = tamper
    return run, run.play()


def flipped(share: bytes) -> bytes:
    return bytes([share[0], share[1] ^ 1, *share[2:]])


def test_wrong_shares_of_one_do_not_close_a_sum_that_others_can_open() -> None:
    def lie(message: FromParticipant, run: Run) -> FromParticipant:
        if not isinstance(message, Reveal):
            return message
        return replace(message, seeds=tuple((owner, flipped(share)) for owner, share in message.seeds))

    run, end = tampered(lie)
    assert_exact(run, end)


def test_shares_damaged_on_their_way_do_not_close_a_sum_either() -> None:
    def damage(message: FromParticipant, run: Run) -> FromParticipant:
        if not isinstance(message, Shares):
            return message
        (receiver, sealed), *rest = message.sealed
        return replace(message, sealed=((receiver, flipped(sealed)), *rest))

    run, end = tampered(damage)
    assert_exact(run, end)


def test_a_promise_that_was_never_meant_closes_the_sum() -> None:
    """Better none than a wrong one: nobody could tell."""

    def promise_another(message: FromParticipant, run: Run) -> FromParticipant:
        if not isinstance(message, Keys):
            return message
        node = next(node for node in run.nodes if node.node_id == message.sender)
        other = sign(run.terms, replace(message, commitment="0" * 64, signature=b""), node)
        run.participants[message.sender]._keys[message.sender] = other
        return other

    _, end = tampered(promise_another)
    assert isinstance(end, Failed)
    assert "do not give it back" in end.reason


def refusal(change: Callable[[FromParticipant, Run], FromParticipant]) -> tuple[Run, AiosError]:
    run, end = tampered(change)
    assert isinstance(end, Sum), "the others go on without it"
    assert len(run.refused) >= 1
    assert isinstance(run.refused[0], AiosError)
    return run, run.refused[0]


def test_shares_for_too_few_are_refused() -> None:
    _, error = refusal(lambda m, run: replace(m, sealed=m.sealed[1:]) if isinstance(m, Shares) else m)
    assert "not for everybody" in error.message


def test_consent_to_another_list_is_refused() -> None:
    _, error = refusal(lambda m, run: replace(m, survivors=m.survivors[1:]) if isinstance(m, Consent) else m)
    assert "another list" in error.message


def test_shares_that_nobody_asked_for_are_refused() -> None:
    def both(message: FromParticipant, run: Run) -> FromParticipant:
        if not isinstance(message, Reveal):
            return message
        return replace(message, mask_keys=((message.seeds[1][0], bytes(SHARE_BYTES)),))

    _, error = refusal(both)
    assert "nobody asked for" in error.message


def test_unsigned_strange_and_repeated_messages_change_nothing() -> None:
    stage = Stage()
    aggregator = Aggregator(stage.terms, verify)
    stranger = sign(stage.terms, replace(stage.keys[0], sender=Node(50).node_id, signature=b""), Node(50))
    with pytest.raises(ProtocolError, match="not expected"):
        aggregator.handle(stranger)
    with pytest.raises(Unauthenticated):
        aggregator.handle(replace(stage.keys[0], signature=bytes(64)))
    assert aggregator.handle(stage.keys[0]) == []
    with pytest.raises(ProtocolError, match="said twice"):
        aggregator.handle(stage.keys[0])
    with pytest.raises(ProtocolError, match="not allowed"):
        aggregator.handle(Masked(stage.nodes[1].node_id, b""))
    assert aggregator.waiting == {node.node_id for node in stage.nodes[1:]}


def test_a_vector_of_another_size_is_refused_before_it_is_hashed() -> None:
    stage = Stage()
    aggregator = Aggregator(stage.terms, verify)
    for key in stage.keys:
        aggregator.handle(key)
    for shares in stage.shares():
        aggregator.handle(shares)
    with pytest.raises(ProtocolError, match="a vector of 19 bytes instead of 20"):
        aggregator.handle(Masked(stage.nodes[0].node_id, bytes(19)))


def test_a_vector_that_comes_too_late_stays_hidden_by_its_own_mask() -> None:
    """By then the others have given away the mask key of the one who dropped out: its seed they keep."""
    run = run_of(4, 3, {0: Drop.BEFORE_CONSENT}, length=4096)
    first, others = run.nodes[0].node_id, [node.node_id for node in run.nodes[1:]]
    late: list[Masked] = []

    def hold_back(message: FromParticipant) -> FromParticipant:
        if isinstance(message, Masked) and message.sender == first:
            late.append(message)
            return replace(message, signature=bytes(64))  # does not arrive in time
        return message

    run.tamper = hold_back
    end = run.play()
    assert isinstance(end, Sum)
    assert end.contributors == tuple(others)
    reveals = [message for message in run.heard if isinstance(message, Reveal)]
    assert not any(owner == first for message in reveals for owner, _ in message.seeds)
    shares = {run.terms.place(message.sender): dict(message.mask_keys)[first] for message in reveals[:3]}
    mask_key = combine(shares)
    vector = np.frombuffer(late[0].data, run.terms.dtype).copy()
    for message in run.heard:
        if isinstance(message, Keys) and message.sender != first:
            seed = keys.mask_seed(run.terms.digest, mask_key, bytes.fromhex(message.mask_key))
            apply_mask(vector, seed, -1 if first < message.sender else 1)
    counts = np.bincount((vector - run.vectors[first]).view(np.uint8), minlength=256)
    chi = float(((counts - 64) ** 2 / 64).sum())
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)


# --- terms ------------------------------------------------------------------------------------------------------------

IDS = [node.node_id for node in nodes_of(4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 2}, "more than half"),
        ({"threshold": 5}, "more than half"),
        ({"participants": tuple(IDS[:1])}, "from 2 to"),
        ({"participants": (*IDS, IDS[0])}, "each once"),
        ({"participants": (*IDS[:3], "x")}, "64 hexadecimal"),
        ({"session": "short"}, "64 hexadecimal"),
        ({"length": 0}, "numbers"),
        ({"length": 1 << 40}, "numbers"),
        ({"bits": 16}, "bits"),
    ],
)
def test_terms_under_which_no_sum_is_private_are_refused(change: dict[str, object], message: str) -> None:
    fields = {"session": "1" * 64, "subject": "2" * 64, "participants": tuple(IDS), "threshold": 3, "length": 5}
    with pytest.raises(BadConfig, match=message):
        Terms(**{**fields, **change})  # type: ignore[arg-type]


def test_terms_travel_as_canonical_json() -> None:
    terms = terms_of(nodes_of(4), 3)
    data = terms.to_bytes()
    assert Terms.from_bytes(data) == terms
    assert Terms.from_bytes(data).digest == terms.digest
    with pytest.raises(AiosError, match="canonical"):
        Terms.from_bytes(json.dumps(json.loads(data)).encode())
    with pytest.raises(AiosError, match="allowed"):
        Terms.from_bytes(bytes(1 << 20))
    assert terms_of(nodes_of(4), 4).digest != terms.digest


def test_vectors_that_do_not_fit_the_terms_are_refused() -> None:
    stage = Stage()
    for values in (np.zeros(4, "<u4"), np.zeros(5, "<u8"), np.zeros((5, 1), "<u4")):
        with pytest.raises(BadRequest, match="terms say"):
            Participant(stage.terms, stage.nodes[0], verify, values)
    with pytest.raises(BadRequest, match="no part"):
        Participant(stage.terms, Node(77), verify, np.zeros(5, "<u4"))


def test_nothing_is_told_to_those_who_are_gone() -> None:
    run = run_of(4, 3, {0: Drop.BEFORE_SHARES})
    events = [event for one in run.participants.values() for event in run.aggregator.handle(one.begin())]
    answers = [run.participants[event.receiver].handle(event.message) for event in events if isinstance(event, Tell)]
    for answer in answers:
        if answer.sender != run.nodes[0].node_id:
            run.aggregator.handle(answer)  # type: ignore[arg-type]
    told = [event.receiver for event in run.aggregator.close() if isinstance(event, Tell)]
    assert told == [node.node_id for node in run.nodes[1:]]
