"""Who may call, and that rights are asked for before any work."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_fakes import FakePorts, Serve

from aios_node.flight.auth import by_token
from aios_node.flight.ports import Principal

WEIGHTS = fl.FlightDescriptor.for_path("weights", "tiny")


def bearer(value: str) -> fl.FlightCallOptions:
    return fl.FlightCallOptions(headers=[(b"authorization", value.encode())])


@pytest.fixture
def client(serve: Serve, fakes: FakePorts) -> Any:
    fakes.access.tokens["good"] = Principal("ann", "client")
    fakes.access.grants = {"ann": {("read", "weights/tiny"), ("read", "encode/tiny"), ("write", "memory/notes")}}
    return serve.client(serve.listener(identify=by_token(fakes.access)))


def code(error: Exception) -> str:
    return json.loads(error.extra_info)["code"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [
        fl.FlightCallOptions(),
        bearer("Bearer wrong"),
        bearer("Bearer"),
        bearer("Bearer "),
        bearer("Basic Z29vZA=="),
        bearer("good"),
        bearer("Bearer " + "x" * 5000),
        fl.FlightCallOptions(headers=[(b"authorization", b"Bearer good"), (b"authorization", b"Bearer good")]),
    ],
)
def test_without_a_valid_token_nothing_works(client: Any, fakes: FakePorts, options: Any) -> None:
    calls = [
        lambda: list(client.list_flights(options=options)),
        lambda: client.get_flight_info(WEIGHTS, options),
        lambda: client.do_get(fl.Ticket(b"x"), options).read_all(),
        lambda: list(client.list_actions(options)),
        lambda: list(client.do_action("health", options)),
    ]
    for call in calls:
        with pytest.raises(fl.FlightUnauthenticatedError) as caught:
            call()
        assert code(caught.value) == "unauthenticated"
    assert fakes.access.checked == []


@pytest.mark.parametrize("value", ["Bearer good", "bearer good", "BEARER  good"])
def test_a_valid_token(client: Any, value: str) -> None:
    assert client.get_flight_info(WEIGHTS, bearer(value)).total_records == 3


def test_listings_show_only_what_may_be_read(client: Any) -> None:
    found = [b"/".join(i.descriptor.path) for i in client.list_flights(options=bearer("Bearer good"))]
    assert found == [b"weights/tiny"]


@pytest.mark.parametrize(
    ("call", "right", "resource"),
    [
        (lambda c, o: c.get_flight_info(fl.FlightDescriptor.for_path("weights", "other"), o), "read", "weights/other"),
        (lambda c, o: c.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes"), o), "read", "memory/notes"),
        (
            lambda c, o: c.get_flight_info(
                fl.FlightDescriptor.for_command(b'{"v":1,"op":"search","table":"notes","text":"x"}'), o
            ),
            "read",
            "memory/notes",
        ),
        (lambda c, o: list(c.do_action(fl.Action("activate", b'{"model": "tiny"}'), o)), "admin", "weights/tiny"),
        (lambda c, o: list(c.do_action(fl.Action("memory_delete", b'{"table": "t"}'), o)), "write", "memory/t"),
        (lambda c, o: list(c.do_action(fl.Action("sync", b""), o)), "admin", "node/sync"),
        (lambda c, o: list(c.do_action(fl.Action("status", b""), o)), "read", "node/status"),
    ],
)
def test_each_call_asks_for_its_right(client: Any, fakes: FakePorts, call: Any, right: str, resource: str) -> None:
    fakes.memory.search = fakes.memory.table = fakes.weights.resolve = fakes.control.call = None  # no work is done
    with pytest.raises(fl.FlightUnauthorizedError) as caught:
        call(client, bearer("Bearer good"))
    assert code(caught.value) == "unauthorized"
    assert fakes.access.checked == [("ann", right, resource)]


def test_a_put_needs_write_and_an_exchange_read(client: Any, fakes: FakePorts) -> None:
    options = bearer("Bearer good")
    rows = pa.table({"text": ["a"]})
    writer, answers = client.do_put(fl.FlightDescriptor.for_path("memory", "notes"), rows.schema, options)
    with writer:
        writer.write_table(rows)
        writer.done_writing()
        assert json.loads(answers.read().to_pybytes())["rows"] == 1
    for path in (("encode", "tiny"), ("encode",)):
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path), options)
        writer.begin(rows.schema)
        writer.write_table(rows)
        assert reader.read_chunk().data.num_rows == 1
        writer.close()
    with pytest.raises(fl.FlightUnauthorizedError):
        ask_in_vain(client, fl.FlightDescriptor.for_path("search", "notes"), rows, options)


def ask_in_vain(client: Any, descriptor: fl.FlightDescriptor, rows: pa.Table, options: Any) -> None:
    """An exchange that is refused: the refusal may show in the first write or as late as the first read."""
    writer, reader = client.do_exchange(descriptor, options)
    try:
        writer.begin(rows.schema)
        writer.write_table(rows)
        reader.read_chunk()
    finally:
        with contextlib.suppress(fl.FlightUnauthorizedError):
            writer.close()


def test_a_ticket_is_no_right(client: Any, fakes: FakePorts, serve: Serve) -> None:
    fakes.access.tokens["other"] = Principal("bob", "client")
    info = client.get_flight_info(WEIGHTS, bearer("Bearer good"))
    with pytest.raises(fl.FlightUnauthorizedError):
        client.do_get(info.endpoints[0].ticket, bearer("Bearer other")).read_all()
    assert client.do_get(info.endpoints[0].ticket, bearer("Bearer good")).read_all().num_rows == 2


def test_sync_is_not_for_clients(client: Any) -> None:
    _, reader = client.do_exchange(fl.FlightDescriptor.for_path("sync"), bearer("Bearer good"))
    with pytest.raises(fl.FlightUnauthorizedError):
        reader.read_chunk()


def test_health_needs_an_identity_but_no_right(client: Any, fakes: FakePorts) -> None:
    assert len(list(client.do_action("health", bearer("Bearer good")))) == 1
    assert fakes.access.checked == []
