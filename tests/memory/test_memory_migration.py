"""Tables of older layouts open and keep everything; files that are not ours to read are refused untouched."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aios_node.engine.errors import Corrupt, StorageError
from aios_node.memory import MemoryStore
from aios_node.memory.schema import SCHEMA_VERSION

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "memory"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the store that the first layout's program wrote."""
    return Path(shutil.copytree(GOLDEN / "layout_1", tmp_path / "memory"))


def row(name: str, microseconds: int, modality: str, text: str) -> dict[str, object]:
    return {"id": name, "created_at": NOON + timedelta(microseconds=microseconds), "modality": modality, "text": text}


def test_the_first_layout_opens_with_everything_in_it(old: Path) -> None:
    nothing = dict.fromkeys(["payload", "embedding", "joint_embedding", "source", "importance", "metadata"])
    plain = {"namespace": "default", "tags": []} | nothing
    expected = [
        row("plain", 0, "text", "hello") | plain | {"embedding": [1.0, 0.0, 0.0]},
        row("full", 1, "image", "a cat")
        | plain
        | {"payload": b"GIF89a", "embedding": [0.0, 3.0, 4.0], "namespace": "home", "source": "camera"}
        | {"tags": ["pet", "ä"], "importance": 0.5, "metadata": '{"f": 1.8}'},
        row("waiting", 2, "text", "no vector yet") | plain | {"namespace": "home"},
    ]
    for _ in range(2):  # upgraded, then opened again
        with MemoryStore.open(old) as store:
            assert store.scan("notes").read_all().to_pylist() == expected
            stats = store.stats("notes")
            assert (stats.version, stats.dimension, stats.space, stats.embedded) == (7, 3, "golden-space", 2)
            counts = store.scan("notes", columns=["access_count", "last_access"]).read_all()
            assert counts.column("access_count").to_pylist() == [0, 4, 1]
            assert counts.column("last_access").to_pylist()[1] == NOON + timedelta(microseconds=9)


def test_an_upgraded_table_works_like_any_other(old: Path) -> None:
    with MemoryStore.open(old) as store:
        store.add("notes", id="plain", text="again", embedding=[0.0, 1.0, 0.0])
        store.update("waiting", table="notes", embedding=[0.0, 0.0, 1.0])
        assert store.search(vector=[0, 1, 0.1], table="notes").column("id").to_pylist() == ["plain", "full", "waiting"]
        assert store.version("notes") == 9
        assert store.delete(filter="namespace = 'home'", table="notes") == 2


def test_the_golden_file_is_what_its_program_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_layout_1", GOLDEN / "make_layout_1.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    program.make(tmp_path)

    def content(folder: Path) -> list[str]:
        uri = f"file:{folder / 'notes' / 'memory.sqlite'}?immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return list(connection.iterdump())

    assert content(tmp_path) == content(GOLDEN / "layout_1")


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def someone_elses(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA application_id = 7")


def no_database(file: Path) -> None:
    file.write_bytes(b"not a database at all" * 1000)


def torn_header(file: Path) -> None:
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 200)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (newer, f"layout {SCHEMA_VERSION + 1}, this version reads up to {SCHEMA_VERSION}: upgrade"),
        (someone_elses, "some other program's database"),
        (no_database, "damaged or no memory table"),
        (torn_header, "damaged or no memory table"),
    ],
)
def test_files_that_are_not_ours_are_refused_and_left_alone(
    old: Path, damage: Callable[[Path], None], message: str
) -> None:
    file = old / "notes" / "memory.sqlite"
    damage(file)
    before = file.read_bytes()
    with MemoryStore.open(old) as store:
        for _ in range(2):
            with pytest.raises(Corrupt, match=message):
                store.stats("notes")
        assert store.add("other", text="the other tables are well")
    assert file.read_bytes() == before


def test_a_stored_vector_of_another_length_is_corrupt(old: Path) -> None:
    with MemoryStore.open(old) as store:
        store.stats("notes")
    with closing(sqlite3.connect(old / "notes" / "memory.sqlite")) as connection, connection:
        connection.execute("UPDATE vectors SET value = x'00' WHERE seq = 1")
    with MemoryStore.open(old) as store:
        with pytest.raises(Corrupt, match="a stored vector is not 3 float32"):
            store.search(vector=[1.0, 0.0, 0.0], table="notes")
        assert store.get("full", table="notes").num_rows == 1


def test_a_table_whose_file_is_a_folder_is_a_storage_error(old: Path) -> None:
    (old / "notes" / "memory.sqlite").unlink()
    (old / "notes" / "memory.sqlite").mkdir()
    with MemoryStore.open(old) as store, pytest.raises(StorageError):
        store.add("notes", text="x")
