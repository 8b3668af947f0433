"""Descriptors, commands and searches from outside: understood exactly, or refused with the project's errors."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow.flight as fl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import AiosError, BadRequest, TooLarge
from aios_node.flight.descriptors import (
    EncodeTarget,
    MemoryTarget,
    SearchTarget,
    SyncTarget,
    WeightsTarget,
    parse_command,
    parse_descriptor,
    parse_json,
    parse_path,
)
from aios_node.flight.limits import Limits
from aios_node.flight.ports import SearchRequest
from aios_node.flight.queries import parse_search, result_schema, search_fields
from aios_node.memory.retrieve import HITS
from aios_node.memory.schema import MODALITIES

LIMITS = Limits()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("weights/m", WeightsTarget("m")),
        ("weights/minilm.int8/0123abc", WeightsTarget("minilm.int8", "0123abc")),
        ("memory/notes", MemoryTarget("notes")),
        ("encode", EncodeTarget(None)),
        ("encode/m", EncodeTarget("m")),
        ("search/notes", SearchTarget(SearchRequest("notes"))),
        ("sync", SyncTarget()),
    ],
)
def test_paths_in_one_component_or_many(path: str, target: object) -> None:
    assert parse_path([path.encode()]) == target
    assert parse_path([part.encode() for part in path.split("/")]) == target


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_path_surprises(components: list[bytes]) -> None:
    try:
        target = parse_path(components)
    except BadRequest:
        return
    assert not any(part in {"", ".", ".."} for part in vars(target).values() if isinstance(part, str))


@pytest.mark.parametrize("path", [b"\xff\xfe", b"", b"/", b"weights/", b"weights//m", b"weights/m/", b"memory/a/b"])
def test_paths_that_are_none(path: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_path([path])


@given(st.binary(max_size=100))
def test_no_bytes_surprise_as_a_command(data: bytes) -> None:
    with pytest.raises(AiosError):
        parse_command(data, LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(["table", "text", "vector", "image", "k", "filter", "alpha", "scope", "columns", "space", "x"])


@given(st.sampled_from(["search", "weights", "x"]), st.dictionaries(fields, json_values, max_size=5))
def test_no_value_surprises_in_a_command(op: str, rest: dict[str, Any]) -> None:
    command = json.dumps({"v": 1, "op": op, "table": "notes", "text": "x"} | rest).encode()
    try:
        target = parse_command(command, LIMITS)
    except AiosError:
        return
    assert isinstance(target, SearchTarget)
    assert math.isfinite(target.request.alpha)


numbers = st.floats(allow_nan=False, allow_infinity=False)
requests = st.builds(
    SearchRequest,
    table=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    vector=st.none() | st.lists(numbers, min_size=1, max_size=4).map(tuple),
    image=st.none() | st.binary(min_size=1, max_size=20),
    audio=st.none() | st.binary(min_size=1, max_size=20),
    k=st.integers(1, LIMITS.k),
    filter=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    alpha=numbers,
    beta=numbers,
    scope=st.sampled_from(["local", "network"]),
    modalities=st.none() | st.permutations(MODALITIES).map(tuple),
    namespace=st.none() | st.just("home"),
    columns=st.none() | st.permutations(HITS.names).map(lambda names: tuple(names[:3])),
    space=st.none() | st.just("s"),
)


@given(requests)
def test_searches_survive_commands_and_tickets(request: SearchRequest) -> None:
    travelled = json.loads(json.dumps(search_fields(request)))
    assert parse_search(travelled, LIMITS) == request
    assert result_schema(request).names == list(request.columns or HITS.names)


def test_the_search_of_an_exchange_carries_no_query() -> None:
    command = b'{"v": 1, "op": "search", "table": "notes", "k": 3%s}'
    target = parse_command(command % b"", LIMITS, exchange=True)
    assert target == SearchTarget(SearchRequest("notes", k=3))
    with pytest.raises(BadRequest, match="rows of the exchange"):
        parse_command(command % b', "text": "x"', LIMITS, exchange=True)


def test_a_descriptor_without_a_kind() -> None:
    with pytest.raises(BadRequest, match="path"):
        parse_descriptor(type("Odd", (), {"descriptor_type": fl.DescriptorType.UNKNOWN})(), LIMITS)


@pytest.mark.parametrize(
    "data", [b"", b"nul", b"1", b'"x"', b"{} {}", b"\xff", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 9999, b"9" * 9999]
)
def test_json_that_is_no_object(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_json(data, 100_000, "the command")


def test_json_that_is_too_large() -> None:
    with pytest.raises(TooLarge, match="the command"):
        parse_json(b"{}" + b" " * 99, 100, "the command")
