"""What the Flight server needs from the rest of the node, as Protocols and plain dataclasses.

The node implements these; the tests implement them in memory. Nothing here knows how weights are stored,
how memories are searched or who is trusted. Every method may raise any ``AiosError``; whatever else it
raises reaches the caller as code ``internal`` with an id, and the log with its traceback. All methods
are called from many threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Right = Literal["read", "write", "admin"]
PrincipalKind = Literal["open", "client", "peer", "admin"]


@dataclass(frozen=True)
class Principal:
    """Who calls. ``name`` is the token's name, or the node id (64 hex characters) for a peer."""

    name: str
    kind: PrincipalKind


class AccessPort(Protocol):
    """Who someone is and what they may do. The server asks before it does any work."""

    def authenticate_token(self, token: str) -> Principal:
        """Return whom a bearer token belongs to. Raises ``Unauthenticated``."""
        ...

    def peer(self, node_id: str) -> Principal:
        """Return the principal (kind ``peer``) of a node that proved its id by mTLS. Raises ``Unauthenticated``."""
        ...

    def check(self, principal: Principal, right: Right, resource: str) -> None:
        """Raise ``Unauthorized`` unless allowed.

        Resources: ``weights/<model>``, ``memory/<table>``, ``encode/<model>``, and ``node/<action>`` for
        actions that concern no single model or table.
        """
        ...


@dataclass(frozen=True)
class ShardFile:
    """One immutable Parquet V2 file of a version on this machine."""

    path: Path
    file: str  # plain name shown to clients
    bytes: int
    sha256: str
    tensors: int  # rows


@dataclass(frozen=True)
class ModelVersion:
    """One version of one model, ready to be served."""

    model: str
    version: str  # full id, 64 hex characters
    shards: tuple[ShardFile, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def tensors(self) -> int:
        """Rows over all shards."""
        return sum(shard.tensors for shard in self.shards)


class WeightsPort(Protocol):
    """Models and versions that can be served."""

    def models(self) -> Sequence[str]:
        """Names of all models that have an active version."""
        ...

    def resolve(self, model: str, version: str | None) -> ModelVersion:
        """The version with this id or unique prefix; None is the active one.

        Raises ``UnknownModel`` or ``UnknownVersion``; the message repeats the name and says what exists.
        """
        ...

    def lease(self, model: str, version: str) -> AbstractContextManager[ModelVersion]:
        """The same for a full id, protected from garbage collection while the context is open.

        The server holds it from opening a shard until its stream has ended.
        """
        ...


@dataclass(frozen=True)
class TableInfo:
    """A memory table as listings show it."""

    name: str
    schema: pa.Schema  # what ``scan`` yields
    rows: int  # -1: not known
    bytes: int  # approximate; -1: not known
    version: int  # grows with every change


@dataclass(frozen=True)
class SearchRequest:
    """One search, already validated in form: at least one of text, vector, image and audio is given."""

    table: str
    text: str | None = None
    vector: tuple[float, ...] | None = None
    image: bytes | None = None  # a file's bytes
    audio: bytes | None = None
    k: int = 10
    filter: str | None = None  # SQL boolean; the memory room parses it
    alpha: float = 1.0
    beta: float = 0.0
    scope: Literal["local", "network"] = "local"
    modalities: tuple[str, ...] | None = None
    namespace: str | None = None
    columns: tuple[str, ...] | None = None
    space: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, with the columns asked for (default: ``HITS``), and whether every node answered."""

    hits: pa.Table
    complete: bool = True
    missing: tuple[str, ...] = ()  # names of nodes that did not answer


@dataclass(frozen=True)
class PutResult:
    """What one put made durable."""

    rows: int
    version: int  # of the table, after the put


class MemoryPort(Protocol):
    """Memory tables."""

    def tables(self) -> Sequence[TableInfo]:
        """All tables."""
        ...

    def table(self, name: str) -> TableInfo:
        """One table. Raises ``UnknownTable``, repeating the name and what exists."""
        ...

    def scan(self, name: str) -> pa.RecordBatchReader | pa.Table:
        """All rows of a table as of now, in batches of about 1 MiB. Raises ``UnknownTable``."""
        ...

    def search(self, requests: Sequence[SearchRequest], principal: Principal) -> Sequence[SearchResult]:
        """Answer searches in order, one result each (several at once let the node embed them together).

        Raises ``UnknownTable``, ``BadRequest`` (filter, dimension), ``SpaceMismatch``.
        """
        ...

    def put(self, name: str, rows: pa.Table, principal: Principal) -> PutResult:
        """Write rows, all or none, creating the table if needed; return only when they are durable.

        Raises ``BadRequest`` when rows do not fit, ``StorageFull``, ``StorageError``.
        """
        ...


@dataclass(frozen=True)
class Encoder:
    """An open model that turns texts into vectors."""

    model: str
    version: str
    dimension: int
    space: str


class ComputePort(Protocol):
    """Inference on open models."""

    def encoder(self, model: str | None) -> Encoder:
        """The encoder of this name; None: the only one. Raises ``UnknownModel`` or ``AmbiguousModel``."""
        ...

    def encode(self, model: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], str]:
        """Vectors float32 [n, d] of unit length, and the version that made them. Raises ``Busy``."""
        ...


@dataclass(frozen=True)
class Action:
    """An action that ``do_action`` offers.

    ``resource`` may name arguments in braces (``memory/{table}``); those are then required and checked.
    ``right`` None: anyone who is authenticated may call it, and it is not counted against stream caps.
    """

    name: str
    description: str
    right: Right | None
    resource: str = ""


class ControlPort(Protocol):
    """Actions on the node: JSON in, JSON objects out."""

    def actions(self) -> Sequence[Action]:
        """All actions. ``aios_node.flight.actions.STANDARD`` holds those of the public contract."""
        ...

    def call(self, op: str, args: Mapping[str, Any], principal: Principal) -> Iterator[Mapping[str, Any]]:
        """Run one action; yields progress and results. The right was checked; arguments beyond it were not."""
        ...


class SyncTransport(Protocol):
    """One open sync stream, seen from either end. One thread may send while another receives."""

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        """Send one message; blocks while the other side is behind. Raises ``TransferAborted``, ``TooLarge``."""
        ...

    def receive(self, timeout: float | None = None) -> tuple[bytes, bytes | None] | None:
        """Next message, or None when the other side ended the stream.

        Raises ``TimeoutError`` when nothing came in ``timeout`` seconds (the stream stays usable) and
        ``AiosError`` when the stream broke. None does not mean success: only the protocol's own COMMIT does.
        """
        ...

    def close(self) -> None:
        """End the stream; never blocks longer than a few seconds. Idempotent."""
        ...


class SyncPort(Protocol):
    """The accepting side of a sync."""

    def exchange(self, principal: Principal, transport: SyncTransport) -> None:
        """Drive one session to its end on the calling thread. The server closes the transport afterwards."""
        ...


@dataclass(frozen=True)
class Ports:
    """Everything the server calls."""

    access: AccessPort
    weights: WeightsPort
    memory: MemoryPort
    compute: ComputePort
    control: ControlPort
    sync: SyncPort
