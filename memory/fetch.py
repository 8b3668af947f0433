"""Rows of the log as Arrow batches. Knows which table holds which column; nothing about search."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from aios_node.memory.schema import ACCESS_COLUMNS, COLUMNS
from aios_node.memory.vectors import list_array

READABLE = pa.schema([*COLUMNS, *ACCESS_COLUMNS])
"""All columns that can be read: what callers write and what reading itself leaves behind."""

_ELSEWHERE = {  # column -> (table, its column, how it is joined)
    "payload": ("payloads", "value", "seq"),
    "embedding": ("vectors", "value", "seq"),
    "joint_embedding": ("joints", "value", "seq"),
    "last_access": ("access", "last_access", "id"),
    "access_count": ("access", "access_count", "id"),
}
_AT_ONCE = 64  # rows per step of a scan: small, because one payload may be hundreds of MiB


def select(columns: Sequence[str]) -> str:
    """``SELECT seq, columns... FROM rows`` with the joins that these columns need."""
    terms, joins = ["rows.seq"], []
    for column in columns:
        table, name, key = _ELSEWHERE.get(column, ("rows", column, ""))
        term = f"{table}.{name}"
        terms.append(f"coalesce({term}, 0)" if column == "access_count" else term)
        join = f"LEFT JOIN {table} ON {table}.{key} = rows.{key}"
        if table != "rows" and join not in joins:
            joins.append(join)
    return " ".join([f"SELECT {', '.join(terms)} FROM rows", *joins])  # noqa: S608 - names from this module only


def by_seq(connection: sqlite3.Connection, seqs: Sequence[int], schema: pa.Schema) -> pa.Table:
    """These rows, in the order of ``seqs``; those that are not there are left out."""
    return _ordered(connection, "seq", seqs, schema)[0]


def by_id(connection: sqlite3.Connection, ids: Sequence[str], schema: pa.Schema) -> tuple[pa.Table, list[str]]:
    """These rows, in the order of ``ids``, and the ids that were found."""
    return _ordered(connection, "id", ids, schema)


def scan(
    connection: sqlite3.Connection, schema: pa.Schema, where: str, values: Sequence[Any], *, rows: int, size: int
) -> Iterator[pa.RecordBatch]:
    """All rows for which the SQL ``where`` holds, oldest first, in batches of at most ``rows`` rows.

    A batch also ends soon after ``size`` bytes.
    """
    cursor = connection.execute(f"{select(schema.names)} WHERE {where} ORDER BY rows.seq", values)
    batch: list[tuple[Any, ...]] = []
    held = 0
    while found := cursor.fetchmany(min(_AT_ONCE, rows - len(batch))):
        batch += found
        held += sum(len(value) for row in found for value in row if isinstance(value, (str, bytes)))
        if len(batch) >= rows or held >= size:
            yield to_batch(batch, schema)
            batch, held = [], 0
    if batch:
        yield to_batch(batch, schema)


def to_batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of ``select(schema.names)`` as one Arrow batch."""
    columns = zip(*rows, strict=True) if rows else iter([()] * (1 + len(schema)))
    next(columns)  # seq
    return pa.record_batch([_array(field, values) for field, values in zip(schema, columns, strict=True)], schema)


def _ordered(
    connection: sqlite3.Connection, key: str, keys: Sequence[Any], schema: pa.Schema
) -> tuple[pa.Table, list[Any]]:
    chosen = "IN (SELECT value FROM json_each(?))"
    statement = f"{select([key, *schema.names])} WHERE rows.{key} {chosen}"
    rows = {row[1]: (row[0], *row[2:]) for row in connection.execute(statement, (json.dumps(list(keys)),))}
    found = [value for value in dict.fromkeys(keys) if value in rows]
    batch = to_batch([rows[value] for value in found], schema)
    return pa.Table.from_batches([batch], schema), found


def _array(field: pa.Field, values: Iterable[Any]) -> pa.Array:
    if field.name in ("embedding", "joint_embedding"):
        return list_array(list(values))
    if field.name == "tags":
        return pa.array([json.loads(tags) for tags in values], field.type)
    return pa.array(list(values), field.type)
