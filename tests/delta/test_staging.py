"""Chunks arrive, some twice, some never; the process dies; what was durable is never asked for again."""

from __future__ import annotations

import errno
import hashlib
import itertools
import random
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from aios_node.delta.chunks import MAX_CHUNK, MIN_CHUNK, TransferKey, as_ranges, chunk_count, chunk_size, chunk_span
from aios_node.delta.disk import Step
from aios_node.delta.staging.staging import Staging
from aios_node.delta.staging.transfer import FLUSH_BYTES, Transfer
from aios_node.engine.errors import (
    BadRequest,
    Busy,
    HashMismatch,
    ProtocolError,
    StorageError,
    StorageFull,
    TooLarge,
    TransferAborted,
)


@dataclass(frozen=True)
class Info:
    bytes: int
    sha256: str


class Fault(Enum):
    FULL = errno.ENOSPC
    QUOTA = errno.EDQUOT
    READ_ONLY = errno.EROFS
    DENIED = errno.EACCES
    BROKEN = errno.EIO

    @property
    def expected(self) -> type[Exception]:
        return StorageFull if self in {Fault.FULL, Fault.QUOTA} else StorageError


class FailingDisk:
    """Lets one step fail, as often as asked."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.fault = Fault.FULL

    def __call__(self, step: Step) -> None:
        if step is self.step:
            raise OSError(self.fault.value, "injected")


def package(size: int, seed: int = 0) -> tuple[bytes, Info]:
    data = random.Random(seed).randbytes(size)
    return data, Info(size, hashlib.sha256(data).hexdigest())


def key(number: int = 1, base: int | None = None) -> TransferKey:
    return TransferKey("minilm", f"{number:064x}", None if base is None else f"{base:064x}")


def send(transfer: Transfer, data: bytes, *indices: int) -> None:
    for index in indices or range(transfer.chunks):
        offset, length = chunk_span(len(data), index)
        transfer.write(index, data[offset : offset + length])


def crash(transfer: Transfer) -> None:
    """What kill -9 leaves: closed descriptors, nothing flushed."""
    transfer._close()


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, MIN_CHUNK), (64 * MIN_CHUNK, MIN_CHUNK), (64 * MIN_CHUNK + 1, MIN_CHUNK + 1), (10**9, MAX_CHUNK)],
)
def test_a_chunk_is_a_64th_within_bounds(size: int, expected: int) -> None:
    assert chunk_size(size) == expected


@pytest.mark.parametrize("size", [1, 16384, 16385, 2_000_000, 64 * MAX_CHUNK + 1])
def test_chunks_cover_a_package_exactly(size: int) -> None:
    spans = [chunk_span(size, index) for index in range(chunk_count(size))]
    assert spans[0][0] == 0
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(spans))
    assert sum(spans[-1]) == size
    for outside in (-1, len(spans)):
        with pytest.raises(IndexError):
            chunk_span(size, outside)


def test_ranges_are_half_open() -> None:
    assert as_ranges([0, 1, 2, 7, 9, 10]) == ((0, 3), (7, 8), (9, 11))
    assert as_ranges([]) == ()


def test_a_whole_package_in_any_order(tmp_path: Path) -> None:
    data, info = package(500_000)
    with Staging(tmp_path / "s").open(key(), info) as transfer:
        order = list(range(transfer.chunks))
        random.Random(1).shuffle(order)
        send(transfer, data, *order)
        assert transfer.complete
        assert transfer.assemble().read_bytes() == data


def test_a_chunk_that_is_here_is_not_written_again(tmp_path: Path) -> None:
    data, info = package(100_000)
    with Staging(tmp_path / "s").open(key(), info) as transfer:
        chunk = data[: transfer.chunk_size]
        assert transfer.write(0, chunk) is True
        assert transfer.write(0, bytes(len(chunk))) is False
        transfer.flush()
        assert transfer.write(0, bytes(len(chunk))) is False
        send(transfer, data)
        assert transfer.assemble().read_bytes() == data


def test_a_crash_keeps_exactly_what_was_flushed(tmp_path: Path) -> None:
    data, info = package(300_000)
    transfer = Staging(tmp_path / "s").open(key(), info)
    send(transfer, data, 0, 1, 5)
    transfer.flush()
    send(transfer, data, 2, 3)
    assert transfer.durable == 3
    assert transfer.missing() == ((4, 5), (6, transfer.chunks))
    crash(transfer)

    with Staging(tmp_path / "s").open(key(), info) as again:
        assert again.missing() == ((2, 5), (6, again.chunks))


def test_chunks_become_durable_by_themselves_with_every_mib(tmp_path: Path) -> None:
    data, info = package(4 * FLUSH_BYTES)
    with Staging(tmp_path / "s").open(key(), info) as transfer:
        per_flush = FLUSH_BYTES // transfer.chunk_size
        send(transfer, data, *range(per_flush - 1))
        assert transfer.durable == 0
        send(transfer, data, per_flush - 1)
        assert transfer.durable == per_flush


def test_closing_flushes(tmp_path: Path) -> None:
    data, info = package(100_000)
    staging = Staging(tmp_path / "s")
    with staging.open(key(), info) as transfer:
        send(transfer, data, 2)
    transfer.close()
    with staging.open(key(), info) as again:
        assert again.missing() == ((0, 2), (3, again.chunks))


def test_a_chunk_is_marked_only_after_it_was_synced(tmp_path: Path) -> None:
    steps: list[Step] = []
    data, info = package(100_000)
    transfer = Staging(tmp_path / "s", observer=steps.append).open(key(), info)
    del steps[:]
    send(transfer, data, 0, 1)
    transfer.flush()
    crash(transfer)
    assert steps == [Step.WRITE_CHUNK, Step.WRITE_CHUNK, Step.SYNC_CHUNKS, Step.WRITE_JOURNAL, Step.SYNC_JOURNAL]


def test_a_chunk_that_the_disk_lost_is_asked_for_again(tmp_path: Path) -> None:
    data, info = package(100_000)
    with Staging(tmp_path / "s").open(key(), info) as transfer:
        send(transfer, data)
        path = transfer.assemble()
    damaged = bytearray(data)
    damaged[transfer.chunk_size + 5] ^= 1
    path.write_bytes(damaged)

    with Staging(tmp_path / "s").open(key(), info) as again:
        assert again.missing() == ((1, 2),)
        send(again, data, 1)
        assert again.assemble().read_bytes() == data


def test_wrong_hash_discards_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    data, info = package(100_000)
    other, _ = package(100_000, seed=1)
    staging = Staging(tmp_path / "s")
    transfer = staging.open(key(), info)
    send(transfer, other)
    with pytest.raises(HashMismatch, match="next sync"):
        transfer.assemble()
    assert staging.list() == ()
    with staging.open(key(), info) as again:
        send(again, data)
        assert again.assemble().read_bytes() == data


def test_an_incomplete_package_is_never_given_out(tmp_path: Path) -> None:
    data, info = package(100_000)
    with Staging(tmp_path / "s").open(key(), info) as transfer:
        send(transfer, data, 0)
        with pytest.raises(ProtocolError, match="missing"):
            transfer.assemble()
        assert transfer.durable == 1


def test_another_package_under_the_same_key_begins_afresh(tmp_path: Path) -> None:
    data, info = package(100_000)
    other, other_info = package(90_000, seed=1)
    staging = Staging(tmp_path / "s")
    with staging.open(key(), info) as transfer:
        send(transfer, data, 0)
    with staging.open(key(), other_info) as again:
        assert again.missing() == ((0, again.chunks),)
        send(again, other)
        assert again.assemble().read_bytes() == other
    assert len(staging.list()) == 1


@pytest.mark.parametrize("index", [-1, 7, 1 << 40])
def test_chunks_outside_of_the_package_are_refused(tmp_path: Path, index: int) -> None:
    _, info = package(7 * MIN_CHUNK)
    with Staging(tmp_path / "s").open(key(), info) as transfer, pytest.raises(ProtocolError, match="chunk"):
        transfer.write(index, bytes(MIN_CHUNK))


@pytest.mark.parametrize("length", [0, MIN_CHUNK - 1, MIN_CHUNK + 1])
def test_chunks_of_another_length_are_refused(tmp_path: Path, length: int) -> None:
    _, info = package(7 * MIN_CHUNK)
    with Staging(tmp_path / "s").open(key(), info) as transfer, pytest.raises(ProtocolError, match="instead of"):
        transfer.write(0, bytes(length))


def test_too_large_a_package_allocates_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s", max_bytes=1000)
    with pytest.raises(TooLarge, match="1001"):
        staging.open(key(), Info(1001, "0" * 64))
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(("size", "sha256"), [(0, "0" * 64), (-5, "0" * 64), (1 << 10, "../../etc"), (1 << 10, "")])
def test_impossible_packages_are_refused(tmp_path: Path, size: int, sha256: str) -> None:
    staging = Staging(tmp_path / "s")
    with pytest.raises(BadRequest):
        staging.open(key(), Info(size, sha256))
    assert staging.list() == ()


@pytest.mark.parametrize(
    ("model", "version", "base"),
    [("../x", "0" * 64, None), ("m", "../../x", None), ("m", "0" * 64, "0" * 63), ("", "0" * 64, None)],
)
def test_keys_are_validated(model: str, version: str, base: str | None) -> None:
    with pytest.raises(BadRequest):
        TransferKey(model, version, base)


def test_the_same_transfer_is_open_once(tmp_path: Path) -> None:
    _, info = package(100_000)
    staging = Staging(tmp_path / "s")
    with staging.open(key(), info):
        for attempt in (
            lambda: staging.open(key(), info),
            lambda: staging.resume(key()),
            lambda: staging.discard(key()),
        ):
            with pytest.raises(Busy):
                attempt()
    staging.open(key(), info).close()


def test_room_is_made_from_the_least_recently_used(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s", max_bytes=300_000)
    infos = {number: package(100_000, seed=number)[1] for number in range(1, 5)}
    for number in (1, 2, 3):
        staging.open(key(number), infos[number]).close()
    staging.open(key(1), infos[1]).close()
    staging.open(key(4), infos[4]).close()
    assert [staged.key for staged in Staging(tmp_path / "s").list()] == [key(3), key(1), key(4)]


def test_transfers_in_progress_are_never_pushed_out(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s", max_bytes=250_000)
    _, info = package(100_000)
    with staging.open(key(1), info), staging.open(key(2), info):
        with pytest.raises(StorageFull, match="in progress"):
            staging.open(key(3), info)
        assert staging.expire(max_transfers=0, max_bytes=0) == ()
    staging.open(key(3), info).close()
    assert [staged.key for staged in staging.list()] == [key(2), key(3)]


def test_expiry_by_number_and_by_bytes(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s")
    _, info = package(100_000)
    for number in range(1, 6):
        staging.open(key(number), info).close()
    assert staging.expire(max_transfers=4, max_bytes=1 << 30) == (key(1),)
    assert staging.expire(max_transfers=9, max_bytes=250_000) == (key(2), key(3))
    assert [staged.key for staged in staging.list()] == [key(4), key(5)]


def test_bases_are_named_until_the_transfer_is_gone(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s")
    _, info = package(100_000)
    staging.open(key(2, base=1), info).close()
    staging.open(key(3), info).close()
    assert Staging(tmp_path / "s").bases() == {f"{1:064x}"}
    assert staging.discard(key(2, base=1)) is True
    assert staging.discard(key(2, base=1)) is False
    assert staging.bases() == frozenset()


def test_resume_without_knowing_the_package(tmp_path: Path) -> None:
    data, info = package(100_000)
    staging = Staging(tmp_path / "s")
    assert staging.resume(key()) is None
    with staging.open(key(), info) as transfer:
        send(transfer, data, 0, 1)
    again = staging.resume(key())
    assert again is not None
    assert (again.bytes, again.sha256, again.missing()) == (info.bytes, info.sha256, ((2, again.chunks),))
    again.discard()
    assert staging.list() == ()


def test_a_closed_transfer_takes_nothing_and_harms_no_other(tmp_path: Path) -> None:
    data, info = package(100_000)
    staging = Staging(tmp_path / "s")
    old = staging.open(key(), info)
    old.close()
    with staging.open(key(), info) as new:
        for attempt in (lambda: send(old, data, 0), old.assemble):
            with pytest.raises(TransferAborted, match="closed"):
                attempt()
        old.discard()
        old.close()
        send(new, data)
        assert new.assemble().read_bytes() == data


@pytest.mark.parametrize(
    "damage", ["facts", "format", "no facts", "short data", "no data", "short journal", "base path"]
)
def test_damaged_folders_are_removed_at_start(tmp_path: Path, damage: str) -> None:
    data, info = package(100_000)
    staging = Staging(tmp_path / "s")
    with staging.open(key(), info) as transfer:
        send(transfer, data)
        folder = transfer.assemble().parent
    match damage:
        case "facts":
            (folder / "transfer.json").write_bytes(b'{"format":1')
        case "format":
            text = (folder / "transfer.json").read_text()
            (folder / "transfer.json").write_text(text.replace('"format": 1', '"format": 2'))
        case "no facts":
            (folder / "transfer.json").unlink()
        case "short data":
            (folder / "data").write_bytes(data[:-1])
        case "no data":
            (folder / "data").unlink()
        case "short journal":
            (folder / "journal").write_bytes(b"")
        case "base path":
            text = (folder / "transfer.json").read_text()
            (folder / "transfer.json").write_text(text.replace('"base": null', '"base": "../../x"'))
    again = Staging(tmp_path / "s")
    assert again.list() == ()
    assert list((tmp_path / "s").iterdir()) == []


def test_losing_the_order_of_use_costs_nothing_else(tmp_path: Path) -> None:
    data, info = package(100_000)
    staging = Staging(tmp_path / "s")
    for number in (1, 2):
        with staging.open(key(number), info) as transfer:
            send(transfer, data, 0)
    for folder in (tmp_path / "s").iterdir():
        (folder / "touched").write_bytes(b"\xff?")
    again = Staging(tmp_path / "s")
    assert [staged.touched for staged in again.list()] == [0, 0]
    with again.open(key(1), info) as transfer:
        assert transfer.durable == 1


def test_a_transfer_whose_files_vanish_is_a_storage_error(tmp_path: Path) -> None:
    _, info = package(100_000)
    staging = Staging(tmp_path / "s")
    staging.open(key(), info).close()
    (folder,) = (tmp_path / "s").iterdir()
    (folder / "journal").unlink()
    with pytest.raises(StorageError, match="stage a transfer"):
        staging.open(key(), info)
    assert staging.discard(key()) is True
    staging.open(key(), info).close()


def test_only_its_own_entries_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    (folder / ".new-abc").mkdir()
    (folder / ".gone-abc").mkdir()
    (folder / ("a" * 32)).mkdir()
    assert Staging(folder).list() == ()
    assert [entry.name for entry in folder.iterdir()] == ["thesis.txt"]


CREATING = [Step.CREATE_TRANSFER, Step.NAME_TRANSFER]
CHUNKING = [Step.WRITE_CHUNK, Step.SYNC_CHUNKS, Step.WRITE_JOURNAL, Step.SYNC_JOURNAL]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("step", CREATING)
def test_a_transfer_that_cannot_begin_leaves_nothing(tmp_path: Path, step: Step, fault: Fault) -> None:
    disk = FailingDisk()
    staging = Staging(tmp_path / "s", observer=disk)
    disk.step, disk.fault = step, fault
    _, info = package(100_000)
    with pytest.raises(fault.expected):
        staging.open(key(), info)
    assert list((tmp_path / "s").iterdir()) == []
    disk.step = None
    staging.open(key(), info).close()


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("step", CHUNKING)
def test_chunks_that_the_disk_refuses_are_missing_again(tmp_path: Path, step: Step, fault: Fault) -> None:
    disk = FailingDisk()
    data, info = package(200_000)
    staging = Staging(tmp_path / "s", observer=disk)
    transfer = staging.open(key(), info)
    send(transfer, data, 0)
    transfer.flush()
    disk.step, disk.fault = step, fault

    def send_and_flush() -> None:
        send(transfer, data, 1, 2)
        transfer.flush()

    with pytest.raises(fault.expected, match="injected"):
        send_and_flush()
    assert transfer.missing() == ((1, transfer.chunks),)
    disk.step = None
    send(transfer, data)
    assert transfer.assemble().read_bytes() == data


def test_a_failed_removal_leaves_the_transfer_as_it_was(tmp_path: Path) -> None:
    disk = FailingDisk()
    data, info = package(100_000)
    staging = Staging(tmp_path / "s", observer=disk)
    with staging.open(key(), info) as transfer:
        send(transfer, data, 3)
    disk.step = Step.DISCARD
    with pytest.raises(StorageFull):
        staging.discard(key())
    disk.step = None
    with staging.open(key(), info) as again:
        assert again.missing() == ((0, 3), (4, again.chunks))
