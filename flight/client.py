"""A client for one node: searches, weights, embeddings, puts and actions, with the project's own errors.

with Client("grpc://127.0.0.1:8815", token="...") as client:
    hits = client.search("notes", text="how do generators work", k=5, scope="network")
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import AiosError, BadRequest, Corrupt
from aios_node.flight.batches import sized
from aios_node.flight.dialing import Pem, dial
from aios_node.flight.errors import answered, from_flight
from aios_node.flight.ports import SearchRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.engine.quant.blocks import Tensor

T = TypeVar("T")

_TEXTS_PER_BATCH = 256
_BACKOFF = 0.2  # seconds before the first retry; doubles


class Client:
    """One node, seen from outside. Thread-safe. Every method raises the classes of ``engine.errors``."""

    def __init__(
        self,
        uri: str,
        token: str | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        *,
        hostname: str | None = None,
        timeout: float = 30.0,
        attempts: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``uri`` is ``grpc://HOST:PORT`` or ``grpc+tls://HOST:PORT``; ``ca``, ``cert``, ``key`` are PEM or paths.

        ``timeout`` (seconds) is for questions with short answers; streams may take any time. ``attempts``
        is how often a call is tried while the node answers that it is busy or cannot be reached.
        """
        self.uri = uri
        self._client = dial(uri, ca=ca, cert=cert, key=key, hostname=hostname)
        self._headers = [(b"authorization", b"Bearer " + token.encode())] if token is not None else []
        self._stream = fl.FlightCallOptions(headers=self._headers)
        self._short = fl.FlightCallOptions(headers=self._headers, timeout=timeout)
        self._attempts = max(1, attempts)
        self._sleep = sleep

    def search(
        self,
        table: str,
        *,
        text: str | None = None,
        vector: Sequence[float] | NDArray[np.float32] | None = None,
        image: bytes | Path | None = None,
        audio: bytes | Path | None = None,
        k: int = 10,
        filter: str | None = None,  # noqa: A002  # the protocol's own name
        alpha: float = 1.0,
        beta: float = 0.0,
        scope: Literal["local", "network"] = "local",
        modalities: Sequence[str] | None = None,
        namespace: str | None = None,
        columns: Sequence[str] | None = None,
        space: str | None = None,
    ) -> pa.Table:
        """Hits, best first. The schema's metadata says ``aios.complete`` and ``aios.missing`` (JSON)."""
        from aios_node.flight.queries import QUERY_FIELDS, search_fields

        request = SearchRequest(
            table,
            text=text,
            vector=tuple(float(v) for v in vector) if vector is not None else None,
            image=_file(image),
            audio=_file(audio),
            k=k,
            filter=filter,
            alpha=alpha,
            beta=beta,
            scope=scope,
            modalities=tuple(modalities) if modalities is not None else None,
            namespace=namespace,
            columns=tuple(columns) if columns is not None else None,
            space=space,
        )
        if all(getattr(request, name) is None for name in QUERY_FIELDS):
            raise BadRequest(f"a search needs one of {', '.join(QUERY_FIELDS)}")
        command = json.dumps({"v": 1, "op": "search", **search_fields(request)}).encode()
        return self._retrying(lambda: self._search(fl.FlightDescriptor.for_command(command)))

    def _search(self, descriptor: Any) -> pa.Table:
        info = self._client.get_flight_info(descriptor, self._short)
        reader = self._client.do_get(info.endpoints[0].ticket, self._stream)
        batches, end = [], b"{}"
        for chunk in _chunks(reader):
            batches.append(chunk.data)
            end = chunk.app_metadata.to_pybytes() if chunk.app_metadata is not None else end
        said = _object(end)
        metadata = {
            "aios.complete": json.dumps(bool(said.get("complete", False))),
            "aios.missing": json.dumps(said.get("missing", [])),
        }
        table = pa.Table.from_batches(batches, reader.schema)
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})

    def weights(self, model: str, version: str | None = None) -> dict[str, Tensor]:
        """All tensors of a version (default: the active one) by name.

        Plain tensors are NumPy arrays (read-only where they view the received message), quantised ones
        ``QuantizedTensor``.
        """
        path = ("weights", model) if version is None else ("weights", model, version)
        return self._retrying(lambda: self._weights(fl.FlightDescriptor.for_path(*path)))

    def _weights(self, descriptor: Any) -> dict[str, Tensor]:
        from aios_node.flight.rows import tensor_of

        info = self._client.get_flight_info(descriptor, self._short)
        found: dict[str, Tensor] = {}
        for endpoint in info.endpoints:
            for chunk in _chunks(self._client.do_get(endpoint.ticket, self._stream)):
                for row in range(chunk.data.num_rows):
                    name, tensor = tensor_of(chunk.data, row)
                    found[name] = tensor
        if len(found) != info.total_records:
            raise Corrupt(f"{self.uri} sent {len(found)} tensors where it announced {info.total_records}")
        return found

    def encode(self, texts: Sequence[str], model: str | None = None) -> NDArray[np.float32]:
        """Vectors of the texts: float32 [n, d], unit length."""
        path = ("encode",) if model is None else ("encode", model)
        return self._retrying(lambda: self._encode(list(texts), fl.FlightDescriptor.for_path(*path)))

    def _encode(self, texts: list[str], descriptor: Any) -> NDArray[np.float32]:
        schema = pa.schema([pa.field("text", pa.string())])
        parts: list[NDArray[np.float32]] = []
        writer, reader = self._client.do_exchange(descriptor, self._stream)
        with writer:
            writer.begin(schema)
            for start in range(0, max(1, len(texts)), _TEXTS_PER_BATCH):
                column = pa.array(texts[start : start + _TEXTS_PER_BATCH], pa.string())
                writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))
                parts.append(_vectors(self._answer(reader)))
            writer.done_writing()
        return np.concatenate([part for part in parts if len(part)] or parts[:1])

    def _answer(self, reader: Any) -> Any:
        for chunk in _chunks(reader):
            return chunk.data
        raise Corrupt(f"{self.uri} ended the exchange before it had answered everything")

    def put(self, table: str, rows: pa.Table) -> dict[str, Any]:
        """Write rows into a memory table; returns ``{rows, version}`` when they are durable.

        Tried again only when the node refused it, or when the rows have ids (the same id replaces the row).
        """
        again = "id" in rows.column_names and not rows.column("id").null_count
        return self._retrying(lambda: self._put(table, rows), repeatable=again)

    def _put(self, table: str, rows: pa.Table) -> dict[str, Any]:
        descriptor = fl.FlightDescriptor.for_path("memory", table)
        writer, answers = self._client.do_put(descriptor, rows.schema, self._stream)
        with writer:
            for batch in sized(rows.to_batches()):
                writer.write_batch(batch)
            writer.done_writing()
            answer = answers.read()
        if answer is None:
            raise Corrupt(f"{self.uri} did not say whether the rows are durable")
        return _object(answer.to_pybytes())

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Run an action; yields its results and its progress as they come. Not tried again once begun.

        ``timeout`` (seconds) is for all of it together; None: any time.
        """
        action = fl.Action(op, json.dumps(dict(args or {})).encode())
        options = self._stream if timeout is None else fl.FlightCallOptions(headers=self._headers, timeout=timeout)
        with self._translated():
            for result in self._client.do_action(action, options):
                yield _object(result.body.to_pybytes())

    def status(self) -> dict[str, Any]:
        """What the node says about itself."""
        return self._retrying(lambda: list(self.call("status"))[-1])

    def paths(self, prefix: str = "") -> list[str]:
        """Paths of the models and tables that this caller may read: ``weights/...``, ``memory/...``."""

        def listed() -> list[str]:
            flights = self._client.list_flights(prefix.encode(), self._short)
            return [b"/".join(info.descriptor.path).decode() for info in flights]

        return self._retrying(listed)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except AiosError:
            raise
        except (fl.FlightError, pa.ArrowException, OSError) as exc:
            raise from_flight(exc, self.uri) from None

    def _retrying(self, work: Callable[[], T], *, repeatable: bool = True) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return work()
            except AiosError as exc:
                error, refused = exc, True
            except (fl.FlightError, pa.ArrowException, OSError) as exc:
                error, refused = from_flight(exc, self.uri), answered(exc)
            if attempt == self._attempts or not error.retryable or not (refused or repeatable):
                raise error
            self._sleep(_delay(error, attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")


def _delay(error: AiosError, attempt: int) -> float:
    wait = error.retry_after_s if error.retry_after_s is not None else _BACKOFF * 2 ** (attempt - 1)
    return wait * random.uniform(1.0, 1.5)  # noqa: S311  # spreads clients, protects nothing


def _chunks(reader: Any) -> Iterator[Any]:
    """The stream's messages that hold rows, sound in themselves."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        if chunk.data is not None:
            chunk.data.validate(full=True)
            yield chunk


def _vectors(batch: Any) -> NDArray[np.float32]:
    if "embedding" not in batch.schema.names or not pa.types.is_list(batch.column("embedding").type):
        raise Corrupt("the answer of an encode exchange holds no embeddings")
    flat = batch.column("embedding").flatten()
    if flat.type != pa.float32() or flat.null_count or (batch.num_rows and len(flat) % batch.num_rows):
        raise Corrupt("the answer of an encode exchange holds embeddings of different lengths or types")
    values: NDArray[np.float32] = flat.to_numpy()
    return values.reshape(batch.num_rows, -1) if batch.num_rows else np.empty((0, 0), np.float32)


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object that a node sent. Raises ``Corrupt``."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Corrupt("the node's answer is no JSON object")
    return value


def _file(value: bytes | Path | None) -> bytes | None:
    return value.read_bytes() if isinstance(value, Path) else value
