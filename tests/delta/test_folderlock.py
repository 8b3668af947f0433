"""One owner at a time, also between processes, also after kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aios_node.delta.store.folderlock import LOCK_NAME, FolderLock, Owner, read_owner
from aios_node.engine.errors import FolderLocked, StorageError

HOLD = """
import sys
from aios_node.delta.store.folderlock import FolderLock
lock = FolderLock.acquire(sys.argv[1], address="grpc://127.0.0.1:7001")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        FolderLock.acquire(tmp_path, address="grpc://h:1"),
        pytest.raises(FolderLocked, match=f"process {os.getpid()} at grpc://h:1"),
    ):
        FolderLock.acquire(tmp_path)
    FolderLock.acquire(tmp_path).release()


def test_the_address_can_be_announced_later(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path)
    assert read_owner(tmp_path) == Owner(os.getpid(), "")
    lock.announce("grpc+tls://a-rather-long-name.example:7001")
    lock.announce("grpc://h:2")
    assert read_owner(tmp_path) == lock.owner == Owner(os.getpid(), "grpc://h:2")
    lock.release()
    lock.release()
    assert read_owner(tmp_path) is None
    with pytest.raises(ValueError, match="released"):
        lock.announce("grpc://h:3")


def test_kill_9_gives_the_folder_back(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(FolderLocked, match=f"process {child.pid} at grpc://127.0.0.1:7001"):
            FolderLock.acquire(tmp_path)
        child.kill()
    with FolderLock.acquire(tmp_path) as lock:
        assert lock.owner.pid == os.getpid()
        assert lock.folder == tmp_path


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"pid": "1", "address": ""}', b'{"pid": 1}', b"\xff" * 9000, b'{"pid":1,"address":2}'],
)
def test_a_damaged_lock_file_is_only_a_missing_hint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert read_owner(tmp_path) is None
    with FolderLock.acquire(tmp_path), pytest.raises(FolderLocked):
        FolderLock.acquire(tmp_path)


def test_a_damaged_hint_still_refuses(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(b"?")
        with pytest.raises(FolderLocked, match="another process"):
            FolderLock.acquire(tmp_path)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        FolderLock.acquire(tmp_path / "nowhere")
