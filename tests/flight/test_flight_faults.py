"""Ports that raise anything at any moment: clients get Flight errors with details, never a traceback."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_fakes import NOTES, FakePorts, Serve

from aios_node.engine import errors
from aios_node.engine.errors import AiosError
from aios_node.flight.errors import _tree
from aios_node.flight.ports import Action

SECRET = "secret-5271"
TEXT = pa.schema([("text", pa.string())])
WEIGHTS = fl.FlightDescriptor.for_path("weights", "tiny")
TABLE = fl.FlightDescriptor.for_path("memory", "notes")
SEARCH = fl.FlightDescriptor.for_command(b'{"v": 1, "op": "search", "table": "notes", "text": "x"}')


def get(client: Any, descriptor: Any) -> None:
    client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket).read_all()


def put(client: Any, descriptor: Any) -> None:
    writer, answers = client.do_put(descriptor, TEXT)
    try:
        writer.write_table(pa.table({"text": ["a"]}))
        writer.done_writing()
        answers.read()  # None when the put failed: why, only close says
    except pa.ArrowException:
        close(writer)
        raise
    writer.close()


def exchange(client: Any, descriptor: Any) -> None:
    writer, reader = client.do_exchange(descriptor)
    try:
        writer.begin(TEXT)
        writer.write_table(pa.table({"text": ["a"]}))
        writer.done_writing()
        reader.read_all()
    finally:
        close(writer)


def close(writer: Any) -> None:
    try:
        writer.close()
    except pa.ArrowException:
        return  # the same error once more


CALLS: dict[str, tuple[str, str, Callable[[Any], object]]] = {
    "list_flights: models": ("weights", "models", lambda c: list(c.list_flights())),
    "list_flights: resolve": ("weights", "resolve", lambda c: list(c.list_flights())),
    "list_flights: tables": ("memory", "tables", lambda c: list(c.list_flights())),
    "list_flights: check": ("access", "check", lambda c: list(c.list_flights())),
    "info: check": ("access", "check", lambda c: c.get_flight_info(WEIGHTS)),
    "info: resolve": ("weights", "resolve", lambda c: c.get_flight_info(WEIGHTS)),
    "info: table": ("memory", "table", lambda c: c.get_flight_info(TABLE)),
    "info: search": ("memory", "table", lambda c: c.get_flight_info(SEARCH)),
    "get: lease": ("weights", "lease", lambda c: get(c, WEIGHTS)),
    "get: scan": ("memory", "scan", lambda c: get(c, TABLE)),
    "get: search": ("memory", "search", lambda c: get(c, SEARCH)),
    "put": ("memory", "put", lambda c: put(c, TABLE)),
    "encode: encoder": ("compute", "encoder", lambda c: exchange(c, fl.FlightDescriptor.for_path("encode"))),
    "encode": ("compute", "encode", lambda c: exchange(c, fl.FlightDescriptor.for_path("encode"))),
    "search": ("memory", "search", lambda c: exchange(c, fl.FlightDescriptor.for_path("search/notes"))),
    "actions": ("control", "actions", lambda c: list(c.list_actions())),
    "action": ("control", "call", lambda c: list(c.do_action("status"))),
}
SURPRISES: list[BaseException] = [
    ValueError(SECRET),
    KeyError(SECRET),
    StopIteration(SECRET),
    MemoryError(SECRET),
    SystemExit(SECRET),
    RecursionError(SECRET),
    fl.FlightInternalError(SECRET),
    pa.ArrowInvalid(SECRET),
    ConnectionResetError(errno.ECONNRESET, SECRET),
    ExceptionGroup(SECRET, [ValueError(SECRET)]),
]


def raiser(exc: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise exc

    return fail


def refusal(call: Callable[[Any], object], client: Any) -> dict:
    with pytest.raises(fl.FlightError) as caught:
        call(client)
    assert "Traceback" not in str(caught.value)
    assert SECRET not in str(caught.value)
    info: dict = json.loads(caught.value.extra_info)
    assert SECRET not in str(info)
    return info


@pytest.mark.parametrize("name", CALLS)
def test_the_unexpected_becomes_internal_with_an_id_in_the_log(
    serve: Serve, fakes: FakePorts, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    port, method, call = CALLS[name]
    listener = serve.listener()
    client = serve.client(listener)
    for exc in SURPRISES:
        caplog.clear()
        setattr(getattr(fakes, port), method, raiser(exc))
        info = refusal(call, client)
        assert info["code"] == "internal"
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR and info["id"] in r.getMessage()]
        assert record.exc_info is not None
        delattr(getattr(fakes, port), method)
    (result,) = client.do_action("health")
    assert b"serving" in result.body.to_pybytes()


@pytest.mark.parametrize("kind", sorted(set(_tree(AiosError)), key=lambda c: c.__name__))
def test_every_error_of_the_tree_keeps_its_code(serve: Serve, fakes: FakePorts, kind: type[AiosError]) -> None:
    client = serve.client()
    fakes.memory.search = raiser(kind("what was wrong", retry_after_s=2.5))
    for call in (CALLS["get: search"][2], CALLS["search"][2]):
        info = refusal(call, client)
        assert {k: info[k] for k in ("code", "message", "retryable", "retry_after_s")} == {
            "code": kind.code,
            "message": "what was wrong",
            "retryable": kind.retryable,
            "retry_after_s": 2.5,
        }


@pytest.mark.parametrize(
    ("kind", "flight"),
    [
        (errors.Unauthenticated, fl.FlightUnauthenticatedError),
        (errors.Unauthorized, fl.FlightUnauthorizedError),
        (errors.Unavailable, fl.FlightUnavailableError),
        (errors.Busy, fl.FlightUnavailableError),
        (errors.UnknownTable, fl.FlightServerError),
    ],
)
def test_classes_that_other_clients_understand(serve: Serve, fakes: FakePorts, kind: type, flight: type) -> None:
    fakes.memory.table = raiser(kind("no"))
    with pytest.raises(flight):
        serve.client().get_flight_info(TABLE)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "storage_full"), (errno.EROFS, "storage_error"), (errno.EACCES, "storage_error")],
)
def test_a_full_or_read_only_disk_has_its_own_code(serve: Serve, fakes: FakePorts, number: int, code: str) -> None:
    fakes.memory.put = raiser(OSError(number, SECRET))
    assert refusal(CALLS["put"][2], serve.client())["code"] == code


@pytest.mark.parametrize("message", ["x" * 100_000, "\U0001f600" * 50_000, "a\r\nb\x00c" * 9_000, "\udcff" * 20])
def test_any_message_fits_into_the_trailers(serve: Serve, fakes: FakePorts, message: str) -> None:
    fakes.memory.table = raiser(errors.BadRequest(message))
    info = refusal(CALLS["info: table"][2], serve.client())
    assert info["code"] == "bad_request"
    assert len(info["message"].encode()) <= 1000


@pytest.mark.parametrize("exc", [ValueError(SECRET), errors.Corrupt("row 7 is damaged"), SystemExit(SECRET)])
def test_errors_in_the_middle_of_a_stream(serve: Serve, fakes: FakePorts, exc: BaseException) -> None:
    def rows() -> Iterator[pa.RecordBatch]:
        yield from NOTES.to_batches()
        raise exc

    fakes.memory.scan = lambda name: pa.RecordBatchReader.from_batches(NOTES.schema, rows())
    client = serve.client()
    reader = client.do_get(client.get_flight_info(TABLE).endpoints[0].ticket)
    assert reader.read_chunk().data.num_rows == 3
    info = refusal(lambda c: reader.read_chunk(), client)
    assert info["code"] == ("corrupt" if isinstance(exc, errors.Corrupt) else "internal")


@pytest.mark.parametrize("exc", [ValueError(SECRET), errors.NoBase("no base"), SystemExit(SECRET)])
def test_errors_in_the_middle_of_an_action(serve: Serve, fakes: FakePorts, exc: BaseException) -> None:
    def run(args: object) -> Iterator[dict]:
        yield {"progress": 1}
        raise exc

    fakes.control.more["work"] = (Action("work", "works", "admin", "node/work"), run)
    results = serve.client().do_action("work")
    assert next(results).body.to_pybytes() == b'{"progress": 1}'
    info = refusal(lambda c: next(results), None)
    assert info["code"] == ("no_base" if isinstance(exc, errors.NoBase) else "internal")


def test_results_that_are_not_json(serve: Serve, fakes: FakePorts) -> None:
    fakes.control.more["odd"] = (Action("odd", "", "admin", "node/odd"), lambda args: iter([{"x": object()}]))
    assert refusal(lambda c: list(c.do_action("odd")), serve.client())["code"] == "internal"


@pytest.mark.parametrize("answer", [None, pa.table({"id": ["a"]}), "nonsense"])
def test_ports_that_answer_nonsense(serve: Serve, fakes: FakePorts, answer: object) -> None:
    fakes.memory.search = lambda requests, principal: [answer]
    fakes.memory.scan = lambda name: answer
    client = serve.client()
    assert refusal(CALLS["get: search"][2], client)["code"] == "internal"
    if not isinstance(answer, pa.Table):
        assert refusal(CALLS["get: scan"][2], client)["code"] == "internal"


def test_an_observer_that_fails_hurts_nobody(serve: Serve) -> None:
    client = serve.client(serve.listener(observe=raiser(ValueError(SECRET))))
    assert len(list(client.list_flights())) == 2
    assert len(list(client.list_flights())) == 2
