"""In-memory ports: small, deterministic, with knobs for faults. Real servers are built on them."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import (
    AmbiguousModel,
    Unauthenticated,
    Unauthorized,
    UnknownModel,
    UnknownTable,
    UnknownVersion,
    choices,
)
from aios_node.engine.weights.manifest import tensor_hash
from aios_node.engine.weights.parquet import write_shard
from aios_node.flight.actions import STANDARD
from aios_node.flight.auth import anyone
from aios_node.flight.listener import FlightListener
from aios_node.flight.ports import (
    Action,
    Encoder,
    ModelVersion,
    Ports,
    Principal,
    PutResult,
    SearchRequest,
    SearchResult,
    ShardFile,
    TableInfo,
)
from aios_node.memory.retrieve import CHOOSABLE, HITS

DIMENSION = 4
TENSORS = {
    "layer.weight": np.arange(64 * 48, dtype=np.float32).reshape(64, 48),
    "layer.bias": np.linspace(-1, 1, 64, dtype=np.float32),
    "ids": np.arange(7, dtype=np.int64),
}
NOTES = pa.table(
    {
        "id": ["a", "b", "c"],
        "modality": ["text"] * 3,
        "text": ["red apples", "green pears", "blue plums"],
        "embedding": pa.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], pa.list_(pa.float32())),
    }
)

FILLED = {
    "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "namespace": "default",
    "tags": ["fruit"],
    "node": "here",
}


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors that depend on the text alone: float32 [n, DIMENSION]."""
    rows = [np.frombuffer(hashlib.sha256(t.encode()).digest()[: 2 * DIMENSION], np.uint16) for t in texts]
    out = np.array(rows, dtype=np.float32).reshape(len(texts), DIMENSION) + 1
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@dataclass
class FakeAccess:
    """Tokens and rights; ``grants`` None: everyone may do everything."""

    tokens: dict[str, Principal] = field(default_factory=dict)
    grants: dict[str, set[tuple[str, str]]] | None = None
    peers: set[str] = field(default_factory=set)
    checked: list[tuple[str, str, str]] = field(default_factory=list)

    def authenticate_token(self, token: str) -> Principal:
        if token not in self.tokens:
            raise Unauthenticated("this token is not known here")
        return self.tokens[token]

    def peer(self, node_id: str) -> Principal:
        if node_id not in self.peers:
            raise Unauthenticated(f"the node {node_id[:12]} is no peer of this one")
        return Principal(node_id, "peer")

    def check(self, principal: Principal, right: str, resource: str) -> None:
        self.checked.append((principal.name, right, resource))
        if self.grants is not None and (right, resource) not in self.grants.get(principal.name, set()):
            raise Unauthorized(f"{principal.name} may not {right} {resource}")


@dataclass
class FakeWeights:
    """Models with one or more versions of shard files on disk."""

    versions: dict[str, list[ModelVersion]] = field(default_factory=dict)  # the last one is active
    leases: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def models(self) -> Sequence[str]:
        return sorted(self.versions)

    def resolve(self, model: str, version: str | None) -> ModelVersion:
        if model not in self.versions:
            raise UnknownModel(f"unknown model {model!r}: {choices(model, self.versions)}")
        found = self.versions[model]
        if version is None:
            return found[-1]
        fits = [v for v in found if v.version.startswith(version)]
        if len(fits) != 1:
            known = [v.version[:12] for v in found]
            raise UnknownVersion(f"unknown version {version!r} of {model}: {choices(version, known)}")
        return fits[0]

    @contextmanager
    def lease(self, model: str, version: str) -> Iterator[ModelVersion]:
        found = self.resolve(model, version)
        with self.lock:
            self.leases += 1
        try:
            yield found
        finally:
            with self.lock:
                self.leases -= 1

    def add(self, folder: Path, model: str, tensors: Mapping[str, Any], *, per_shard: int = 2) -> ModelVersion:
        """Write the tensors as Parquet V2 shards and make them the active version."""
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(tensors)
        version = hashlib.sha256(b"".join(tensor_hash(tensors[n]).encode() for n in names)).hexdigest()
        shards = []
        for start in range(0, len(names), per_shard):
            part = {name: tensors[name] for name in names[start : start + per_shard]}
            info = write_shard(folder / f"{version[:8]}-{len(shards) + 1:05d}.parquet", part)
            path = folder / info.file
            shards.append(ShardFile(path, info.file, info.bytes, info.sha256, len(part)))
        made = ModelVersion(model, version, tuple(shards))
        self.versions.setdefault(model, []).append(made)
        return made

    def add_raw(self, path: Path, model: str) -> ModelVersion:
        """Serve any file as the only shard of a model (raw bytes only)."""
        data = path.read_bytes()
        shard = ShardFile(path, path.name, len(data), hashlib.sha256(data).hexdigest(), 1)
        made = ModelVersion(model, shard.sha256, (shard,))
        self.versions.setdefault(model, []).append(made)
        return made


