"""The changes that a table can undergo, as functions on a transaction.

Each runs inside the writer's savepoint: when it raises, nothing of it remains. Knows SQL and row batches;
nothing about locks, models or search.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aios_node.engine.errors import BadRequest, SpaceMismatch
from aios_node.memory.rows import RowBatch
from aios_node.memory.vectors import Vectors
from aios_node.memory.writer import Txn

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ADD_ROW = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SEQS = "SELECT seq FROM rows WHERE id IN (SELECT value FROM json_each(?))"
_WAITING = """
SELECT seq FROM rows WHERE seq IN (SELECT value FROM json_each(?)) AND seq NOT IN (SELECT seq FROM vectors)
"""
_BURY = "INSERT INTO graves SELECT ?, seq FROM vectors WHERE seq IN (SELECT value FROM json_each(?))"
_REMOVE = (
    "DELETE FROM vectors WHERE seq IN (SELECT value FROM json_each(?))",
    "DELETE FROM joints WHERE seq IN (SELECT value FROM json_each(?))",
    "DELETE FROM payloads WHERE seq IN (SELECT value FROM json_each(?))",
    "DELETE FROM rows WHERE seq IN (SELECT value FROM json_each(?))",
)
_FORGET = "DELETE FROM access WHERE id IN (SELECT value FROM json_each(?))"
_RENUMBER = (
    "UPDATE rows SET seq = ? WHERE seq = ?",
    "UPDATE joints SET seq = ? WHERE seq = ?",
    "UPDATE payloads SET seq = ? WHERE seq = ?",
)
_ADD_PAYLOAD = "INSERT INTO payloads VALUES (?, ?)"
_ADD_VECTOR = "INSERT INTO vectors VALUES (?, ?)"
_ADD_JOINT = "INSERT INTO joints VALUES (?, ?)"


def put(txn: Txn, batch: RowBatch, space: str | None, *, certain: bool) -> int:
    """Store the rows; a row replaces the one of the same id, the last of several in the batch wins.

    ``space`` is where the batch's embeddings live; ``certain`` when that is known, rather than
    supposed. Returns the number of rows given. Raises ``BadRequest`` (another dimension)
    and ``SpaceMismatch``.
    """
    if len(batch):
        _check_space(txn, batch.embedding, space, certain=certain)
        last = {name: row for row, name in enumerate(batch.id)}
        _remove(txn, _seqs_of(txn.connection, list(last)))
        _insert(txn, batch, sorted(last.values()))
        txn.changed()
    return len(batch)


def embed(txn: Txn, seqs: Sequence[int], vectors: NDArray[np.float32], space: str) -> int:
    """Give rows that still have none an embedding; float32 [n, d] for the n ``seqs``. Returns how many got one.

    A row that was changed or removed meanwhile has another seq and is left alone.
    """
    waiting = {seq for (seq,) in txn.connection.execute(_WAITING, (json.dumps(list(seqs)),))}
    rows = np.array([row for row, seq in enumerate(seqs) if seq in waiting], np.int64)
    if len(rows):
        _check_space(txn, Vectors(vectors[rows], rows), space, certain=True)
        _renumber(txn, [seqs[row] for row in rows], vectors[rows])
        txn.changed()
    return len(rows)


def delete(txn: Txn, where: str, values: Sequence[object]) -> int:
    """Remove the rows for which the SQL ``where`` holds; returns how many."""
    statement = f"SELECT seq, id FROM rows WHERE {where}"  # noqa: S608 - a Predicate's SQL, values apart
    found = txn.connection.execute(statement, values).fetchall()
    if found:
        _remove(txn, [seq for seq, _ in found])
        txn.connection.execute(_FORGET, (json.dumps([name for _, name in found]),))
        txn.changed()
    return len(found)


def _check_space(txn: Txn, embedding: Vectors, space: str | None, *, certain: bool) -> None:
    """The table's dimension and space bind; the first vectors set them."""
    dimension = embedding.dimension
    if dimension is None:
        return
    if txn.dimension is None:
        txn.set_space(dimension, space)
        return
    if dimension != txn.dimension:
        raise BadRequest(
            f"column embedding, row {embedding.rows[0]}: {dimension} values, the table's dimension is {txn.dimension}"
        )
    if certain and space != txn.space:
        raise SpaceMismatch(
            f"the embeddings are of space {space!r}, the table's are of {txn.space!r}: "
            "they cannot be compared, use another table"
        )


def _seqs_of(connection: sqlite3.Connection, ids: list[str]) -> list[int]:
    return [seq for (seq,) in connection.execute(_SEQS, (json.dumps(ids),))]


def _remove(txn: Txn, seqs: Sequence[int]) -> None:
    if not seqs:
        return
    chosen = json.dumps(list(seqs))
    txn.connection.execute(_BURY, (txn.version + 1, chosen))
    for statement in _REMOVE:
        txn.connection.execute(statement, (chosen,))


def _insert(txn: Txn, batch: RowBatch, keep: Sequence[int]) -> None:
    """Append these rows of the batch."""
    run = txn.connection.executemany
    seqs = dict(zip(keep, txn.take_seqs(len(keep)), strict=True))
    columns = (batch.id, batch.created_at, batch.modality, batch.text, batch.namespace)
    more = (batch.source, batch.tags, batch.importance, batch.metadata)
    run(_ADD_ROW, ((seq, *(c[row] for c in columns), *(c[row] for c in more)) for row, seq in seqs.items()))
    payloads = ((seq, batch.payload[row]) for row, seq in seqs.items() if batch.payload[row] is not None)
    run(_ADD_PAYLOAD, payloads)
    for statement, vectors in ((_ADD_VECTOR, batch.embedding), (_ADD_JOINT, batch.joint_embedding)):
        blobs = zip(vectors.rows.tolist(), vectors.values.astype("<f4"), strict=True)
        run(statement, ((seqs[row], memoryview(blob)) for row, blob in blobs if row in seqs))


def _renumber(txn: Txn, seqs: Sequence[int], vectors: NDArray[np.float32]) -> None:
    """New content, new seq: move the rows and add their vectors."""
    fresh = txn.take_seqs(len(seqs))
    for statement in _RENUMBER:
        txn.connection.executemany(statement, zip(fresh, seqs, strict=True))
    blobs = zip(fresh, (memoryview(vector) for vector in vectors.astype("<f4")), strict=True)
    txn.connection.executemany(_ADD_VECTOR, blobs)
