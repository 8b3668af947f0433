"""An Arrow table from anywhere as one checked batch of memories, or one clear error.

Everything is checked before anything is stored. Knows the columns of ``schema``; nothing about files.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import types

from aios_node.engine.errors import BadRequest, TooLarge, choices
from aios_node.memory import media
from aios_node.memory.schema import COLUMNS, DEFAULT_NAMESPACE, JOINT_DIMENSION, MODALITIES, READ_ONLY, Limits
from aios_node.memory.vectors import Vectors, read_vectors

_CONTENT = ("text", "payload", "embedding")
_EARLIEST_US = -62_135_596_800_000_000  # 0001-01-01, the years that every client can show
_LATEST_US = 253_402_300_799_999_999  # 9999-12-31


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Checked rows, column by column, ready to store: every list has one entry per row.

    ``created_at`` is microseconds since 1970 in UTC, ``tags`` JSON arrays.
    """

    id: list[str]
    created_at: list[int]
    modality: list[str]
    text: list[str | None]
    payload: list[bytes | None]
    embedding: Vectors
    joint_embedding: Vectors
    namespace: list[str]
    source: list[str | None]
    tags: list[str]
    importance: list[float | None]
    metadata: list[str | None]

    def __len__(self) -> int:
        return len(self.id)

    def unembedded(self) -> list[int]:
        """Rows that have a text but no embedding."""
        embedded = set(self.embedding.rows.tolist())
        return [row for row, text in enumerate(self.text) if text is not None and row not in embedded]

    def with_embeddings(self, vectors: Vectors) -> RowBatch:
        """The same rows with these embeddings added."""
        return replace(self, embedding=self.embedding.merged(vectors))

    def check_content(self) -> None:
        """Raise ``BadRequest`` when a row has neither text nor payload nor embedding."""
        embedded = set(self.embedding.rows.tolist())
        for row, (text, payload) in enumerate(zip(self.text, self.payload, strict=True)):
            if text is None and payload is None and row not in embedded:
                raise BadRequest(f"row {row}: at least one of {', '.join(_CONTENT)} must not be null")


def read_rows(table: pa.Table, limits: Limits, *, partial: bool = False) -> RowBatch:
    """Check a table of any subset of the columns; ids, times and modalities are filled in.

    ``partial``: the rows are changes to others and need no content. Raises ``BadRequest`` (``TooLarge`` for
    sizes) naming column and row.
    """
    _check_table(table, partial=partial)
    count = table.num_rows
    payload = _binary(_column(table, "payload"), limits.payload)
    text = _strings(_column(table, "text"), "text", limits.text, in_bytes=True)
    batch = RowBatch(
        id=_ids(_names(table, "id", limits), count),
        created_at=_times(_column(table, "created_at"), count),
        modality=_modalities(_names(table, "modality", limits), payload),
        text=text,
        payload=payload,
        embedding=read_vectors(_column(table, "embedding"), "embedding", limit=limits.dimension),
        joint_embedding=_joint(_column(table, "joint_embedding")),
        namespace=[DEFAULT_NAMESPACE if name is None else name for name in _names(table, "namespace", limits)],
        source=_names(table, "source", limits),
        tags=_tags(_column(table, "tags"), limits),
        importance=_importance(_column(table, "importance")),
        metadata=_metadata(_column(table, "metadata"), limits),
    )
    if not partial:
        batch.check_content()
    return batch


def revised(old: RowBatch, changes: RowBatch, given: Collection[str], *, keep_embedding: bool) -> RowBatch:
    """One row with the ``given`` columns taken from ``changes``.

    A new payload brings its modality. A new text brings the embedding that ``changes`` has for it; where there
    is none, ``keep_embedding`` says whether the old one stays.
    """
    names = set(given) | ({"modality"} if "payload" in given else set())
    if "text" in given and "embedding" not in given and (len(changes.embedding) or not keep_embedding):
        names.add("embedding")
    new = replace(old, **{name: getattr(changes, name) for name in names})
    new.check_content()
    return new


def new_ids(count: int) -> list[str]:
    """Ids that sort by time: 12 hexadecimal digits of milliseconds, 20 random ones."""
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    noise = secrets.token_hex(10 * count)
    return [stamp + noise[20 * row : 20 * row + 20] for row in range(count)]


