"""Our own client against a real server: the same calls, the project's own errors, careful retries."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_fakes import NOTES, TENSORS, FakePorts, Serve, embed

import aios_node
from aios_node.engine.errors import (
    AiosError,
    AmbiguousModel,
    BadRequest,
    Busy,
    Corrupt,
    NotFound,
    TransferAborted,
    Unauthenticated,
    Unavailable,
    UnknownTable,
)
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.flight.auth import by_token
from aios_node.flight.client import Client
from aios_node.flight.errors import _BY_CODE, _tree
from aios_node.flight.ports import Action, Principal


@pytest.fixture
def client(serve: Serve) -> Iterator[Client]:
    with Client(serve.listener().uri) as client:
        yield client


def test_it_is_the_public_client() -> None:
    assert aios_node.Client is Client


def test_search(client: Client, fakes: FakePorts) -> None:
    fakes.memory.incomplete = ("edge",)
    hits = client.search("notes", vector=np.array([0, 0, 1, 0], np.float32), k=1, scope="network", filter="id = 'c'")
    assert hits.column("id").to_pylist() == ["c"]
    assert json.loads(hits.schema.metadata[b"aios.complete"]) is False
    assert json.loads(hits.schema.metadata[b"aios.missing"]) == ["edge"]
    request = fakes.memory.requests[-1]
    assert (request.vector, request.k, request.filter) == ((0.0, 0.0, 1.0, 0.0), 1, "id = 'c'")


def test_search_sends_files_and_options(client: Client, fakes: FakePorts, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\0")
    client.search(
        "notes",
        image=tmp_path / "cat.png",
        audio=b"RIFF",
        alpha=0.5,
        beta=0.25,
        modalities=["image"],
        namespace="home",
        columns=["id"],
        space="joint",
    )
    request = fakes.memory.requests[-1]
    assert (request.image, request.audio) == (b"\x89PNG\0", b"RIFF")
    assert (request.alpha, request.beta, request.modalities) == (0.5, 0.25, ("image",))
    assert (request.namespace, request.columns, request.space) == ("home", ("id",), "joint")


def test_search_needs_a_query(client: Client) -> None:
    with pytest.raises(BadRequest, match="needs one of"):
        client.search("notes")


def test_weights(client: Client) -> None:
    found = client.weights("tiny")
    assert sorted(found) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].flags.aligned
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("quant", ["int8", "int4", "int2"])
def test_quantised_weights(serve: Serve, fakes: FakePorts, tmp_path: Path, quant: str) -> None:
    weights = {"w": np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)}
    quantised = ArrowQuantizer(preset(quant)).quantize(weights)
    fakes.weights.add(tmp_path / "q", "tiny.q", quantised)
    with Client(serve.listener().uri) as client:
        found = client.weights("tiny.q")["w"]
    assert found.quant_type == quant
    np.testing.assert_array_equal(found.dequantize(), quantised["w"].dequantize())


def test_weights_of_a_version(client: Client, fakes: FakePorts, tmp_path: Path) -> None:
    old = fakes.weights.resolve("tiny", None).version
    fakes.weights.add(tmp_path / "v2", "tiny", {"only": np.ones(3, np.float32)})
    assert list(client.weights("tiny")) == ["only"]
    assert sorted(client.weights("tiny", old[:8])) == sorted(TENSORS)


@pytest.mark.parametrize("count", [0, 1, 300, 600])
def test_encode(client: Client, count: int) -> None:
    texts = [f"text {n}" for n in range(count)]
    vectors = client.encode(texts, model="tiny")
    assert vectors.dtype == np.float32
    assert len(vectors) == count
    if count:
        np.testing.assert_array_equal(vectors, embed(texts))


def test_encode_without_a_name(client: Client, fakes: FakePorts) -> None:
    assert client.encode(["a"]).shape == (1, 4)
    fakes.compute.models = ("a", "b")
    with pytest.raises(AmbiguousModel, match="a, b"):
        client.encode(["a"])


def test_put(client: Client, fakes: FakePorts) -> None:
    rows = pa.table({"text": [f"row {n}" for n in range(5000)], "payload": [b"x" * 1000] * 5000})
    assert client.put("fresh", rows) == {"rows": 5000, "version": 1}
    assert fakes.memory.rows["fresh"].equals(rows)


def test_status_actions_and_paths(client: Client) -> None:
    assert client.status()["op"] == "status"
    assert list(client.call("sync", {"peer": "edge"})) == [{"progress": 1}, {"results": []}]
    assert client.paths() == ["weights/tiny", "memory/notes"]
    assert client.paths("memory/") == ["memory/notes"]


def test_progress_streams_as_it_comes(client: Client, fakes: FakePorts) -> None:
    seen = threading.Event()

    def work(args: object) -> Iterator[dict]:
        yield {"step": 1}
        yield {"seen": seen.wait(60)}  # the first result is there before the second is made

    fakes.control.more["work"] = (Action("work", "", "admin", "node/work"), work)
    results = client.call("work")
    assert next(results) == {"step": 1}
    seen.set()
    assert next(results) == {"seen": True}


def test_tokens(serve: Serve, fakes: FakePorts) -> None:
    fakes.access.tokens["good"] = Principal("ann", "client")
    listener = serve.listener(identify=by_token(fakes.access))
    with Client(listener.uri, token="good") as client:
        assert client.status()["principal"] == "ann"
        client.search("notes", text="x")
        client.weights("tiny")
        client.encode(["x"])
        client.put("notes", NOTES)
    with Client(listener.uri, token="wrong") as client, pytest.raises(Unauthenticated, match="not known"):
        client.status()
    with Client(listener.uri) as client, pytest.raises(Unauthenticated, match="Bearer"):
        client.paths()


def test_unknown_names_come_back_as_their_class(client: Client) -> None:
    with pytest.raises(UnknownTable, match="notes"):
        client.search("nots", text="x")
    with pytest.raises(NotFound, match="tiny"):
        client.weights("tinny")
    with pytest.raises(BadRequest, match="did you mean status"):
        list(client.call("statsu"))


@pytest.mark.parametrize("kind", sorted(set(_tree(AiosError)), key=lambda c: c.__name__))
def test_every_error_survives_the_trip(serve: Serve, fakes: FakePorts, kind: type[AiosError]) -> None:
    def fail(*args: object) -> Any:
        raise kind("what was wrong", retry_after_s=0.5)

    fakes.memory.search = fail
    with Client(serve.listener().uri, attempts=1) as client, pytest.raises(AiosError) as caught:
        client.search("notes", text="x")
    assert type(caught.value) is _BY_CODE[kind.code]
    assert (caught.value.message, caught.value.retry_after_s) == ("what was wrong", 0.5)


def failing(times: int, error: AiosError, work: Callable[..., Any]) -> Callable[..., Any]:
    """Raise ``error`` the first ``times`` calls."""
    left = [times]

    def call(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return work(*args)

    return call


def test_retryable_answers_are_tried_again_after_the_time_they_name(serve: Serve, fakes: FakePorts) -> None:
    waits: list[float] = []
    with Client(serve.listener().uri, sleep=waits.append) as client:
        for error in (Busy("full", retry_after_s=3.0), Unavailable("starting"), TransferAborted("broke")):
            fakes.memory.put = failing(2, error, type(fakes.memory).put.__get__(fakes.memory))
            fakes.memory.search = failing(2, error, type(fakes.memory).search.__get__(fakes.memory))
            assert client.put("fresh", NOTES)["rows"] == 3
            assert client.search("notes", text="x").num_rows == 3
    assert len(waits) == 12
    assert all(3.0 <= wait <= 4.5 for wait in waits[:4])
    assert waits[4] < waits[5] * 2


def test_attempts_end(serve: Serve, fakes: FakePorts) -> None:
    waits: list[float] = []
    fakes.memory.table = failing(99, Busy("full"), None)
    with Client(serve.listener().uri, attempts=4, sleep=waits.append) as client, pytest.raises(Busy):
        client.search("notes", text="x")
    assert len(waits) == 3


def test_what_can_never_work_is_tried_once(serve: Serve, fakes: FakePorts) -> None:
    calls = []
    fakes.memory.put = lambda *args: calls.append(args) or failing(1, BadRequest("no"), None)()
    with Client(serve.listener().uri) as client, pytest.raises(BadRequest):
        client.put("notes", NOTES)
    assert len(calls) == 1


def test_a_put_without_ids_is_not_repeated_when_the_connection_broke(serve: Serve, fakes: FakePorts) -> None:
    """It may have arrived: only rows with ids can be sent twice without being stored twice."""
    listener = serve.listener()
    waits: list[float] = []
    with Client(listener.uri, sleep=waits.append) as client:
        assert listener.shutdown()
        with pytest.raises(AiosError):
            client.put("notes", NOTES.select(["text"]))
        assert waits == []
        with pytest.raises(AiosError):
            client.put("notes", NOTES)
        assert len(waits) == 2


def test_nobody_there(serve: Serve) -> None:
    listener = serve.listener()
    assert listener.shutdown()
    with Client(listener.uri, attempts=1) as client:
        calls: list[Callable[[], object]] = [
            client.status,
            client.paths,
            lambda: client.search("notes", text="x"),
            lambda: client.weights("tiny"),
            lambda: client.encode(["x"]),
        ]
        for call in calls:
            with pytest.raises(Unavailable, match=listener.uri):
                call()


def test_a_client_finds_a_node_that_came_back(serve: Serve) -> None:
    first = serve.listener()
    with Client(first.uri, attempts=20) as client:
        assert len(client.paths()) == 2
        assert first.shutdown()
        serve.listener(port=first.port)
        assert len(client.paths()) == 2


class LyingServer(fl.FlightServerBase):
    """A server of someone else that speaks Flight and tells nonsense."""

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        return fl.FlightInfo(NOTES.schema, descriptor, [fl.FlightEndpoint(b"x", [])], 3, -1)

    def do_get(self, context: Any, ticket: Any) -> Any:
        return fl.RecordBatchStream(NOTES)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.begin(NOTES.schema)
        if descriptor.path == [b"encode", b"odd"]:
            writer.write_batch(NOTES.to_batches()[0].slice(0, 2))
        elif descriptor.path == [b"encode", b"none"]:
            writer.write_batch(NOTES.select(["id"]).to_batches()[0])

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        list(reader)

    def do_action(self, context: Any, action: Any) -> Any:
        raise RuntimeError("a traceback of someone else")


def test_a_server_that_is_no_node() -> None:
    with LyingServer("grpc://127.0.0.1:0") as server, Client(f"grpc://127.0.0.1:{server.port}") as client:
        with pytest.raises(Corrupt, match="column"):
            client.weights("tiny")
        with pytest.raises(Corrupt, match="ended the exchange"):
            client.encode(["x"])
        with pytest.raises(AiosError):
            client.encode(["x"], model="none")
        with pytest.raises(Corrupt, match="durable"):
            client.put("notes", NOTES)
        with pytest.raises(AiosError):
            client.status()
