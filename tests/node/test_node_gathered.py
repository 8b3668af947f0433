"""What several sessions receive together: one staged transfer, checked against the hashes, kept when they leave."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from aios_node.delta.chunks import TransferKey
from aios_node.delta.offers import PackageInfo
from aios_node.delta.staging.staging import Staging
from aios_node.delta.swarm.description import Description, chunk_hashes
from aios_node.engine.errors import Busy, NoBase, TransferAborted
from aios_node.node.sync.gathered import Descriptions, Gathered

KEY = TransferKey("m", "a" * 64)
CHUNK = 16 * 1024


def describe(seed: int) -> tuple[Description, list[bytes]]:
    chunks = [random.Random(seed + index).randbytes(CHUNK) for index in range(4)]
    data = b"".join(chunks)
    package = PackageInfo(len(data), hashlib.sha256(data).hexdigest(), "full", None, 1, 1)
    return Description(package, chunk_hashes(chunks)), chunks


def test_two_sessions_fill_one_package(tmp_path: Path) -> None:
    description, chunks = describe(1)
    gathered = Gathered(Staging(tmp_path))
    assert gathered.enter(KEY, description) == ((0, 4),)
    gathered.write(KEY, 0, chunks[0])
    assert gathered.enter(KEY, description) == ((1, 4),)
    for index in (1, 2, 3):
        gathered.write(KEY, index, chunks[index])
    path = gathered.assemble(KEY)
    assert path.read_bytes() == b"".join(chunks)
    assert gathered.file(KEY, description.package) == path
    gathered.discard(KEY)
    assert gathered.file(KEY, description.package) is None
    with pytest.raises(TransferAborted):
        gathered.write(KEY, 0, chunks[0])
    gathered.leave(KEY)
    gathered.leave(KEY)


def test_what_is_staged_stays_when_the_last_leaves(tmp_path: Path) -> None:
    description, chunks = describe(1)
    gathered = Gathered(Staging(tmp_path))
    gathered.enter(KEY, description)
    gathered.enter(KEY, description)
    gathered.leave(KEY)
    gathered.write(KEY, 2, chunks[2])
    gathered.leave(KEY)
    again = Gathered(Staging(tmp_path))
    assert again.enter(KEY, description) == ((0, 2), (3, 4))


def test_staged_chunks_with_other_hashes_are_asked_for_again(tmp_path: Path) -> None:
    description, chunks = describe(1)
    _, others = describe(100)
    forged = Description(description.package, chunk_hashes([chunks[0], others[1], *chunks[2:]]))
    gathered = Gathered(Staging(tmp_path))
    gathered.enter(KEY, forged)
    gathered.write(KEY, 0, chunks[0])
    gathered.write(KEY, 1, others[1])
    gathered.leave(KEY)
    assert gathered.enter(KEY, description) == ((1, 4),)
    gathered.write(KEY, 1, chunks[1])
    gathered.write(KEY, 2, chunks[2])
    gathered.write(KEY, 3, chunks[3])
    assert gathered.assemble(KEY).read_bytes() == b"".join(chunks)


def test_another_package_of_the_version_has_to_wait(tmp_path: Path) -> None:
    gathered = Gathered(Staging(tmp_path))
    gathered.enter(KEY, describe(1)[0])
    with pytest.raises(Busy, match="another package"):
        gathered.enter(KEY, describe(2)[0])


def test_a_built_package_is_described_from_its_file(tmp_path: Path) -> None:
    description, chunks = describe(1)
    path = tmp_path / "package"
    path.write_bytes(b"".join(chunks))
    book = Descriptions()
    assert book.describe(path, description.package) == description
    path.unlink()
    assert book.describe(path, description.package) == description
    with pytest.raises(NoBase):
        book.describe(path, describe(2)[0].package)
