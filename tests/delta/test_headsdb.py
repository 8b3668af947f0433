"""The books: what was written is read again, half a change never, and damage is named."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from aios_node.delta.offers import Source
from aios_node.delta.store.heads import Facts, Member, Pointers
from aios_node.delta.store.headsdb import HeadsDatabase
from aios_node.engine.errors import Corrupt, StorageError, StorageFull

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def filled(path: Path) -> HeadsDatabase:
    database = HeadsDatabase.open(path, create=True)
    with database.change() as change:
        change.register("m", Facts(A, quant="int8", bytes=5, derived_from=Source("n", C)), Member(A, "t1", b"env"))
        change.register("m", Facts(B, (A,), ancestors=(C,)), Member(B, "t2"))
        change.point(Pointers("m", B, A))
    return database


def test_everything_is_read_again(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    before = database.read()
    database.close()
    database = HeadsDatabase.open(tmp_path / "heads.sqlite", create=False)
    assert database.read() == before
    assert before.models["m"].pointers == Pointers("m", B, A)
    assert before.models["m"].members == (Member(A, "t1", b"env"), Member(B, "t2"))
    assert before.facts[A] == Facts(A, quant="int8", bytes=5, derived_from=Source("n", C))
    assert before.facts[B] == Facts(B, (A,), ancestors=(C,))
    database.close()


def test_it_is_as_durable_as_sqlite_can_be(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    assert database._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    database.close()


def test_what_is_known_stays_as_it_is(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    before = database.read()
    with database.change() as change:
        change.register("m", Facts(A), Member(A, "t9", b"other"))
    assert database.read() == before
    database.close()


def test_lineage_outlives_the_files(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    with database.change() as change:
        change.point(Pointers("m", B))
        change.unregister([("m", A)])
    heads = database.read()
    assert heads.models["m"].versions == (B,)
    assert heads.ancestors(B) == (A, C)
    database.close()


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    before = database.read()

    def fail_half_way() -> None:
        with database.change() as change:
            change.unregister([("m", A)])
            raise OSError(errno.ENOSPC, "injected")

    with pytest.raises(StorageFull):
        fail_half_way()
    assert database.read() == before
    database.close()


def test_a_full_database_is_storage_full(tmp_path: Path) -> None:
    database = filled(tmp_path / "heads.sqlite")
    before = database.read()
    pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
    database._connection.execute(f"PRAGMA max_page_count = {pages}")

    def too_much() -> None:
        with database.change() as change:
            change.register("m", Facts(C), Member(C, "t3", bytes(1 << 20)))

    with pytest.raises(StorageFull, match="free some"):
        too_much()
    assert database.read() == before
    database.close()


def test_a_missing_database_is_made_only_where_that_is_right(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="missing"):
        HeadsDatabase.open(tmp_path / "heads.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "heads.sqlite").touch()
    with pytest.raises(Corrupt, match="empty"):
        HeadsDatabase.open(tmp_path / "heads.sqlite", create=False)
    HeadsDatabase.open(tmp_path / "heads.sqlite", create=True).close()


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "heads.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Corrupt, match="format 0"):
        HeadsDatabase.open(path, create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["no database", "header", "middle", "ids", "pointer", "lineage"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "heads.sqlite"
    database = filled(path)
    match damage:
        case "ids":
            database._connection.execute("UPDATE members SET version = ? WHERE version = ?", (B, B))
            database._connection.execute("PRAGMA foreign_keys = OFF")
            database._connection.execute("UPDATE members SET version = '../../x' WHERE version = ?", (B,))
        case "pointer":
            database._connection.execute("UPDATE models SET active = ?", (C,))
        case "lineage":
            database._connection.execute("UPDATE versions SET parents = '[\"../x\"'")
    database.close()
    content = bytearray(path.read_bytes())
    match damage:
        case "no database":
            path.write_bytes(b"this is a text" * 1000)
        case "header":
            path.write_bytes(bytes(100) + content[100:])
        case "middle":
            path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(Corrupt, match="restore it from a backup"):
        HeadsDatabase.open(path, create=False).read()


def test_a_folder_instead_of_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "heads.sqlite").mkdir()
    with pytest.raises(StorageError, match="rights"):
        HeadsDatabase.open(tmp_path / "heads.sqlite", create=True)
