"""Disks that fail, fill up or refuse; files that were cut; what a crash leaves. Never half a version."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.delta.disk import Step
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import Corrupt, HashMismatch, StorageError, StorageFull

FILES = {"config.json": b"{}"}


class Fault(Enum):
    FULL = errno.ENOSPC
    QUOTA = errno.EDQUOT
    FILE_LIMIT = errno.EFBIG
    READ_ONLY = errno.EROFS
    DENIED = errno.EACCES
    BROKEN = errno.EIO

    @property
    def expected(self) -> type[Exception]:
        full = {Fault.FULL, Fault.QUOTA, Fault.FILE_LIMIT}
        return StorageFull if self in full else StorageError


class FailingDisk:
    """Lets one step fail until told otherwise."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.fault = Fault.FULL

    def __call__(self, step: Step) -> None:
        if step is self.step:
            raise OSError(self.fault.value, "injected")


def put(store: VersionStore, seed: int, **options: Any) -> str:
    values = np.random.default_rng(seed).standard_normal((16, 8)).astype(np.float32)
    return store.commit("m", {"layer.weight": values}, FILES, created_at="t", **options)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


COMMITTING = [Step.BUILD, Step.VERIFY, Step.RENAME, Step.SYNC_NAME, Step.REGISTER]


@pytest.mark.parametrize(
    ("step", "fault"), [*((step, Fault.FULL) for step in COMMITTING), *((Step.REGISTER, fault) for fault in Fault)]
)
def test_a_commit_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path, step: Step, fault: Fault) -> None:
    disk = FailingDisk()
    with VersionStore.open(tmp_path / "s", observer=disk) as store:
        first = put(store, 1, activate=True)
        before = store.picture
        disk.step, disk.fault = step, fault
        with pytest.raises(fault.expected, match="injected"):
            put(store, 2, parents=[first], activate=True)
        assert store.picture == before
        assert names(tmp_path / "s" / "versions") == [first]
        assert names(tmp_path / "s" / "work") == []
        assert store.changes == 2
        disk.step = None
        second = put(store, 2, parents=[first], activate=True)
        assert store.active("m") == second
        store.verify(second)


def test_the_books_come_last(tmp_path: Path) -> None:
    steps: list[Step] = []
    with VersionStore.open(tmp_path / "s", observer=steps.append) as store:
        put(store, 1)
    assert steps == [Step.BUILD, Step.VERIFY, Step.RENAME, Step.SYNC_NAME, Step.REGISTER, Step.ACKNOWLEDGE]


@pytest.mark.parametrize("fault", Fault)
def test_an_activation_that_fails_changes_nothing(tmp_path: Path, fault: Fault) -> None:
    disk = FailingDisk()
    with VersionStore.open(tmp_path / "s", observer=disk) as store:
        one, two = put(store, 1, activate=True), put(store, 2, activate=True)
        before = store.picture
        disk.step, disk.fault = Step.POINT, fault
        for change in (lambda: store.activate("m", one), lambda: store.rollback("m")):
            with pytest.raises(fault.expected):
                change()
        assert store.picture == before
        assert store.active("m") == two


@pytest.mark.parametrize("step", [Step.UNREGISTER, Step.REMOVE])
def test_a_collection_that_fails_is_all_or_nothing_in_the_books(tmp_path: Path, step: Step) -> None:
    disk = FailingDisk()
    with VersionStore.open(tmp_path / "s", observer=disk) as store:
        one = put(store, 1)
        two = put(store, 2, parents=[one])
        disk.step, disk.fault = step, Fault.BROKEN
        with pytest.raises(StorageError):
            store.gc(keep_last=0)
        left = {info.id for info in store.versions("m")}
        assert left == ({one, two} if step is Step.UNREGISTER else {two})
        assert set(names(tmp_path / "s" / "versions")) == left
    with VersionStore.open(tmp_path / "s") as store:
        assert {info.id for info in store.versions("m")} == left
        assert names(tmp_path / "s" / "work") == []


def test_what_a_crash_leaves_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        version = put(store, 1)
    orphan = tmp_path / "s" / "versions" / ("a" * 64)
    orphan.mkdir()
    (orphan / "manifest.json").write_bytes(b"{}")
    (tmp_path / "s" / "work" / "new-abc").mkdir()
    (tmp_path / "s" / "work" / "gone-abc").mkdir()
    (tmp_path / "s" / "versions" / "notes.txt").write_text("mine")
    (tmp_path / "s" / "work" / "notes.txt").write_text("mine")
    with VersionStore.open(tmp_path / "s") as store:
        store.verify(version)
    assert names(tmp_path / "s" / "versions") == sorted([version, "notes.txt"])
    assert names(tmp_path / "s" / "work") == ["notes.txt"]


