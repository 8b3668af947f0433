"""Messages as bytes: nothing is lost on the way, and nothing that is not a message gets in."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.delta.exchange.parts import LINEAGE
from aios_node.delta.exchange.wire import (
    DATA_BYTES,
    METADATA_BYTES,
    OFFERS_PER_MESSAGE,
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Have,
    Hello,
    Message,
    Offers,
    Ping,
    Request,
    Share,
    Want,
    decode,
    encode,
)
from aios_node.delta.offers import Offer, PackageInfo, Partial, Resume, Source
from aios_node.engine.errors import Corrupt, DataError, ProtocolError, TooLarge
from aios_node.engine.weights.names import canonical_json

V1, V2, SHA = "1" * 64, "2" * 64, "a" * 64
FULL = PackageInfo(10, SHA, "full", None, 10, 10)
DELTA = PackageInfo(10, SHA, "delta", V1, 10, 10)
EXAMPLES: list[Message] = [
    Hello((1, 2), ("raw", "zstd")),
    Offers((), last=True),
    Offers((Offer("m", V2, (V1,), 5, "int8", Source("m.fp", V1), SHA), Offer("n", V1)), last=False),
    Want(0, "m", V2, None),
    Want(3, "m.int8", V2, V1, 1, Resume(SHA, ((0, 3), (7, 8)))),
    Want(4, "m", V2, V1, root=SHA),
    Offers((Offer("m", V2, (V1,), partial=Partial(V1, SHA, ("raw", "zstd"))),), last=True),
    Share(2, FULL, SHA, origin=True, start=5, first=0, data=bytes(64)),
    Share(2, DELTA, SHA, origin=False, start=0, first=0, data=b""),
    Have(2, ((0, 3), (7, 8))),
    Request(2, ((1, 2),), ()),
    Chunk(0, 2, 32, 99, b"data", FULL),
    Chunk(0, 3, 48, 99, b"x"),
    Commit(0, 1, DELTA),
    Committed(7),
    Abort(1, "sender", "no_base", "the base is not here: ü"),
    Abort(None, None, "protocol_error", "no"),
    Done(),
    Ping(),
]

versions = st.text("0123456789abcdef", min_size=64, max_size=64)
models = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
offers = st.builds(
    Offer,
    models,
    versions,
    st.lists(versions, max_size=4).map(tuple),
    counts,
    st.sampled_from(["none", "int4", "mixed"]),
    st.none() | st.builds(Source, models, versions),
    st.none() | versions,
)
wants = st.builds(Want, counts, models, versions, st.none() | versions, counts)


@given(st.one_of(st.sampled_from(EXAMPLES), st.builds(Offers, st.tuples(offers), st.booleans()), wants), counts)
def test_what_is_encoded_is_decoded(message: Message, number: int) -> None:
    metadata, data = encode(message, number)
    assert decode(metadata, data) == (number, message)
    assert json.loads(metadata)["type"] == message.kind
    assert encode(message, number)[0] == metadata


@given(st.sampled_from(EXAMPLES), st.data())
def test_damage_is_noticed(message: Message, draw: st.DataObject) -> None:
    metadata, data = encode(message, 5)
    changed = bytearray(metadata)
    changed[draw.draw(st.integers(0, len(changed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises((ProtocolError, DataError)):
        decode(bytes(changed), data)
    with pytest.raises((ProtocolError, DataError)):
        decode(metadata[: draw.draw(st.integers(0, len(metadata) - 1))], data)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises((ProtocolError, DataError)):
        decode(noise)


def signed(fields: dict[str, object]) -> bytes:
    return canonical_json({**fields, "sum": zlib.crc32(canonical_json(fields))})


WANT = {
    "type": "want",
    "n": 0,
    "transfer": 0,
    "model": "m",
    "version": V1,
    "base": None,
    "round": 0,
    "resume": None,
}
COMMIT = {"type": "commit", "n": 0, "transfer": 0, "round": 0, "package": vars(FULL)}
ABORT = {"type": "abort", "n": 0, "transfer": 0, "role": "sender", "code": "x", "message": ""}
OFFER = {
    "model": "m",
    "version": V1,
    "lineage": [],
    "bytes": 1,
    "quant": "none",
    "derived_from": None,
    "publisher": None,
}


@pytest.mark.parametrize(
    "fields",
    [
        WANT | {"model": "../etc/passwd"},
        WANT | {"model": ".hidden"},
        WANT | {"model": "m\n"},
        WANT | {"model": ["m"]},
        WANT | {"version": V1[:-1]},
        WANT | {"version": V1.replace("1", "A")},
        WANT | {"base": ""},
        WANT | {"transfer": -1},
        WANT | {"transfer": True},
        WANT | {"transfer": 1.0},
        WANT | {"transfer": 2**63},
        WANT | {"more": 1},
        WANT | {"n": None},
        WANT | {"type": "bogus"},
        WANT | {"type": ["want"]},
        WANT | {"resume": []},
        WANT | {"resume": {"sha256": SHA}},
        WANT | {"resume": {"sha256": SHA, "missing": [], "more": 1}},
        WANT | {"resume": {"sha256": SHA, "missing": [[3, 3]]}},
        WANT | {"resume": {"sha256": SHA, "missing": [[5, 7], [6, 9]]}},
        WANT | {"resume": {"sha256": SHA, "missing": [[-1, 2]]}},
        WANT | {"resume": {"sha256": SHA, "missing": [[0, 1, 2]]}},
        COMMIT | {"package": None},
        COMMIT | {"package": {**vars(FULL), "bytes": 0}},
        COMMIT | {"package": {**vars(FULL), "mode": "sparse"}},
        COMMIT | {"package": {**vars(FULL), "base": V1}},
        COMMIT | {"package": {**vars(DELTA), "base": None}},
        ABORT | {"role": None},
        ABORT | {"transfer": None},
        ABORT | {"role": "bystander"},
        ABORT | {"code": "Not A Code"},
        ABORT | {"message": "line\nbreak"},
        ABORT | {"message": "x" * 401},
        {"type": "offer", "n": 0, "last": 1, "offers": []},
        {"type": "offer", "n": 0, "last": True, "offers": [OFFER | {"lineage": [V1] * (LINEAGE + 1)}]},
        {"type": "offer", "n": 0, "last": True, "offers": [OFFER] * (OFFERS_PER_MESSAGE + 1)},
        {"type": "offer", "n": 0, "last": True, "offers": [OFFER | {"path": "x"}]},
        {"type": "hello", "n": 0, "protocols": ["1"], "codecs": ["raw"]},
        {"type": "hello", "n": 0, "protocols": [1], "codecs": ["raw"] * 65},
        {"type": "done", "n": 0, "extra": 0},
    ],
)
def test_fields_are_read_strictly(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        decode(signed(fields))


@pytest.mark.parametrize("metadata", [b"", b"{}", b"[1]", b"null", b'{"n":0,"n":0}', b"[" * 60000, b"9" * 9999])
def test_what_is_no_object_with_a_sum_is_refused(metadata: bytes) -> None:
    with pytest.raises((ProtocolError, Corrupt)):
        decode(metadata)


def test_sizes_are_bounded() -> None:
    with pytest.raises(TooLarge):
        decode(b" " * (METADATA_BYTES + 1))
    with pytest.raises(TooLarge):
        decode(encode(Ping(), 0)[0], b"x" * (DATA_BYTES + 1))
    with pytest.raises(ProtocolError, match="only chunks"):
        decode(encode(Ping(), 0)[0], b"x")


def test_the_longest_offers_fit_into_one_message() -> None:
    longest = Offer("m" * 96, V1, (V2,) * LINEAGE, 2**62, "int8", Source("s" * 96, V2), SHA)
    message = Offers((longest,) * OFFERS_PER_MESSAGE, last=True)
    assert len(encode(message, 0)[0]) < METADATA_BYTES
    longer = Offer("m", V1, (V2,) * (LINEAGE + 50))
    assert decode(encode(Offers((longer,), last=True), 0)[0])[1] == Offers(
        (Offer("m", V1, (V2,) * LINEAGE),), last=True
    )


def test_hello_may_grow_and_messages_of_aborts_are_cleaned() -> None:
    grown = signed({"type": "hello", "n": 0, "protocols": [1], "codecs": ["raw"], "colour": "blue"})
    assert decode(grown) == (0, Hello((1,), ("raw",)))
    loud = Abort(None, None, "internal", "two\nlines \x1b[31m" + "x" * 999)
    cleaned = decode(encode(loud, 0)[0])[1]
    assert isinstance(cleaned, Abort)
    assert cleaned.message.startswith("two lines  [31mxxx")
    assert len(cleaned.message) == 400
