"""The public contract, by a plain pyarrow client: nothing of this project runs on the client's side."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from flight_fakes import DIMENSION, NOTES, TENSORS, FakePorts, Serve, embed


def info_of(error: Exception) -> dict:
    """The JSON of an error that must be a Flight error without a traceback."""
    assert isinstance(error, fl.FlightError)
    assert "Traceback" not in str(error)
    info = json.loads(error.extra_info)
    assert set(info) <= {"code", "message", "retryable", "retry_after_s", "id"}
    assert info["id"]
    return info


def command(**fields: object) -> fl.FlightDescriptor:
    return fl.FlightDescriptor.for_command(json.dumps({"v": 1, **fields}).encode())


def json_command(rest: str) -> fl.FlightDescriptor:
    """A search command whose JSON Python would not write."""
    return fl.FlightDescriptor.for_command(f'{{"v": 1, "op": "search", "table": "notes", {rest}}}'.encode())


@pytest.fixture
def client(serve: Serve) -> fl.FlightClient:
    return serve.client()


def test_list_flights_shows_models_and_tables(client: fl.FlightClient, fakes: FakePorts) -> None:
    found = {b"/".join(info.descriptor.path).decode(): info for info in client.list_flights()}
    assert sorted(found) == ["memory/notes", "weights/tiny"]
    version = fakes.weights.resolve("tiny", None)
    assert found["weights/tiny"].total_records == len(TENSORS)
    assert found["weights/tiny"].total_bytes == version.bytes
    assert found["memory/notes"].total_records == 3
    assert found["memory/notes"].schema == NOTES.schema


@pytest.mark.parametrize(("criteria", "expected"), [(b"weights/", 1), (b"memory", 1), (b"", 2), (b"nothing", 0)])
def test_criteria_are_a_prefix(client: fl.FlightClient, criteria: bytes, expected: int) -> None:
    assert len(list(client.list_flights(criteria))) == expected


@pytest.mark.parametrize("path", [("weights", "tiny"), ("weights/tiny",)])
def test_weights_rows(client: fl.FlightClient, fakes: FakePorts, path: tuple[str, ...]) -> None:
    info = client.get_flight_info(fl.FlightDescriptor.for_path(*path))
    version = fakes.weights.resolve("tiny", None)
    assert json.loads(info.app_metadata) == {"version": version.version}
    assert len(info.endpoints) == len(version.shards) == 2
    found = {}
    for endpoint in info.endpoints:
        reader = client.do_get(endpoint.ticket)
        assert reader.schema == info.schema
        for row in reader.read_all().to_pylist():
            assert row["quant_type"] == "none"
            found[row["layer_name"]] = np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])
    assert sorted(found) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_weights_raw_bytes_are_the_shard_files(client: fl.FlightClient) -> None:
    info = client.get_flight_info(command(op="weights", model="tiny", raw=True))
    names = []
    for endpoint in info.endpoints:
        said = json.loads(endpoint.app_metadata)
        data = bytearray()
        for row in client.do_get(endpoint.ticket).read_all().to_pylist():
            assert row["offset"] == len(data)
            data += row["data"]
        assert len(data) == said["bytes"]
        assert hashlib.sha256(data).hexdigest() == said["sha256"]
        names += pq.read_table(io.BytesIO(data)).column("layer_name").to_pylist()
    assert sorted(names) == sorted(TENSORS)
    assert info.total_bytes == sum(json.loads(e.app_metadata)["bytes"] for e in info.endpoints)


def test_large_shards_come_in_batches_of_a_mebibyte(serve: Serve, fakes: FakePorts, tmp_path) -> None:
    data = np.random.default_rng(0).bytes(5 * 2**20 + 12345)
    (tmp_path / "big.bin").write_bytes(data)
    fakes.weights.add_raw(tmp_path / "big.bin", "big")
    client = serve.client()
    info = client.get_flight_info(command(op="weights", model="big", raw=True))
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert table.num_rows == info.total_records == 6
    assert b"".join(table.column("data").to_pylist()) == data


def test_an_older_version_by_prefix(serve: Serve, fakes: FakePorts, tmp_path) -> None:
    old = fakes.weights.resolve("tiny", None)
    new = fakes.weights.add(tmp_path / "v2", "tiny", {"layer.bias": np.zeros(3, np.float32)})
    client = serve.client()
    for path, expected in [
        (("weights", "tiny"), new),
        (("weights", "tiny", old.version[:12]), old),
        ((f"weights/tiny/{new.version}",), new),
    ]:
        info = client.get_flight_info(fl.FlightDescriptor.for_path(*path))
        assert json.loads(info.app_metadata)["version"] == expected.version
        assert info.total_records == expected.tensors


def test_a_ticket_keeps_its_version_when_another_becomes_active(serve: Serve, fakes: FakePorts, tmp_path) -> None:
    client = serve.client()
    info = client.get_flight_info(fl.FlightDescriptor.for_path("weights", "tiny"))
    fakes.weights.add(tmp_path / "v2", "tiny", {"other": np.zeros(3, np.float32)})
    names = [n for e in info.endpoints for n in client.do_get(e.ticket).read_all().column("layer_name").to_pylist()]
    assert sorted(names) == sorted(TENSORS)


def test_get_schema_matches_get_flight_info(client: fl.FlightClient) -> None:
    for descriptor in [
        fl.FlightDescriptor.for_path("weights", "tiny"),
        fl.FlightDescriptor.for_path("memory", "notes"),
        command(op="weights", model="tiny", raw=True),
        command(op="search", table="notes", text="x", columns=["id", "score"]),
    ]:
        assert client.get_schema(descriptor).schema == client.get_flight_info(descriptor).schema


def test_memory_rows(client: fl.FlightClient) -> None:
    info = client.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes"))
    assert json.loads(info.app_metadata) == {"version": 1}
    assert client.do_get(info.endpoints[0].ticket).read_all().equals(NOTES)


def test_memory_from_a_reader(serve: Serve, fakes: FakePorts) -> None:
    fakes.memory.scan = lambda name: pa.RecordBatchReader.from_batches(NOTES.schema, iter(NOTES.to_batches()))
    client = serve.client()
    info = client.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes"))
    assert client.do_get(info.endpoints[0].ticket).read_all().equals(NOTES)


def search(client: fl.FlightClient, **fields: object) -> tuple[pa.Table, list]:
    info = client.get_flight_info(command(op="search", **fields))
    reader = client.do_get(info.endpoints[0].ticket)
    batches, metas = [], []
    try:
        while True:
            chunk = reader.read_chunk()
            batches.append(chunk.data)
            metas.append(chunk.app_metadata and chunk.app_metadata.to_pybytes())
    except StopIteration:
        pass
    assert reader.schema == info.schema
    return pa.Table.from_batches(batches, reader.schema), metas


def test_search_by_vector(client: fl.FlightClient, fakes: FakePorts) -> None:
    hits, metas = search(client, table="notes", vector=[0, 1, 0, 0], k=2, scope="network", filter="id <> 'z'")
    assert hits.column("id").to_pylist()[0] == "b"
    assert hits.num_rows == 2
    assert hits.column_names[:3] == ["id", "created_at", "modality"]
    assert json.loads(metas[-1]) == {"complete": True, "missing": []}
    request = fakes.memory.requests[0]
    assert (request.scope, request.filter, request.k) == ("network", "id <> 'z'", 2)


def test_search_with_columns_and_missing_nodes(serve: Serve, fakes: FakePorts) -> None:
    fakes.memory.incomplete = ("edge",)
    hits, metas = search(serve.client(), table="notes", text="red", columns=["score", "id", "embedding"])
    assert hits.column_names == ["score", "id", "embedding"]
    assert json.loads(metas[-1]) == {"complete": False, "missing": ["edge"]}


def test_search_without_hits_still_says_whether_it_is_complete(serve: Serve, fakes: FakePorts) -> None:
    fakes.memory.rows["notes"] = NOTES.slice(0, 0)
    hits, metas = search(serve.client(), table="notes", text="red")
    assert hits.num_rows == 0
    assert json.loads(metas[-1])["complete"] is True


def test_put_then_read(client: fl.FlightClient) -> None:
    rows = pa.table({"id": ["x", "y"], "text": ["one", "two"]})
    writer, answers = client.do_put(fl.FlightDescriptor.for_path("memory/fresh"), rows.schema)
    writer.write_table(rows, max_chunksize=1)
    writer.done_writing()
    assert json.loads(answers.read().to_pybytes()) == {"rows": 2, "version": 1}
    writer.close()
    info = client.get_flight_info(fl.FlightDescriptor.for_path("memory", "fresh"))
    assert client.do_get(info.endpoints[0].ticket).read_all().equals(rows)


@pytest.mark.parametrize("path", [("encode",), ("encode", "tiny"), ("encode/tiny",)])
def test_encode(client: fl.FlightClient, path: tuple[str, ...]) -> None:
    schema = pa.schema([("text", pa.string())])
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path))
    texts = [["one", "two", "three"], [], ["four"]]
    with writer:
        writer.begin(schema)
        for part in texts:
            writer.write_batch(pa.record_batch([pa.array(part, pa.string())], schema=schema))
            chunk = reader.read_chunk()
            assert json.loads(chunk.app_metadata.to_pybytes())["model"] == "tiny"
            vectors = chunk.data.column("embedding").flatten().to_numpy().reshape(-1, DIMENSION)
            np.testing.assert_array_equal(vectors, embed(part))
        writer.done_writing()
        with pytest.raises(StopIteration):
            reader.read_chunk()


@pytest.mark.parametrize("kind", ["vector", "fixed", "text"])
def test_search_exchange(client: fl.FlightClient, kind: str) -> None:
    queries = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    column = {
        "vector": lambda q: pa.array(q, pa.list_(pa.float64())),
        "fixed": lambda q: pa.array(q, pa.list_(pa.float32(), DIMENSION)),
        "text": lambda q: pa.array([str(v) for v in q], pa.large_string()),
    }[kind]
    name = "text" if kind == "text" else "vector"
    schema = pa.schema([(name, column(queries).type)])
    writer, reader = client.do_exchange(command(op="search", table="notes", k=2, columns=["id", "score"]))
    with writer:
        writer.begin(schema)
        writer.write_batch(pa.record_batch([column(queries[:2])], schema=schema))
        first = reader.read_chunk()
        writer.write_batch(pa.record_batch([column(queries[2:])], schema=schema))
        second = reader.read_chunk()
        writer.done_writing()
    assert json.loads(second.app_metadata.to_pybytes()) == {"complete": True, "missing": []}
    assert first.data.schema.names == ["query", "id", "score"]
    assert first.data.column("query").to_pylist() == [0, 0, 1, 1]
    assert second.data.column("query").to_pylist() == [2, 2]
    if kind != "text":
        assert first.data.column("id").to_pylist()[::2] == ["b", "a"]


def test_search_exchange_by_path(client: fl.FlightClient) -> None:
    schema = pa.schema([("vector", pa.list_(pa.float32()))])
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("search", "notes"))
    with writer:
        writer.begin(schema)
        writer.write_batch(pa.record_batch([pa.array([], schema.field(0).type)], schema=schema))
        assert reader.read_chunk().data.num_rows == 0
        writer.done_writing()


def test_actions(client: fl.FlightClient) -> None:
    names = {action.type for action in client.list_actions()}
    assert {"health", "status", "versions", "activate", "rollback", "sync", "drain", "metrics"} <= names
    (result,) = client.do_action("health")
    assert json.loads(result.body.to_pybytes()) == {"status": "serving"}
    (result,) = client.do_action(fl.Action("versions", b'{"model": "tiny"}'))
    assert json.loads(result.body.to_pybytes())["args"] == {"model": "tiny"}
    assert len(list(client.do_action(fl.Action("sync", b"{}")))) == 2


@pytest.mark.parametrize(
    ("descriptor", "code", "says"),
    [
        (fl.FlightDescriptor.for_path("weights", "tinny"), "unknown_model", "tiny"),
        (fl.FlightDescriptor.for_path("weights", "tiny", "abc"), "unknown_version", "abc"),
        (fl.FlightDescriptor.for_path("memory", "nots"), "unknown_table", "notes"),
        (command(op="search", table="nots", text="x"), "unknown_table", "notes"),
        (fl.FlightDescriptor.for_path("weight", "tiny"), "bad_request", "did you mean weights"),
        (fl.FlightDescriptor.for_path("weights"), "bad_request", "weights/<model>"),
        (fl.FlightDescriptor.for_path("weights", "..", ".."), "bad_request", "cannot name a model"),
        (fl.FlightDescriptor.for_path("memory", "../etc"), "bad_request", "paths look like"),
        (fl.FlightDescriptor.for_path("memory", "Notes"), "bad_request", "Notes"),
        (fl.FlightDescriptor.for_path("sync"), "bad_request", "do_exchange"),
        (fl.FlightDescriptor.for_path("encode", "tiny"), "bad_request", "do_exchange"),
        (fl.FlightDescriptor.for_path("weights", "x" * 5000), "bad_request", "longer"),
        (fl.FlightDescriptor.for_command(b"not json"), "bad_request", "JSON"),
        (fl.FlightDescriptor.for_command(b"[1]"), "bad_request", "object"),
        (fl.FlightDescriptor.for_command(b'{"op":"search"}'), "bad_request", '"v": 1'),
        (fl.FlightDescriptor.for_command(b"[" * 100_000), "bad_request", "JSON"),
        (
            fl.FlightDescriptor.for_command(b'{"v":1,"op":"search","table":"notes","text":"\\ud800"}'),
            "bad_request",
            "JSON",
        ),
        (command(op="serach"), "bad_request", "did you mean search"),
        (command(op="weights"), "bad_request", "model"),
        (command(op="weights", model="tiny", rwa=True), "bad_request", "did you mean raw"),
        (command(op="weights", model="tiny", raw="yes"), "bad_request", "raw"),
        (command(op="search", table="notes"), "bad_request", "one of"),
        (command(op="search", text="x"), "bad_request", "table"),
        (command(op="search", table="notes", text="x", kk=3), "bad_request", "did you mean k"),
        (command(op="search", table="notes", text="x", k=0), "bad_request", "at least 1"),
        (command(op="search", table="notes", text="x", k=True), "bad_request", "'k'"),
        (command(op="search", table="notes", text="x", k=10**9), "too_large", "10000"),
        (command(op="search", table="notes", text=7), "bad_request", "text"),
        (command(op="search", table="notes", vector=[]), "bad_request", "vector"),
        (command(op="search", table="notes", vector=["a"]), "bad_request", "vector"),
        (command(op="search", table="notes", vector=[1e308 * 10]), "bad_request", "JSON"),
        (
            fl.FlightDescriptor.for_command(b'{"v":1,"op":"search","table":"notes","vector":[1e999]}'),
            "bad_request",
            "finite",
        ),
        (command(op="search", table="notes", image="!!"), "bad_request", "base64"),
        (command(op="search", table="notes", text="x", scope="world"), "bad_request", "network"),
        (command(op="search", table="notes", text="x", modalities=["smell"]), "bad_request", "smell"),
        (command(op="search", table="notes", text="x", columns=["paylaod"]), "bad_request", "did you mean payload"),
        (command(op="search", table="notes", text="x", columns=["id", "id"]), "bad_request", "twice"),
        (command(op="search", table="notes", text="x", filter="a" * 100_000), "too_large", "filter"),
    ],
)
def test_bad_questions(client: fl.FlightClient, descriptor: fl.FlightDescriptor, code: str, says: str) -> None:
    with pytest.raises(fl.FlightError) as caught:
        client.get_flight_info(descriptor)
    info = info_of(caught.value)
    assert info["code"] == code
    assert says in info["message"]
    assert info["retryable"] is False
    with pytest.raises(pa.ArrowException) as caught:  # pyarrow's get_schema raises no Flight errors
        client.get_schema(descriptor)
    assert says in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Trailers(fl.ClientMiddlewareFactory):
    """Keeps what the server sent beside its answer."""

    def __init__(self) -> None:
        self.seen: dict = {}

    def start_call(self, info: object) -> fl.ClientMiddleware:
        seen = self.seen

        class Keep(fl.ClientMiddleware):
            def received_headers(self, headers: dict) -> None:
                seen.update(headers)

        return Keep()


def test_errors_of_get_schema_carry_their_details_where_other_clients_look(serve: Serve) -> None:
    trailers = Trailers()
    client = serve.client(middleware=[trailers])
    with pytest.raises(pa.ArrowException):
        client.get_schema(fl.FlightDescriptor.for_path("weights", "tinny"))
    (details,) = trailers.seen["grpc-status-details-bin"]
    assert json.loads(details)["code"] == "unknown_model"
    assert "Traceback" not in str(trailers.seen)


@pytest.mark.parametrize(
    ("name", "body", "code", "says"),
    [
        ("statsu", b"", "bad_request", "did you mean status"),
        ("versions", b"", "bad_request", "needs 'model'"),
        ("versions", b'{"model": 3}', "bad_request", "needs 'model'"),
        ("memory_get", b'{"table": "../x"}', "bad_request", "cannot name"),
        ("status", b"{", "bad_request", "JSON"),
        ("status", b"[]", "bad_request", "object"),
        ("status", b" " * (5 * 2**20), "too_large", "action"),
    ],
)
def test_bad_actions(client: fl.FlightClient, name: str, body: bytes, code: str, says: str) -> None:
    with pytest.raises(fl.FlightError) as caught:
        list(client.do_action(fl.Action(name, body)))
    info = info_of(caught.value)
    assert (info["code"], says in info["message"]) == (code, True)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"txt": ["a"]}, "text"),
        ({"text": [1]}, "text"),
        ({"id": ["a"]}, "at least one"),
        ({"embedding": [[1, 2]]}, "embedding"),
        ({"text": ["a"], "last_access": [1]}, "last_access"),
        ({"text": pa.array([], pa.string())}, "no rows"),
        ({"text": pa.array(["a"]), "source": pa.array([1], pa.dictionary(pa.int8(), pa.int64()))}, "source"),
        ({"text": pa.array([{"a": 1}])}, "text"),
        ({"text": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["a"]))}, "text"),
        (pa.table([["a"], ["b"]], ["text", "text"]), "twice"),
    ],
)
def test_bad_rows(client: fl.FlightClient, fakes: FakePorts, columns: dict | pa.Table, says: str) -> None:
    rows = columns if isinstance(columns, pa.Table) else pa.table(columns)

    def put() -> None:
        writer, answers = client.do_put(fl.FlightDescriptor.for_path("memory", "notes"), rows.schema)
        with writer:
            writer.write_table(rows)
            writer.done_writing()
            answers.read()

    with pytest.raises(fl.FlightError) as caught:
        put()
    info = info_of(caught.value)
    assert (info["code"], says in info["message"]) == ("bad_request", True)
    assert fakes.memory.rows["notes"].equals(NOTES)


@pytest.mark.parametrize(
    ("path", "schema", "code", "says"),
    [
        (("encode",), pa.schema([("txt", pa.string())]), "bad_request", "text"),
        (("encode",), pa.schema([("text", pa.int64())]), "bad_request", "text"),
        (("encode", "tinny"), pa.schema([("text", pa.string())]), "unknown_model", "tiny"),
        (("search", "notes"), pa.schema([("id", pa.string())]), "bad_request", "vector"),
        (("search", "notes"), pa.schema([("vector", pa.list_(pa.int8()))]), "bad_request", "float"),
        (("weights", "tiny"), pa.schema([("data", pa.binary())]), "bad_request", "encode"),
    ],
)
def test_bad_exchanges(client: fl.FlightClient, path: tuple, schema: pa.Schema, code: str, says: str) -> None:
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path))

    def exchange() -> None:
        with writer:  # where the refusal came before the first message, only leaving this tells it
            writer.begin(schema)
            writer.write_table(schema.empty_table())
            writer.done_writing()
            reader.read_all()

    with pytest.raises(fl.FlightError) as caught:
        exchange()
    info = info_of(caught.value)
    assert (info["code"], says in info["message"]) == (code, True)


def test_several_models_and_none_named(serve: Serve, fakes: FakePorts) -> None:
    fakes.compute.models = ("tiny", "large")
    _, reader = serve.client().do_exchange(fl.FlightDescriptor.for_path("encode"))
    with pytest.raises(fl.FlightError) as caught:
        reader.read_chunk()
    info = info_of(caught.value)
    assert info["code"] == "ambiguous_model"
    assert "large, tiny" in info["message"]


def test_null_texts_and_null_vectors(client: fl.FlightClient) -> None:
    for path, column in [
        (("encode",), pa.array(["a", None])),
        (("search", "notes"), pa.array([[1.0], None])),
        (("search", "notes"), pa.array([[1.0, float("nan")]])),
    ]:
        name = "text" if path == ("encode",) else "vector"
        schema = pa.schema([(name, column.type)])
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path))
        writer.begin(schema)
        writer.write_batch(pa.record_batch([column], schema=schema))
        with pytest.raises(fl.FlightError) as caught:
            reader.read_chunk()
        assert info_of(caught.value)["code"] == "bad_request"
        with pytest.raises(fl.FlightError):
            writer.close()


def test_an_exchange_without_any_data(client: fl.FlightClient) -> None:
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("encode"))
    writer.done_writing()
    with pytest.raises(fl.FlightError) as caught:
        reader.read_chunk()
    assert info_of(caught.value)["code"] == "bad_request"
    with pytest.raises(fl.FlightError):
        writer.close()


def test_a_shard_that_lost_bytes_is_reported_without_its_path(serve: Serve, fakes: FakePorts) -> None:
    (shard, _) = fakes.weights.resolve("tiny", None).shards
    client = serve.client()
    shard.path.write_bytes(shard.path.read_bytes()[:-100])
    for raw in (True, False):
        info = client.get_flight_info(command(op="weights", model="tiny", raw=raw))
        with pytest.raises(fl.FlightError) as caught:
            client.do_get(info.endpoints[0].ticket).read_all()
        said = info_of(caught.value)
        assert said["code"] == "corrupt"
        assert str(shard.path.parent) not in said["message"]