def _check_table(table: pa.Table, *, partial: bool) -> None:
    """Names, presence and physical soundness of the columns."""
    for name in table.column_names:
        if name in READ_ONLY:
            raise BadRequest(f"column {name} is kept by the node and cannot be written; leave it out")
        if name not in COLUMNS.names:
            raise BadRequest(f"unknown column {name[:80]!r}: {choices(name, COLUMNS.names, limit=20)}")
    if len(set(table.column_names)) != table.num_columns:
        raise BadRequest("a column occurs twice")
    if not partial and not set(table.column_names) & set(_CONTENT):
        raise BadRequest(f"at least one of the columns {', '.join(_CONTENT)} is needed")
    try:
        table.validate(full=True)  # offsets, UTF-8 and dictionary indices come from outside
    except pa.ArrowException as error:
        raise BadRequest(f"damaged rows: {str(error).splitlines()[0]}") from error


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column, or nulls where it is absent."""
    if name in table.column_names:
        return table.column(name)
    return pa.chunked_array([pa.nulls(table.num_rows)])


def _bad(name: str, row: int, problem: str) -> BadRequest:
    return BadRequest(f"column {name}, row {row}: {problem}")


def _typed(column: pa.ChunkedArray, name: str, accepts: Callable[[pa.DataType], bool], wanted: str) -> pa.ChunkedArray:
    """The column if its type (or its dictionary's) is accepted or null."""
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if accepts(kind) or types.is_null(kind):
        return column
    raise BadRequest(f"column {name}: {wanted} is needed, not {column.type}")


def _is_string(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _strings(column: pa.ChunkedArray, name: str, limit: int, *, in_bytes: bool) -> list[str | None]:
    values: list[str | None] = _typed(column, name, _is_string, "string").to_pylist()
    for row, value in enumerate(values):
        # A character has at most four bytes: only long values are worth encoding to measure them.
        if value is not None and 4 * len(value) > limit and _size(value, in_bytes) > limit:
            unit = "bytes" if in_bytes else "characters"
            raise TooLarge(f"column {name}, row {row}: longer than {limit} {unit}")
    return values


def _size(value: str, in_bytes: bool) -> int:
    return len(value.encode()) if in_bytes else len(value)


def _names(table: pa.Table, name: str, limits: Limits) -> list[str | None]:
    """A column of short names: not empty, no NUL."""
    values = _strings(_column(table, name), name, limits.name, in_bytes=False)
    for row, value in enumerate(values):
        if value is not None and (not value or "\0" in value):
            raise _bad(name, row, "an empty name or one with a NUL character")
    return values


def _ids(values: list[str | None], count: int) -> list[str]:
    fresh = iter(new_ids(values.count(None)))
    return [next(fresh) if value is None else value for value in values]


def _times(column: pa.ChunkedArray, count: int) -> list[int]:
    """Microseconds since 1970; a time without a zone is taken as UTC, a null as now."""
    now = time.time_ns() // 1000
    if types.is_null(column.type):
        return [now] * count
    if not types.is_timestamp(column.type):
        raise BadRequest(f"column created_at: timestamp is needed, not {column.type}")
    try:
        exact = column.cast(pa.timestamp("us", tz=column.type.tz), safe=column.type.unit != "ns")
    except pa.ArrowException as error:
        raise BadRequest(f"column created_at: {str(error).splitlines()[0]}") from error
    values = [now if value is None else value for value in exact.cast(pa.int64()).to_pylist()]
    for row, value in enumerate(values):
        if not _EARLIEST_US <= value <= _LATEST_US:
            raise _bad("created_at", row, "outside the years 1 to 9999")
    return values


def _modalities(values: list[str | None], payload: list[bytes | None]) -> list[str]:
    found = []
    for row, (value, content) in enumerate(zip(values, payload, strict=True)):
        kind = value if value is not None else "text" if content is None else media.modality(content)
        if kind is None:
            raise _bad("modality", row, f"the payload is no known file; say which it is: {', '.join(MODALITIES)}")
        if kind not in MODALITIES:
            raise _bad("modality", row, f"{kind[:80]!r} is none of {', '.join(MODALITIES)}")
        found.append(kind)
    return found


def _binary(column: pa.ChunkedArray, limit: int) -> list[bytes | None]:
    values: list[bytes | None] = _typed(column, "payload", _is_binary, "binary").to_pylist()
    for row, value in enumerate(values):
        if value is not None and len(value) > limit:
            raise TooLarge(f"column payload, row {row}: longer than {limit} bytes")
    return values


def _joint(column: pa.ChunkedArray) -> Vectors:
    vectors = read_vectors(column, "joint_embedding", limit=JOINT_DIMENSION)
    if vectors.dimension not in (None, JOINT_DIMENSION):
        raise _bad("joint_embedding", int(vectors.rows[0]), f"{vectors.dimension} values, not {JOINT_DIMENSION}")
    return vectors


def _tags(column: pa.ChunkedArray, limits: Limits) -> list[str]:
    """Each row's tags as a JSON array; null means none."""

    def accepts(kind: pa.DataType) -> bool:
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        inner = kind.value_type if is_list else None
        if inner is not None and types.is_dictionary(inner):
            inner = inner.value_type
        return inner is not None and (_is_string(inner) or bool(types.is_null(inner)))

    values = _typed(column, "tags", accepts, "list of string").to_pylist()
    for row, tags in enumerate(values):
        for problem in _tag_problems(tags or [], limits):
            raise _bad("tags", row, problem)
    return [json.dumps(tags, ensure_ascii=False) if tags else "[]" for tags in values]


def _tag_problems(tags: list[Any], limits: Limits) -> Iterator[str]:
    if len(tags) > limits.tags:
        yield f"more than {limits.tags} tags"
    for tag in tags:
        if not tag or "\0" in tag or len(tag) > limits.name:
            yield f"a tag is null, empty, longer than {limits.name} characters or holds a NUL"


def _importance(column: pa.ChunkedArray) -> list[float | None]:
    def accepts(kind: pa.DataType) -> bool:
        return bool(types.is_floating(kind) or types.is_integer(kind))

    kind = _typed(column, "importance", accepts, "float")
    values: list[float | None] = kind.cast(pa.float32(), safe=False).to_pylist()
    for row, value in enumerate(values):
        if value is not None and not -3.5e38 < value < 3.5e38:  # NaN compares false
            raise _bad("importance", row, "NaN or infinite")
    return values


def _metadata(column: pa.ChunkedArray, limits: Limits) -> list[str | None]:
    values = _strings(column, "metadata", limits.metadata, in_bytes=True)
    for row, value in enumerate(values):
        if value is not None:
            try:
                json.loads(value, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise _bad("metadata", row, f"not JSON: {str(error)[:80]}") from error
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
