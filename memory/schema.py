"""What a memory table looks like: its Arrow columns, its names and its limits.

Knows Arrow types only: nothing about files, SQL or search.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from aios_node.engine.errors import BadRequest, choices

SCHEMA_VERSION = 2
"""Version of the stored layout (SQLite ``user_version``) and of what exports carry."""

MODALITIES = ("text", "image", "audio")
DEFAULT_NAMESPACE = "default"
JOINT_DIMENSION = 768

TIMESTAMP = pa.timestamp("us", tz="UTC")

COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("payload", pa.large_binary()),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("joint_embedding", pa.list_(pa.float32())),
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("importance", pa.float32()),
        pa.field("metadata", pa.string()),
    ]
)
"""The columns that callers write. ``embedding`` has the table's dimension, ``joint_embedding`` 768."""

ACCESS_COLUMNS = pa.schema([pa.field("last_access", TIMESTAMP), pa.field("access_count", pa.int64())])
"""Columns that change by reading: kept beside the rows, joined when asked for, never written by callers."""

READ_ONLY = (*ACCESS_COLUMNS.names, "association_links")

SPACE_KEY = b"aios.space"
DIMENSION_KEY = b"aios.dimension"
VERSION_KEY = b"aios.memory"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Limits:
    """Sizes beyond which one clear error comes back and nothing is stored.

    Bytes for ``text``, ``payload`` and ``metadata``; characters for names (id, namespace, source, tags).
    """

    text: int = 16 << 20
    payload: int = 256 << 20
    metadata: int = 1 << 20
    name: int = 1024
    tags: int = 1024
    dimension: int = 16384
    k: int = 10_000
    batch_bytes: int = 1 << 20  # a scanned batch ends soon after this much


@dataclass(frozen=True)
class TableStats:
    """What a table holds now. ``bytes`` counts its files, ``embedded`` the rows that search can find."""

    name: str
    rows: int
    embedded: int
    dimension: int | None
    space: str | None
    version: int
    bytes: int
    namespaces: dict[str, int]
    modalities: dict[str, int]


def is_table_name(name: str) -> bool:
    """Whether ``name`` may name a table, and so a folder."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_table_name(name: str) -> str:
    """Return ``name`` if it may name a table; raises ``BadRequest``."""
    if is_table_name(name):
        return name
    raise BadRequest(
        f"{str(name)[:80]!r} cannot name a memory table: use 1 to 64 of a-z, 0-9, '_' and '-', "
        "starting with a letter or digit"
    )


def table_schema(dimension: int | None, space: str | None) -> pa.Schema:
    """The Arrow schema of one table, with its dimension and embedding space as metadata."""
    metadata = {VERSION_KEY: str(SCHEMA_VERSION).encode()}
    if dimension is not None:
        metadata[DIMENSION_KEY] = str(dimension).encode()
    if space is not None:
        metadata[SPACE_KEY] = space.encode()
    return COLUMNS.with_metadata(metadata)


def declared_space(schema: pa.Schema) -> str | None:
    """The embedding space that a schema's metadata names, if any; raises ``BadRequest`` on bad UTF-8."""
    value = (schema.metadata or {}).get(SPACE_KEY)
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"schema metadata {SPACE_KEY.decode()} is not UTF-8") from error


def pick_columns(names: tuple[str, ...] | list[str] | None, available: pa.Schema) -> pa.Schema:
    """The fields named, in that order (None: all); raises ``BadRequest`` for an unknown or doubled name."""
    if names is None:
        return available
    known = set(available.names)
    for name in names:
        if name not in known:
            raise BadRequest(f"unknown column {str(name)[:80]!r}: {choices(str(name), known, limit=20)}")
    if len(set(names)) != len(names) or not names:
        raise BadRequest("columns must be one or more different names")
    return pa.schema([available.field(name) for name in names], metadata=available.metadata)
