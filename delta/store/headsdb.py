"""The picture of all models, kept in SQLite: one transaction per change, durable on return.

WAL with ``synchronous=FULL``: a change survives power loss once the call returns. Knows nothing about
version folders; the caller makes sure that a version is on disk before it is registered.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MappingProxyType

from aios_node.delta.disk import disk_errors
from aios_node.delta.names import check_model, check_version
from aios_node.delta.offers import Source
from aios_node.delta.store.heads import Facts, Heads, Member, ModelState, Pointers
from aios_node.engine.errors import BadRequest, Corrupt, StorageError, StorageFull
from aios_node.engine.weights.disk import sync_folder

_APPLICATION = 0x41494F53  # "AIOS"
_FORMAT = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE models (
    name TEXT PRIMARY KEY,
    active TEXT,
    previous TEXT
) STRICT;
CREATE TABLE members (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL REFERENCES models (name),
    version TEXT NOT NULL REFERENCES versions (id),
    created_at TEXT NOT NULL,
    envelope BLOB,
    UNIQUE (model, version)
) STRICT;
CREATE TABLE versions (
    id TEXT PRIMARY KEY,
    parents TEXT NOT NULL,
    ancestors TEXT NOT NULL,
    quant TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    derived_model TEXT,
    derived_version TEXT
) STRICT;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_RESTORE = "restore it from a backup, or move the whole folder away to start afresh"
_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA}


class HeadsDatabase:
    """The open database. One caller at a time; ``VersionStore`` sees to that."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, create: bool) -> HeadsDatabase:
        """Open the database, or with ``create`` make it where it is missing or empty.

        Raises Corrupt for a file that is no such database, and where one should be but is not.
        """
        if not create and not path.exists():
            raise Corrupt(f"{path} is missing: {_RESTORE}")
        with _database_errors(path):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                _check_format(path, connection, create=create)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA foreign_keys = ON")
                sync_folder(path.parent)
                return cls(path, connection)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        with _database_errors(self._path):
            self._connection.close()

    def read(self) -> Heads:
        """The picture as it is on disk. Raises Corrupt if it contradicts itself."""
        with _database_errors(self._path):
            try:
                return Heads(MappingProxyType(self._read_models()), MappingProxyType(self._read_facts()))
            except (BadRequest, ValueError, TypeError, KeyError) as error:
                raise Corrupt(f"{self._path} is damaged ({error}): {_RESTORE}") from error

    @contextlib.contextmanager
    def change(self) -> Iterator[Transaction]:
        """One transaction: everything that was asked of the ``Transaction`` happens, or nothing does."""
        with _database_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def _read_models(self) -> dict[str, ModelState]:
        members: dict[str, list[Member]] = {}
        rows = self._connection.execute("SELECT model, version, created_at, envelope FROM members ORDER BY sequence")
        for model, version, created_at, envelope in rows:
            members.setdefault(model, []).append(Member(check_version(version), created_at, envelope))
        models = {}
        for name, active, previous in self._connection.execute("SELECT name, active, previous FROM models"):
            versions = tuple(members.pop(check_model(name), ()))
            models[name] = ModelState(Pointers(name, active, previous), versions)
            if not {active, previous} - {None} <= set(models[name].versions):
                raise ValueError(f"{name} points to a version it does not have")
        return models

    def _read_facts(self) -> dict[str, Facts]:
        rows = self._connection.execute(
            "SELECT id, parents, ancestors, quant, bytes, derived_model, derived_version FROM versions"
        )
        return {
            check_version(version): Facts(
                id=version,
                parents=_read_ids(parents),
                ancestors=_read_ids(ancestors),
                quant=quant,
                bytes=size,
                derived_from=Source(source, source_version) if source is not None else None,
            )
            for version, parents, ancestors, quant, size, source, source_version in rows
        }


class Transaction:
    """What one transaction may do."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def register(self, model: str, facts: Facts, member: Member) -> None:
        """Add a version to a model; a model or version that is known already stays as it is."""
        source = facts.derived_from
        self._connection.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", (model,))
        self._connection.execute(
            "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                facts.id,
                json.dumps(facts.parents),
                json.dumps(facts.ancestors),
                facts.quant,
                facts.bytes,
                source and source.model,
                source and source.version,
            ),
        )
        self._connection.execute(
            "INSERT OR IGNORE INTO members (model, version, created_at, envelope) VALUES (?, ?, ?, ?)",
            (model, member.version, member.created_at, member.envelope),
        )

    def point(self, pointers: Pointers) -> None:
        """Set a model's active and previous version."""
        self._connection.execute(
            "UPDATE models SET active = ?, previous = ? WHERE name = ?",
            (pointers.active, pointers.previous, pointers.model),
        )

    def unregister(self, members: Iterable[tuple[str, str]]) -> None:
        """Take versions out of models. What is known of their lineage stays."""
        self._connection.executemany("DELETE FROM members WHERE model = ? AND version = ?", members)


def _check_format(path: Path, connection: sqlite3.Connection, *, create: bool) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) == (_APPLICATION, _FORMAT):
        return
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if empty and create:
        connection.executescript(_SCHEMA)
        return
    found = "is empty" if empty else f"has format {version} of application {application}"
    raise Corrupt(f"{path} {found}, this program needs format {_FORMAT}: {_RESTORE}")


def _read_ids(text: str) -> tuple[str, ...]:
    return tuple(check_version(version) for version in json.loads(text))


@contextlib.contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into Corrupt, StorageFull or StorageError."""
    with disk_errors(path, "keep versions"):
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _FULL:
                raise StorageFull(f"no space for {path} ({error}): free some and try again") from error
            if code in _DAMAGED:
                raise Corrupt(f"{path} is damaged ({error}): {_RESTORE}") from error
            raise StorageError(f"cannot use {path} ({error}): check the disk and its rights") from error
