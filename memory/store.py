"""The memory store: tables in a folder, and the few calls that a person types.

Knows which model embeds (a Protocol) and which table is meant; rows, files and search live below.

    store = MemoryStore.open("memory", embedder=engine)
    store.add(text="the kettle is on", tags=["kitchen"])
    store.search(text="tea", k=3)
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterable, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from aios_node.engine.errors import BadRequest, NotFound, Unavailable, UnknownTable, choices
from aios_node.memory import changes, log, query, retrieve, transfer
from aios_node.memory.compose import one_row
from aios_node.memory.embed import Embedder, complete, embed_texts, fitting
from aios_node.memory.fetch import READABLE
from aios_node.memory.filters import compile_filter
from aios_node.memory.predicates import Predicate, with_ids
from aios_node.memory.rows import RowBatch, read_rows, revised
from aios_node.memory.schema import (
    COLUMNS,
    Limits,
    TableStats,
    check_table_name,
    declared_space,
    is_table_name,
    pick_columns,
)
from aios_node.memory.storage import clear_errors, sync_folder
from aios_node.memory.table import MemoryTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios_node.memory.writer import Txn

_DROPPED = ".dropped-"


class MemoryStore:
    """All memory tables of one folder. Every method may be called from many threads.

    What writes returns when it is durable. ``embedder`` may be replaced at any time; None means that texts
    are kept without an embedding until ``embed_missing``.
    """

    def __init__(self, path: Path, embedder: Embedder | None, limits: Limits) -> None:
        self.path = path
        self.embedder = embedder
        self.limits = limits
        self._lock = threading.Lock()
        self._open: dict[str, MemoryTable] = {}
        self._closed = False

    @classmethod
    def open(cls, path: str | PathLike[str], embedder: Embedder | None = None, *, limits: Limits | None = None) -> Self:
        """Open or make the folder; tables are opened when first used. Raises ``StorageError``."""
        folder = Path(path)
        with clear_errors(f"memory folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{_DROPPED}*"):
                shutil.rmtree(left)
        return cls(folder, embedder, limits or Limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- writing

    def add(
        self,
        table: str = "default",
        *,
        text: str | None = None,
        image: bytes | PathLike[str] | None = None,
        audio: bytes | PathLike[str] | None = None,
        id: str | None = None,  # noqa: A002 - the column's name
        namespace: str | None = None,
        source: str | None = None,
        tags: Iterable[str] = (),
        importance: float | None = None,
        metadata: dict[str, Any] | str | None = None,
        embedding: Sequence[float] | NDArray[np.floating] | None = None,
        created_at: datetime | None = None,
        space: str | None = None,
    ) -> str:
        """Remember one thing; returns its id. The same id replaces.

        ``image`` and ``audio`` are a file's bytes or a ``pathlib.Path``; ``space`` names where a given
        ``embedding`` lives. Raises ``BadRequest``, ``TooLarge``, ``SpaceMismatch``, ``StorageFull``.
        """
        values: dict[str, Any] = {"text": text, "image": image, "audio": audio, "id": id, "namespace": namespace}
        values |= {"source": source, "tags": tags, "importance": importance, "metadata": metadata}
        values |= {"embedding": embedding, "created_at": created_at}
        batch = read_rows(one_row(values), self.limits)
        self._put(table, batch, space)
        return batch.id[0]

    def add_table(self, rows: pa.Table, table: str = "default", *, space: str | None = None) -> int:
        """Remember many at once, all or none; returns the number of rows given.

        Any subset of the columns with at least one of text, payload and embedding. The embeddings' space is
        ``space``, else what the schema's metadata names (``aios.space``), else taken to be this node's model
        where the dimension fits. Raises ``BadRequest`` naming column and row; the table is then unchanged.
        """
        batch = read_rows(rows, self.limits)
        self._put(table, batch, space or declared_space(rows.schema))
        return len(batch)

    def update(self, id: str, *, table: str = "default", **values: Any) -> int:  # noqa: A002 - the column's name
        """Change the named columns of one memory (None empties them); returns the table's version.

        A new text is embedded anew where a model fits; where none does, a text memory loses its embedding
        until ``embed_missing``, unless the table's vectors are of no named space and so the caller's own.
        Raises ``NotFound``, and what ``add`` raises.
        """
        if not values:
            raise BadRequest("update: name at least one column to change")
        target, given = self._table(table), one_row(values)
        facts, patch = target.facts(), read_rows(given, self.limits, partial=True)
        space, certain = None, False
        if "text" in given.column_names and "embedding" not in given.column_names:
            patch, space, certain = complete(patch, self.embedder, facts, None)

        def revise(txn: Txn, row: pa.Table) -> int:
            if not row.num_rows:
                raise NotFound(f"memory table {table} holds no {id[:80]!r}")
            old = read_rows(row, self.limits)
            keep = facts.space is None or old.modality[0] != "text"
            new = revised(old, patch, given.column_names, keep_embedding=keep)
            return changes.put(txn, new, space, certain=certain)

        return target.change(revise, id)[1]

    def delete(
        self,
        ids: str | Sequence[str] | None = None,
        *,
        filter: str | None = None,  # noqa: A002 - the contract's name
        table: str = "default",
    ) -> int:
        """Forget these memories, or all that match the filter; returns how many there were."""
        if (ids is None) == (filter is None):
            raise BadRequest("delete: give ids or a filter, one of the two")
        where = compile_filter(filter) if filter is not None else with_ids(_names(ids))
        return self._table(table).delete(where)

    def embed_missing(self, table: str = "default", *, batch_rows: int = 256) -> int:
        """Embed all texts that have no embedding yet; returns how many rows got one.

        A table whose vectors are of another space is left as it is. Other writers get their turn between
        batches. Raises ``BadRequest`` when no model is open.
        """
        target = self._table(table)
        if self.embedder is None:
            raise BadRequest(f"no model is open that could embed the texts of memory table {table}")
        model = fitting(self.embedder, target.facts(), None)
        if model is None:
            return 0
        done, after = 0, 0
        while rows := target.unembedded(after, batch_rows):
            after = rows[-1][0]
            vectors = embed_texts(model, [text for _, text in rows])
            done += target.embed([seq for seq, _ in rows], vectors, model.space)
        return done

    def drop(self, table: str) -> None:
        """Remove a table and everything in it."""
        with self._lock:
            self._check_open()
            folder = self._folder(table)
            if folder is None:
                raise self._unknown(table)
            opened = self._open.pop(table, None)
            if opened is not None:
                opened.close()
            with clear_errors(f"memory table {table}"):
                gone = self.path / f"{_DROPPED}{secrets.token_hex(6)}"
                folder.rename(gone)
                sync_folder(self.path)
                shutil.rmtree(gone)

    # ---- reading

    def search(
        self,
        text: str | None = None,
        vector: Sequence[float] | NDArray[np.floating] | None = None,
        image: bytes | None = None,
        audio: bytes | None = None,
        k: int = 10,
        filter: str | None = None,  # noqa: A002 - the contract's name
        alpha: float = 1.0,
        beta: float = 0.0,
        *,
        table: str = "default",
        namespace: str | None = None,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        space: str | None = None,
    ) -> pa.Table:
        """The ``k`` nearest memories, best first: columns ``retrieve.HITS``, or those of ``columns``.

        Exact cosine similarity; ``score = alpha * similarity``; ties in id order. ``filter`` is a SQL condition
        (see ``filters``). Raises ``BadRequest``, ``SpaceMismatch``, ``UnknownTable``.
        """
        target = self._table(table)
        asked = query.Search(text, vector, image, audio, k, filter, alpha, beta, namespace, modalities, columns, space)
        checked = query.check(asked, target.facts(), self.embedder, self.limits)
        if checked is None:
            return (retrieve.HITS if columns is None else pick_columns(list(columns), retrieve.CHOOSABLE)).empty_table()
        return target.search(checked)

    def get(
        self, ids: str | Sequence[str], *, table: str = "default", columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The memories of these ids that exist, in that order."""
        return self._table(table).get(_names(ids), _readable(columns))

    def scan(
        self,
        table: str = "default",
        *,
        columns: Sequence[str] | None = None,
        filter: str | None = None,  # noqa: A002 - the contract's name
        batch_rows: int = 1024,
    ) -> pa.RecordBatchReader:
        """All rows (that match), oldest first, in batches of about 1 MiB: one snapshot, taken when reading begins.

        Read it to its end or let go of it: until then the log keeps what the snapshot needs.
        """
        where = Predicate() if filter is None else compile_filter(filter)
        if batch_rows < 1:
            raise BadRequest(f"batch_rows must be at least 1, not {batch_rows}")
        target = self._table(table)
        schema = _readable(columns)
        return target.scan(schema.with_metadata(target.schema().metadata), where, batch_rows)

    def tables(self) -> list[str]:
        """Names of all tables."""
        with clear_errors(f"memory folder {self.path}"):
            found = (entry.parent.name for entry in self.path.glob(f"*/{log.FILE}"))
            return sorted(name for name in found if is_table_name(name))

    def stats(self, table: str = "default") -> TableStats:
        """What the table holds now."""
        return self._table(table).stats()

    def schema(self, table: str = "default") -> pa.Schema:
        """The Arrow schema of the table's rows, with dimension and embedding space as metadata."""
        return self._table(table).schema()

    def version(self, table: str = "default") -> int:
        """A counter that grows with every change."""
        return self._table(table).facts().version

    def load(self, table: str = "default") -> None:
        """Bring the table's vectors into memory now rather than at the first search."""
        self._table(table).load()

    def export(self, table: str, path: str | PathLike[str], format: str | None = None) -> int:  # noqa: A002
        """Write all rows to a Parquet, Arrow IPC or JSONL file (by suffix, or ``format``); returns how many."""
        return transfer.write(self.scan(table), Path(path), format)

    def import_file(self, path: str | PathLike[str], table: str = "default", format: str | None = None) -> int:  # noqa: A002
        """Add the rows of a Parquet, Arrow IPC or JSONL file; returns how many.

        The whole file is checked before the first row is stored. Rows are stored in batches: after a crash
        run it again, rows with ids replace themselves.
        """
        for rows in transfer.read(Path(path), format):
            read_rows(rows, self.limits)
        return sum(self.add_table(rows, table) for rows in transfer.read(Path(path), format))

    def close(self) -> None:
        """Close all tables. Idempotent; every later call raises ``Unavailable``."""
        with self._lock:
            self._closed = True
            opened, self._open = list(self._open.values()), {}
        for table in opened:
            table.close()

    # ---- tables

    def _put(self, table: str, batch: RowBatch, space: str | None) -> None:
        known = self._table(table) if self._folder(table) else None
        batch, space, certain = complete(batch, self.embedder, known.facts() if known else None, space)
        (known or self._table(table, create=True)).put(batch, space, certain=certain)

    def _table(self, name: str, *, create: bool = False) -> MemoryTable:
        with self._lock:
            self._check_open()
            folder = self._folder(name)
            if name not in self._open:
                if folder is None and not create:
                    raise self._unknown(name)
                self._open[name] = self._new_table(name) if folder is None else MemoryTable(folder, self.limits)
            return self._open[name]

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"the memory store {self.path} is closed")

    def _new_table(self, name: str) -> MemoryTable:
        folder = self.path / name
        with clear_errors(f"memory table {name}"):
            folder.mkdir(exist_ok=True)
            sync_folder(self.path)
        return MemoryTable(folder, self.limits, create=True)

    def _folder(self, name: str) -> Path | None:
        """The folder of an existing table; every name from outside comes through here."""
        folder = self.path / check_table_name(name)
        return folder if (folder / log.FILE).is_file() else None

    def _unknown(self, name: str) -> UnknownTable:
        return UnknownTable(f"no memory table {name!r}: {choices(name, self.tables())}")


ArrowStorage = MemoryStore
"""The store under the name that papers and older scripts use."""


def _names(ids: str | Sequence[str] | None) -> list[str]:
    names = [ids] if isinstance(ids, str) else list(ids or ())
    if not all(isinstance(name, str) for name in names):
        raise BadRequest("ids must be strings")
    return names


def _readable(columns: Sequence[str] | None) -> pa.Schema:
    return COLUMNS if columns is None else pick_columns(list(columns), READABLE)
