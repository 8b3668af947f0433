"""One memory table: a folder with its log, its readers, its one writer and its vectors in memory.

Knows rows, predicates and vectors; not which model embeds, nor that there are other tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aios_node.memory import changes, fetch, log, retrieve
from aios_node.memory.access import AccessCounter
from aios_node.memory.matrix import Matrix, View
from aios_node.memory.readers import Readers
from aios_node.memory.schema import COLUMNS, Limits, TableStats, table_schema
from aios_node.memory.storage import clear_errors
from aios_node.memory.writer import Txn, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from aios_node.memory.predicates import Predicate
    from aios_node.memory.retrieve import Query
    from aios_node.memory.rows import RowBatch

_WITHOUT_VECTOR = """
SELECT rows.seq, rows.text FROM rows LEFT JOIN vectors ON vectors.seq = rows.seq
WHERE rows.text IS NOT NULL AND vectors.seq IS NULL AND rows.seq > ? ORDER BY rows.seq LIMIT ?
"""


@dataclass(frozen=True)
class Facts:
    """The counters of a table: ``dimension`` and ``space`` are None before its first vector."""

    dimension: int | None
    space: str | None
    version: int


class MemoryTable:
    """All methods may be called from many threads; those that write return when the change is durable."""

    def __init__(self, folder: Path, limits: Limits, *, create: bool = False) -> None:
        self.name = folder.name
        self._folder = folder
        self._limits = limits
        log.create_or_upgrade(folder)
        self._matrix = Matrix()
        self._access = AccessCounter()
        self._readers = Readers(folder)
        with clear_errors(f"memory table {self.name}"):
            self._writer = Writer(folder, self._matrix, self._access.write)
        if create:
            try:
                self.load()  # nothing to read yet: from now on the vectors in memory follow every write
            except BaseException:
                self.close()
                raise

    def facts(self) -> Facts:
        """Dimension, space and version as of now."""
        with self._readers.snapshot() as connection:
            return _facts(connection)

    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows, with dimension and space as metadata."""
        facts = self.facts()
        return table_schema(facts.dimension, facts.space)

    def load(self) -> None:
        """Read the vectors into memory, should nobody have searched yet."""
        with self._consistent():
            pass

    def put(self, batch: RowBatch, space: str | None, *, certain: bool) -> tuple[int, int]:
        """Store rows; see ``changes.put``. Returns rows given and the table's version."""
        return self._writer.run(lambda txn: changes.put(txn, batch, space, certain=certain))

    def change(self, apply: Callable[[Txn, pa.Table], Any], name: str) -> tuple[Any, int]:
        """Run ``apply`` with the row of this id (a table of none or one row) inside one write transaction."""

        def with_row(txn: Txn) -> Any:
            return apply(txn, fetch.by_id(txn.connection, [name], COLUMNS)[0])

        return self._writer.run(with_row)

    def delete(self, where: Predicate) -> int:
        """Remove the rows that match; returns how many."""
        return self._writer.run(lambda txn: changes.delete(txn, where.sql, where.values))[0]

    def embed(self, seqs: Sequence[int], vectors: NDArray[np.float32], space: str) -> int:
        """Give rows without an embedding one; see ``changes.embed``."""
        return self._writer.run(lambda txn: changes.embed(txn, seqs, vectors, space))[0]

    def unembedded(self, after: int, count: int) -> list[tuple[int, str]]:
        """Up to ``count`` (seq, text) of rows with a text and no embedding, beyond the seq ``after``."""
        with self._readers.snapshot() as connection:
            return connection.execute(_WITHOUT_VECTOR, (after, count)).fetchall()

    def get(self, ids: Sequence[str], columns: pa.Schema) -> pa.Table:
        """The rows of these ids that exist, in that order."""
        with self._readers.snapshot() as connection:
            rows, found = fetch.by_id(connection, ids, columns)
        self._count(found)
        return rows

    def scan(self, columns: pa.Schema, where: Predicate, batch_rows: int) -> pa.RecordBatchReader:
        """All rows that match, as of the first batch, oldest first."""

        def batches() -> Iterator[pa.RecordBatch]:
            size = self._limits.batch_bytes
            with self._readers.snapshot() as connection:
                yield from fetch.scan(connection, columns, where.sql, where.values, rows=batch_rows, size=size)

        return pa.RecordBatchReader.from_batches(columns, batches())

    def search(self, query: Query) -> pa.Table:
        """The hits of ``query``, exact, best first."""
        with self._consistent() as (connection, view):
            hits, ids = retrieve.search(connection, view, query)
        self._count(ids)
        return hits

    def stats(self) -> TableStats:
        """Counts over all rows."""
        with self._readers.snapshot() as connection:
            facts = _facts(connection)
            (rows,) = connection.execute("SELECT count(*) FROM rows").fetchone()
            (embedded,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            namespaces = dict(connection.execute("SELECT namespace, count(*) FROM rows GROUP BY 1 ORDER BY 1"))
            modalities = dict(connection.execute("SELECT modality, count(*) FROM rows GROUP BY 1 ORDER BY 1"))
        return TableStats(
            name=self.name,
            rows=rows,
            embedded=embedded,
            dimension=facts.dimension,
            space=facts.space,
            version=facts.version,
            bytes=log.file_bytes(self._folder),
            namespaces=namespaces,
            modalities=modalities,
        )

    def close(self) -> None:
        """Close all files; running scans close theirs when they end. Idempotent."""
        with clear_errors(f"memory table {self.name}"):
            self._readers.close()
            self._writer.close()

    @contextmanager
    def _consistent(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """A snapshot of the log and the vectors of the same version."""
        while True:
            with self._readers.snapshot() as connection:
                view = self._matrix.view(connection)
                if view is not None:
                    yield connection, view
                    return

    def _count(self, ids: Sequence[str]) -> None:
        if self._access.record(ids):
            self._writer.flush_if_idle()


def _facts(connection: sqlite3.Connection) -> Facts:
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    return Facts(meta.get("dimension"), meta.get("space"), int(meta["version"]))