@dataclass
class FakeMemory:
    """Tables as lists of Arrow tables; search is by dot product."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    incomplete: tuple[str, ...] = ()
    requests: list[SearchRequest] = field(default_factory=list)

    def tables(self) -> Sequence[TableInfo]:
        return [self.table(name) for name in sorted(self.rows)]

    def table(self, name: str) -> TableInfo:
        rows = self._rows(name)
        return TableInfo(name, rows.schema, rows.num_rows, rows.nbytes, self.versions.get(name, 0))

    def scan(self, name: str) -> pa.RecordBatchReader | pa.Table:
        return self._rows(name)

    def search(self, requests: Sequence[SearchRequest], principal: Principal) -> Sequence[SearchResult]:
        self.requests.extend(requests)
        return [self._search(request) for request in requests]

    def put(self, name: str, rows: pa.Table, principal: Principal) -> PutResult:
        old = self.rows.get(name)
        self.rows[name] = rows if old is None else pa.concat_tables([old, rows], promote_options="permissive")
        self.versions[name] = self.versions.get(name, 0) + 1
        return PutResult(rows.num_rows, self.versions[name])

    def _rows(self, name: str) -> pa.Table:
        if name not in self.rows:
            raise UnknownTable(f"unknown table {name!r}: {choices(name, self.rows)}")
        return self.rows[name]

    def _search(self, request: SearchRequest) -> SearchResult:
        rows = self._rows(request.table)
        query = embed([request.text])[0] if request.text is not None else np.array(request.vector or [1] * DIMENSION)
        vectors = np.array(rows.column("embedding").to_pylist(), np.float32).reshape(rows.num_rows, DIMENSION)
        scores = vectors @ np.asarray(query, np.float32)
        best = np.argsort(-scores, kind="stable")[: request.k]
        count, picked = len(best), rows.take(pa.array(best))
        columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in CHOOSABLE}
        columns |= {name: pa.array([value] * count) for name, value in FILLED.items()}
        columns |= {name: picked.column(name) for name in picked.column_names}
        columns["score"] = pa.array(scores[best], pa.float32())
        schema = HITS if request.columns is None else pa.schema([CHOOSABLE.field(name) for name in request.columns])
        hits = pa.table([columns[field.name].cast(field.type) for field in schema], schema)
        return SearchResult(hits, not self.incomplete, self.incomplete)


@dataclass
class FakeCompute:
    """Encoders that hash."""

    models: tuple[str, ...] = ("tiny",)
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)

    def encoder(self, model: str | None) -> Encoder:
        if model is None:
            if len(self.models) > 1:
                raise AmbiguousModel(f"several models are open, name one: {choices('', self.models)}")
            model = self.models[0]
        if model not in self.models:
            raise UnknownModel(f"unknown model {model!r}: {choices(model, self.models)}")
        return Encoder(model, "0" * 64, DIMENSION, "tiny-space")

    def encode(self, model: str, texts: Sequence[str]) -> tuple[np.ndarray, str]:
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        return embed(texts), "0" * 64


@dataclass
class FakeControl:
    """The standard actions, answering little; ``more`` adds others."""

    more: dict[str, tuple[Action, Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]]] = field(
        default_factory=dict
    )

    def actions(self) -> Sequence[Action]:
        return [*STANDARD, *(action for action, _ in self.more.values())]

    def call(self, op: str, args: Mapping[str, Any], principal: Principal) -> Iterator[Mapping[str, Any]]:
        if op in self.more:
            yield from self.more[op][1](args)
        elif op == "health":
            yield {"status": "serving"}
        elif op == "sync":
            yield {"progress": 1}
            yield {"results": []}
        else:
            yield {"op": op, "args": dict(args), "principal": principal.name}


class FakeSync:
    """Echoes every message, unless told otherwise."""

    def __init__(self) -> None:
        self.drive: Callable[[Any], None] = self.echo
        self.principals: list[Principal] = []

    @staticmethod
    def echo(transport: Any) -> None:
        while (message := transport.receive(30)) is not None:
            transport.send(*message)

    def exchange(self, principal: Principal, transport: Any) -> None:
        self.principals.append(principal)
        self.drive(transport)


@dataclass
class FakePorts:
    """All ports together; ``ports`` is what a listener takes."""

    access: FakeAccess = field(default_factory=FakeAccess)
    weights: FakeWeights = field(default_factory=FakeWeights)
    memory: FakeMemory = field(default_factory=FakeMemory)
    compute: FakeCompute = field(default_factory=FakeCompute)
    control: FakeControl = field(default_factory=FakeControl)
    sync: FakeSync = field(default_factory=FakeSync)

    @classmethod
    def filled(cls, folder: Path) -> FakePorts:
        """One model ``tiny``, one table ``notes``, one encoder."""
        fakes = cls()
        fakes.weights.add(folder, "tiny", TENSORS)
        fakes.memory.rows["notes"] = NOTES
        fakes.memory.versions["notes"] = 1
        return fakes

    @property
    def ports(self) -> Ports:
        return Ports(self.access, self.weights, self.memory, self.compute, self.control, self.sync)


class Serve:
    """Starts listeners and plain pyarrow clients, and closes them again."""

    def __init__(self, fakes: FakePorts) -> None:
        self._fakes = fakes
        self._listeners: list[FlightListener] = []
        self._clients: list[Any] = []
        self.closers: list[Callable[[], object]] = []  # run before anything is shut down

    def listener(self, ports: Ports | None = None, identify: Any = anyone, **options: Any) -> FlightListener:
        """A running listener on a free port of the loopback."""
        listener = FlightListener(ports or self._fakes.ports, identify, **options).start()
        self._listeners.append(listener)
        return listener

    def client(self, listener: FlightListener | None = None, **options: Any) -> Any:
        """A plain pyarrow client of a listener (default: a new one)."""
        client = fl.FlightClient((listener or self.listener()).uri, **options)
        self._clients.append(client)
        return client

    def shutdown(self) -> list[FlightListener]:
        """Close everything; returns the listeners that did not end."""
        for close in self.closers:
            close()
        for client in self._clients:
            client.close()
        return [listener for listener in self._listeners if not listener.shutdown(grace=0.5)]
