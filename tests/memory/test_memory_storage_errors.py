"""Full disks and folders that may not be written: one clear error, and a table that is as it was."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from aios_node.engine.errors import StorageError, StorageFull
from aios_node.memory import MemoryStore
from aios_node.memory.storage import storage_error, whole_file


def writer_of(store: MemoryStore) -> sqlite3.Connection:
    return store._open["default"]._writer._connection


def test_a_full_disk_is_said_and_changes_nothing(store: MemoryStore) -> None:
    """SQLite's own page limit stands in for the end of the disk: it fails at the same places."""
    store.add(id="a", text="kept", embedding=[1.0, 0.0])
    (pages,) = writer_of(store).execute("PRAGMA page_count").fetchone()
    writer_of(store).execute(f"PRAGMA max_page_count={pages + 4}")
    before = (store.scan().read_all(), store.version())
    big = pa.table({"text": ["x" * 100_000] * 3, "embedding": [[0.0, 1.0]] * 3})
    for change in (
        lambda: store.add_table(big),
        lambda: store.add(text="y" * 100_000),
        lambda: store.update("a", text="z" * 100_000),
    ):
        with pytest.raises(StorageFull, match="the disk is full; nothing was stored") as caught:
            change()
        assert caught.value.retryable
        assert (store.scan().read_all(), store.version()) == before
        assert store.search(vector=[0.0, 1.0]).column("id").to_pylist() == ["a"]
    assert store.delete("a") == 1  # a full disk can still be emptied
    writer_of(store).execute("PRAGMA max_page_count=1000000")
    assert store.add_table(big) == 3
    assert store.search(vector=[0.0, 1.0]).num_rows == 3


def test_commits_are_flushed_to_the_disk(store: MemoryStore) -> None:
    store.add(text="x")
    assert writer_of(store).execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: an fsync for every commit
    assert writer_of(store).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that another user may reach."""
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


READ_ONLY = """
import json, os, sys
from pathlib import Path
from aios_node.engine.errors import AiosError
from aios_node.memory import MemoryStore

folder = Path(sys.argv[1])
with MemoryStore.open(folder / "memory") as store:
    store.add(id="a", text="kept")
for path in (folder, *folder.rglob("*")):
    path.chmod(0o555 if path.is_dir() else 0o444)
if os.geteuid() == 0:
    os.setuid(65534)
codes = []
for name, table in (("memory", "default"), ("memory", "new"), ("elsewhere", "default")):
    try:
        with MemoryStore.open(folder / name) as store:
            store.add(table, text="x")
        codes.append("stored")
    except AiosError as error:
        codes.append(error.code)
print(json.dumps(codes))
"""


def test_a_read_only_folder_is_a_storage_error(shared_folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(shared_folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["storage_error"] * 3
    for path in (shared_folder, *shared_folder.rglob("*")):
        path.chmod(0o755)
    with MemoryStore.open(shared_folder / "memory") as store:
        assert store.get("a").column("text").to_pylist() == ["kept"]
        assert store.tables() == ["default"]


def test_a_place_where_no_folder_can_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (Path("/sys/aios-memory"), tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError):
            MemoryStore.open(place)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, "storage_full"),
        (sqlite3.SQLITE_IOERR_WRITE, "storage_error"),
        (sqlite3.SQLITE_IOERR_FSYNC, "storage_error"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "storage_error"),
        (sqlite3.SQLITE_CANTOPEN, "storage_error"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "busy"),
        (sqlite3.SQLITE_CORRUPT, "corrupt"),
        (sqlite3.SQLITE_NOTADB, "corrupt"),
        (sqlite3.SQLITE_TOOBIG, "too_large"),
    ],
)
def test_every_refusal_of_sqlite_has_its_code(code: int, kind: str) -> None:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    assert storage_error(error, "memory table notes").code == kind


@pytest.mark.parametrize(("number", "kind"), [(28, "storage_full"), (122, "storage_full"), (5, "storage_error")])
def test_every_refusal_of_the_system_has_its_code(number: int, kind: str) -> None:
    assert storage_error(OSError(number, os.strerror(number)), "x").code == kind


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_file(tmp_path / "a") as temporary:
            temporary.write_text("half of it")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_text("all of it")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
