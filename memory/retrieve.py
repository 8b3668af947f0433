"""One search over one snapshot of a table: filter, nearest vectors, rows, scores.

Knows the log's SQL and the matrix; not which model made the query vector. Signals that this version does
not compute (association, full text, recency) are null, never guessed.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from aios_node.memory.fetch import READABLE, by_seq
from aios_node.memory.predicates import Predicate
from aios_node.memory.topk import nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.memory.matrix import View

SIGNALS = ("score", "similarity", "association", "text_score", "recency")

HITS = pa.schema(
    [READABLE.field(name) for name in ("id", "created_at", "modality", "text", "namespace", "source", "tags")]
    + [READABLE.field("metadata")]
    + [pa.field(name, pa.float32()) for name in SIGNALS]
    + [pa.field("node", pa.string())]
)
"""What a search answers, best first. ``node`` is filled by whoever asks several nodes."""

CHOOSABLE = pa.schema([*HITS, *(field for field in READABLE if field.name not in HITS.names)])
"""What ``columns`` may name: the hit columns and everything else that a table holds."""

_IN_ORDER = "SELECT seq FROM rows WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"


@dataclass(frozen=True, eq=False)
class Query:
    """A checked search: ``vector`` float32 [d], ``columns`` a part of ``CHOOSABLE``, metadata included."""

    vector: NDArray[np.float32]
    k: int
    where: Predicate | None
    alpha: float
    columns: pa.Schema


def search(connection: sqlite3.Connection, view: View, query: Query) -> tuple[pa.Table, list[str]]:
    """The hits of ``query`` in the snapshot that ``connection`` and ``view`` share, and their ids.

    Exact; ordered by (-score, id).
    """
    only = None if query.where is None else view.slots_of(_chosen(connection, query.where))
    if not view.living or (only is not None and not len(only)):
        return query.columns.empty_table(), []
    slots, similarity = nearest(view, query.vector, query.k, only)
    seqs = _cut(connection, view.seqs[slots], similarity, query.k)
    stored = {"id": READABLE.field("id")} | {f.name: f for f in query.columns if f.name in READABLE.names}
    rows = by_seq(connection, seqs, pa.schema(stored.values()))
    return _hits(rows, similarity[: len(seqs)], query)


def _chosen(connection: sqlite3.Connection, where: Predicate) -> NDArray[np.int64]:
    """The seqs of the rows that the filter lets through, in any order.

    SQLite joins the numbers and NumPy splits them: for many rows a quarter of the time of one tuple each.
    """
    statement = f"SELECT group_concat(seq) FROM rows WHERE {where.sql}"  # noqa: S608 - a Predicate's SQL, values apart
    (joined,) = connection.execute(statement, where.values).fetchone()
    return np.fromstring(joined or "", np.int64, sep=",")


def _cut(connection: sqlite3.Connection, seqs: NDArray[np.int64], similarity: NDArray[np.float32], k: int) -> list[int]:
    """At most ``k`` seqs: all that are better than the last score, then those that tie with it, by id."""
    if len(seqs) <= k:
        return [int(seq) for seq in seqs]
    better = int(np.count_nonzero(similarity > similarity[k - 1]))
    ties = json.dumps(seqs[better:].tolist())
    chosen = connection.execute(_IN_ORDER, (ties, k - better))
    return [*seqs[:better].tolist(), *(seq for (seq,) in chosen)]


def _hits(rows: pa.Table, similarity: NDArray[np.float32], query: Query) -> tuple[pa.Table, list[str]]:
    """Rows and scores as one table ordered by (-score, id), and all ids in that order."""
    ids: list[str] = rows.column("id").to_pylist()
    order = sorted(range(len(ids)), key=lambda row: (-float(similarity[row]), ids[row]))
    signals = {
        "similarity": similarity,
        "score": (np.float64(query.alpha) * similarity.astype(np.float64)).astype(np.float32),
    }
    columns = [
        rows.column(field.name) if field.name in rows.column_names else _signal(field, signals, len(ids))
        for field in query.columns
    ]
    return pa.table(columns, schema=query.columns).take(order), [ids[row] for row in order]


def _signal(field: pa.Field, signals: dict[str, NDArray[np.float32]], count: int) -> pa.Array:
    return pa.array(signals[field.name]) if field.name in signals else pa.nulls(count, field.type)
