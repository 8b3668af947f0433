"""What secure sums are built of: shares, rings, layouts, and bytes from strangers."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from secure_sums import Drop, Run, nodes_of, repeatable, terms_of, vectors_of

from aios_node.delta.privacy.aggregation.masks import ADD, TAKE, apply_mask
from aios_node.delta.privacy.aggregation.messages import Consent, Consents, Delivery, Masked, Message, Roster, Survivors
from aios_node.delta.privacy.aggregation.ring import FixedPoint, from_ring, to_ring
from aios_node.delta.privacy.aggregation.shamir import PRIME, SHARE_BYTES, combine, split
from aios_node.delta.privacy.aggregation.wire import METADATA_BYTES, decode, encode
from aios_node.delta.privacy.layout import Layout
from aios_node.engine.errors import BadConfig, BadRequest, BadWeights, Corrupt, ProtocolError, TooLarge

# --- shares -----------------------------------------------------------------------------------------------------------


@given(secret=st.binary(min_size=32, max_size=32), count=st.integers(1, 9), data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, count, threshold)
    chosen = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    assert combine({place: shares[place - 1] for place in chosen}) == secret


@given(
    secret=st.binary(min_size=32, max_size=32), other=st.binary(min_size=32, max_size=32), threshold=st.integers(2, 6)
)
@settings(deadline=None, max_examples=40)
def test_one_share_less_fits_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """Perfect secrecy: for any other secret there is a last share that leads to it."""
    shares = split(secret, threshold, threshold)
    known = {place: int.from_bytes(shares[place - 1]) for place in range(1, threshold)}
    points = {0: int.from_bytes(other), **known}
    missing = 0  # the polynomial through the other secret and the known shares, at the last place
    for place, value in points.items():
        for rest in points:
            if rest != place:
                value = value * (threshold - rest) * pow(place - rest, -1, PRIME) % PRIME
        missing = (missing + value) % PRIME
    last = {threshold: missing.to_bytes(SHARE_BYTES)}
    assert combine({**{place: shares[place - 1] for place in known}, **last}) == other


def test_shares_are_spread_over_the_field_and_never_the_same() -> None:
    first, second = split(bytes(32), 3, 2), split(bytes(32), 3, 2)
    assert not set(first) & set(second)
    assert all(int.from_bytes(share) >> 400 for share in first)


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {0: bytes(SHARE_BYTES)},
        {1: bytes(SHARE_BYTES - 1)},
        {1: PRIME.to_bytes(SHARE_BYTES)},
        {1: (1 << 300).to_bytes(SHARE_BYTES)},
        {5000: bytes(SHARE_BYTES)},
    ],
)
def test_what_are_no_shares_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(Corrupt):
        combine(shares)


@pytest.mark.parametrize(("size", "count", "threshold"), [(31, 3, 2), (32, 3, 4), (32, 3, 0), (32, 5000, 3)])
def test_secrets_that_cannot_be_shared_are_refused(size: int, count: int, threshold: int) -> None:
    with pytest.raises(BadRequest, match="shares"):
        split(bytes(size), count, threshold)


# --- rings ------------------------------------------------------------------------------------------------------------


@given(
    values=npst.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(0, 6)), elements=st.floats(-1, 1)),
    limit=st.floats(1e-3, 1e3),
    bits=st.sampled_from([32, 64]),
)
@settings(deadline=None)
def test_a_sum_in_fixed_point_is_off_by_half_a_step_for_each_summand(
    values: NDArray[np.float64], limit: float, bits: int
) -> None:
    fixed = FixedPoint(limit, len(values), bits)
    vectors = [fixed.encode(row * limit) for row in values]
    total = sum(vectors[1:], start=vectors[0])
    exact = (values * limit).sum(axis=0)
    assert (np.abs(fixed.decode(total) - exact) <= fixed.error * (1 + 1e-9) + 1e-9 * limit).all()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("summands", [1, 8, 1000])
def test_the_largest_sums_keep_their_sign(bits: int, summands: int) -> None:
    fixed = FixedPoint(3.0, summands, bits)
    for value in (3.0, -3.0):
        total = (fixed.encode(np.array([value])) * np.array(summands, f"u{bits // 8}")).astype(f"<u{bits // 8}")
        assert fixed.decode(total)[0] == pytest.approx(value * summands, rel=1e-5)


@pytest.mark.parametrize("value", [1.001, -2.0, np.nan, np.inf])
def test_numbers_beyond_the_range_are_refused_not_cut(value: float) -> None:
    with pytest.raises(BadWeights, match="beyond"):
        FixedPoint(1.0, 8).encode(np.array([0.5, value]))


@pytest.mark.parametrize(("limit", "summands", "bits"), [(0.0, 2, 32), (np.inf, 2, 32), (1.0, 0, 32), (1.0, 2, 31)])
def test_rings_that_cannot_be_are_refused(limit: float, summands: int, bits: int) -> None:
    with pytest.raises(BadConfig):
        FixedPoint(limit, summands, bits)


def test_residues_of_another_ring_are_refused() -> None:
    with pytest.raises(BadRequest, match="ring"):
        FixedPoint(1.0, 2, 64).decode(np.zeros(1, "<u4"))


@given(numbers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    for bits in (32, 64):
        np.testing.assert_array_equal(from_ring(to_ring(np.array(numbers, np.int64), bits)), numbers)


@pytest.mark.parametrize("length", [0, 1, 16_383, 16_384, 16_385, 40_000])
def test_masks_come_off_and_do_not_depend_on_how_they_are_made(length: int) -> None:
    vector = np.arange(length, dtype="<u4")
    masked = vector.copy()
    apply_mask(masked, bytes(32), ADD)
    longer = np.zeros(length + 9, "<u4")
    apply_mask(longer, bytes(32), ADD)
    np.testing.assert_array_equal(masked - vector, longer[:length])
    apply_mask(masked, bytes(32), TAKE)
    np.testing.assert_array_equal(masked, vector)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_an_update_is_one_vector_and_comes_back() -> None:
    update = {"b": np.arange(6.0).reshape(2, 3), "a": np.array(7.0), "c": np.zeros((0, 4))}
    layout = Layout.of(update)
    flat = layout.flat(update)
    np.testing.assert_array_equal(flat, [7, 0, 1, 2, 3, 4, 5])
    parts = layout.parts(flat)
    assert {name: part.shape for name, part in parts.items()} == {"a": (), "b": (2, 3), "c": (0, 4)}
    assert layout.digest != Layout.of({**update, "b": np.zeros((3, 2))}).digest
    assert Layout.of({}).flat({}).size == 0
    with pytest.raises(BadRequest, match="another layout"):
        layout.flat({**update, "b": np.zeros((3, 2))})
    with pytest.raises(BadRequest, match="7 numbers"):
        layout.parts(np.zeros(8))


# --- bytes from strangers ---------------------------------------------------------------------------------------------

NODES = nodes_of(4)
TERMS = terms_of(NODES, 3)


def spoken() -> list[Message]:
    """One message of every kind."""
    run = Run(TERMS, NODES, vectors_of(NODES, TERMS), {NODES[0].node_id: Drop.BEFORE_VECTOR})
    run.play()
    kinds: dict[str, Message] = {message.kind: message for message in run.heard}
    roster = Roster(tuple(sorted((m for m in run.heard if m.kind == "keys"), key=lambda m: m.sender)))  # type: ignore[arg-type]
    ids = tuple(node.node_id for node in NODES)
    sealed = ((ids[0], bytes(148)), (ids[2], bytes(148)))
    told = (roster, Delivery(sealed), Survivors(ids), Consents(((ids[1], bytes(64)),)))
    return [*kinds.values(), *told]


SPOKEN = spoken()


@pytest.mark.parametrize("message", SPOKEN, ids=lambda message: message.kind)
def test_messages_survive_the_wire(message: Message) -> None:
    metadata, data = encode(message)
    found = decode(TERMS, metadata, data)
    assert found == message
    assert encode(found) == (metadata, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TERMS.participants),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(message=st.sampled_from(SPOKEN), data=st.data(), size=st.sampled_from([0, 19, 20]))
@settings(deadline=None, max_examples=250)
def test_damaged_messages_raise_only_what_is_documented(message: Message, data: st.DataObject, size: int) -> None:
    fields: dict[str, Any] = json.loads(encode(message)[0])
    name = data.draw(st.sampled_from([*fields, "more"]))
    change = data.draw(st.sampled_from(["drop", "replace", "inside"]))
    if change == "drop":
        fields.pop(name, None)
    elif change == "inside" and isinstance(fields.get(name), list) and fields[name]:
        fields[name][data.draw(st.integers(0, len(fields[name]) - 1))] = data.draw(JSON)
    else:
        fields[name] = data.draw(JSON)
    try:
        found = decode(TERMS, json.dumps(fields).encode(), bytes(size))
    except (ProtocolError, TooLarge):
        return
    assert encode(found) == (encode(found)[0], bytes(size))


@given(metadata=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_raise_only_what_is_documented(metadata: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(TERMS, metadata)


def test_sizes_are_looked_at_first() -> None:
    """A message that is too large costs nothing but its own bytes."""
    large, vector = b"[" * (METADATA_BYTES + 1), bytes(TERMS.vector_bytes + 1)
    tracemalloc.start()
    try:
        for metadata, data in ((large, b""), (b"{}", vector)):
            with pytest.raises(TooLarge):
                decode(TERMS, metadata, data)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_lists_longer_than_the_participants_are_refused() -> None:
    ids = sorted(f"{number:064x}" for number in range(5))
    for message in (Survivors(tuple(ids)), Consent(ids[0], tuple(ids), (), bytes(64))):
        with pytest.raises(ProtocolError, match="at most 4"):
            decode(TERMS, *encode(message))


def test_vectors_are_refused_beside_messages_that_carry_none() -> None:
    with pytest.raises(ProtocolError, match="20 data bytes"):
        decode(TERMS, encode(Survivors(()))[0], bytes(20))
    with pytest.raises(ProtocolError, match="0 data bytes"):
        decode(TERMS, encode(Masked(TERMS.participants[0], b"", bytes(64)))[0])


def test_repeatable_bytes_of_tests_differ_by_seed() -> None:
    assert repeatable(1)(8) != repeatable(2)(8)