@pytest.mark.parametrize("damage", ["folder", "shard", "cut", "manifest", "file", "swapped"])
def test_a_damaged_version_is_refused_and_healed_by_committing_it_again(tmp_path: Path, damage: str) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        one, two = put(store, 1, activate=True), put(store, 2, activate=True)
        folder, other = store.path(two), store.path(one)
    (shard,) = folder.glob("*.parquet")
    match damage:
        case "folder":
            folder.rename(tmp_path / "elsewhere")
        case "shard":
            shard.unlink()
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "manifest":
            (folder / "manifest.json").write_bytes(b"{}")
        case "file":
            (folder / "config.json").write_bytes(b"{ }")
        case "swapped":
            (folder / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    with VersionStore.open(tmp_path / "s") as store:
        assert set(store.damaged()) == {two}
        assert not store.has(two)
        with pytest.raises(Corrupt, match="roll back, or sync"):
            store.path(store.active("m") or "")
        with pytest.raises(Corrupt, match="damaged"):
            store.activate("m", two)
        assert store.rollback("m").active == one
        with pytest.raises(Corrupt, match="damaged"):
            store.rollback("m")
        assert put(store, 2) == two
        assert store.damaged() == {}
        store.verify(two)
        assert store.rollback("m").active == two


def test_a_damaged_version_does_not_spoil_the_next(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        one = put(store, 1, activate=True)
        (store.path(one) / "shards.json").unlink()
        two = put(store, 2, parents=[one], activate=True)
        store.verify(two)


def test_bit_rot_is_found_by_verifying_and_healed(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        version = put(store, 1)
        (shard,) = store.path(version).glob("*.parquet")
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 4
        shard.write_bytes(content)
        with pytest.raises((Corrupt, HashMismatch)):
            store.verify(version)
        assert set(store.damaged()) == {version}
        with pytest.raises(Corrupt, match="damaged"):
            store.pin(version)
        put(store, 1)
        store.verify(version)


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_versions_are_never_thrown_away_because_the_books_are_lost(tmp_path: Path, damage: str) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        version = put(store, 1)
    books = tmp_path / "s" / "heads.sqlite"
    match damage:
        case "missing":
            books.unlink()
        case "empty":
            books.write_bytes(b"")
        case "garbage":
            books.write_bytes(b"garbage!" * 1024)
    for _ in range(2):
        with pytest.raises(Corrupt, match="restore it from a backup"):
            VersionStore.open(tmp_path / "s")
        assert names(tmp_path / "s" / "versions") == [version]


def test_books_that_someone_else_locks_are_a_storage_error(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        put(store, 1)
        store._database._connection.execute("PRAGMA busy_timeout = 0")
        other = sqlite3.connect(tmp_path / "s" / "heads.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            put(store, 2)
        assert len(store.versions("m")) == len(names(tmp_path / "s" / "versions")) == 1
        other.execute("ROLLBACK")
        other.close()
        put(store, 2)


LIMITED = """
    import resource, sys
    import numpy as np
    from aios_node.delta.store.store import VersionStore
    from aios_node.engine.errors import StorageFull
    with VersionStore.open(sys.argv[1]) as store:
        kept = store.commit("m", {"w": np.zeros(8, np.float32)}, {}, created_at="t")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            store.commit("m", {"w": np.zeros(100_000, np.float32)}, {}, created_at="t")
        except StorageFull as error:
            print("refused:", error)
        print("left:", [info.id for info in store.versions("m")] == [kept])
"""
READ_ONLY = """
    import os, sys
    from pathlib import Path
    from aios_node.delta.store.store import VersionStore
    from aios_node.engine.errors import StorageError
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        VersionStore.open(sys.argv[1])
    except StorageError as error:
        print("refused:", error)
"""


def run(code: str, path: Path) -> str:
    """Run a program of its own, since limits and users belong to a whole process."""
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    output = run(LIMITED, tmp_path / "s")
    assert "refused: no space" in output or "refused: cannot" in output
    assert "left: True" in output
    with VersionStore.open(tmp_path / "s") as store:
        assert len(store.versions("m")) == 1
        assert names(tmp_path / "s" / "work") == []


def test_a_read_only_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        put(store, 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    for folder in (tmp_path.parent, tmp_path):
        folder.chmod(0o755)
    (tmp_path / "s").chmod(0o555)
    (tmp_path / "s" / ".lock").chmod(0o444)
    try:
        output = run(READ_ONLY, tmp_path / "s")
    finally:
        (tmp_path / "s").chmod(0o755)
    assert "refused: cannot" in output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before
