"""The SQLite file of a memory table: its layout, opening it, bringing older layouts up to date.

Knows SQL and durability; nothing about Arrow or search. SQLite in WAL mode with synchronous=FULL is the
log: what a committed transaction wrote survives kill -9 and power loss.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from aios_node.engine.errors import Corrupt
from aios_node.memory.schema import SCHEMA_VERSION
from aios_node.memory.storage import clear_errors, sync_folder

FILE = "memory.sqlite"
APPLICATION_ID = 0x41494F4D  # "AIOM"

_PAGE = 8192  # five 384-d vectors a page; measured as fast to append as 4096, a fifth smaller
_WAIT_S = 30.0  # for a writer in another process
_WAL_KEPT = 64 << 20

# One row of `rows` is one memory. `seq` names its content: a new text, payload or embedding gets a new
# seq, so that whoever cached a vector by seq can never show it beside another text. Wide values live
# apart, so that a filter reads names and times only. `graves` remembers the seqs whose vector is gone.
_META = "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;"
_LAYOUT = """
CREATE TABLE rows(
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL, modality TEXT NOT NULL,
    text TEXT, namespace TEXT NOT NULL, source TEXT, tags TEXT NOT NULL, importance REAL, metadata TEXT);
CREATE TABLE vectors(seq INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE joints(seq INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE payloads(seq INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE graves(version INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(version, seq)) WITHOUT ROWID;
CREATE TABLE access(id TEXT PRIMARY KEY, last_access INTEGER NOT NULL, access_count INTEGER NOT NULL)
    WITHOUT ROWID;
"""

# Layout 1 kept one wide table and wrote accesses into the rows themselves.
_FROM_1 = """
INSERT INTO rows SELECT rowid, id, created_at, modality, text, coalesce(namespace, 'default'), source,
    coalesce(tags, '[]'), importance, metadata FROM memories;
INSERT INTO vectors SELECT rowid, embedding FROM memories WHERE embedding IS NOT NULL;
INSERT INTO payloads SELECT rowid, payload FROM memories WHERE payload IS NOT NULL;
INSERT INTO access SELECT id, last_access, access_count FROM memories WHERE access_count > 0;
INSERT INTO meta SELECT 'next_seq', coalesce(max(rowid), 0) + 1 FROM memories;
DROP TABLE memories;
"""

_NEW = "INSERT INTO meta VALUES ('version', 0), ('next_seq', 1);"


def create_or_upgrade(folder: Path) -> None:
    """Make the table's file if there is none, or bring an older layout up to date; one transaction.

    Raises ``Corrupt`` for a file that is no memory table or was written by a newer version.
    """
    with clear_errors(f"memory table {folder.name}"):
        fresh = not (folder / FILE).exists()
        connection = _open(folder, "rwc")
        try:
            layout = _layout(connection, folder)  # before anything is written to what may be another's file
            _set_up(connection)
            if layout != SCHEMA_VERSION:
                connection.execute("BEGIN IMMEDIATE")
                _bring_up_to_date(connection, folder)
                connection.execute("COMMIT")
            _check_meta(connection, folder)
        finally:
            connection.close()
        if fresh:
            sync_folder(folder)


def connect(folder: Path, *, write: bool) -> sqlite3.Connection:
    """A connection to an existing table's file. Any thread may use it, one at a time."""
    connection = _open(folder, "rw")
    try:
        _set_up(connection)
        if not write:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def file_bytes(folder: Path) -> int:
    """Bytes of the table's files, the write-ahead log included."""
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # whoever closes last takes the write-ahead log away
            total += entry.stat().st_size
    return total


def _open(folder: Path, mode: str) -> sqlite3.Connection:
    uri = f"{(folder / FILE).absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size={_PAGE}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_KEPT}")
    connection.execute("PRAGMA trusted_schema=OFF")


def _layout(connection: sqlite3.Connection, folder: Path) -> int:
    """The layout of the file, 0 when it is empty; raises ``Corrupt`` for layouts that are not ours to read."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not objects:
        return 0
    if owner != APPLICATION_ID:
        raise Corrupt(f"memory table {folder.name}: {FILE} is some other program's database")
    if found != SCHEMA_VERSION and found not in _STEPS:
        raise Corrupt(
            f"memory table {folder.name} has layout {found}, this version reads up to {SCHEMA_VERSION}: "
            "upgrade aios-node"
        )
    return int(found)


def _bring_up_to_date(connection: sqlite3.Connection, folder: Path) -> None:
    """Inside a write transaction: another process may have done it while we waited for the lock."""
    found = _layout(connection, folder)
    if found == SCHEMA_VERSION:
        return
    for statement in _STEPS[found]:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _check_meta(connection: sqlite3.Connection, folder: Path) -> None:
    """Whether what every reader and writer begins with is there; raises ``Corrupt``."""
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    numbers = meta.get("version"), meta.get("next_seq"), meta.get("dimension") or 0
    if not all(type(number) is int and number >= 0 for number in numbers) or type(meta.get("space") or "") is not str:
        raise Corrupt(f"memory table {folder.name}: its version or dimension is damaged; restore it from an export")


def _statements(script: str) -> list[str]:
    """The statements of a script: ``executescript`` would commit the transaction around them."""
    return [statement for statement in script.split(";") if statement.strip()]


_STEPS = {0: _statements(_META + _LAYOUT + _NEW), 1: _statements(_LAYOUT + _FROM_1)}
