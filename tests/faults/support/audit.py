"""Looks at the folder of a node, dead or alive, without the node's help: what is committed, active and staged.

Reads the books with plain SQL, recomputes every hash of every version, and takes a staged chunk for durable
when its slot in the journal is marked and its bytes have the CRC that stands there.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from aios_node.delta.chunks import chunk_count, chunk_span
from aios_node.delta.store.integrity import verify_version
from aios_node.engine.errors import AiosError

MARK = 0x44415441
Key = tuple[str, str | None, str]
"""Version, base and hash of a package."""


@dataclass(frozen=True)
class Disk:
    """What a node's folder holds. ``corrupt``: versions in the books whose files are not what their name says."""

    committed: frozenset[str] = frozenset()
    active: dict[str, str] = field(default_factory=dict)
    corrupt: tuple[str, ...] = ()
    staged: dict[Key, frozenset[int]] = field(default_factory=dict)


def books(store: Path) -> tuple[frozenset[str], dict[str, str]]:
    """Versions in the books, and the active one of each model; also of a node that runs."""
    if not (store / "heads.sqlite").exists():
        return frozenset(), {}
    with closing(sqlite3.connect(store / "heads.sqlite")) as database:
        committed = frozenset(version for (version,) in database.execute("SELECT DISTINCT version FROM members"))
        return committed, dict(database.execute("SELECT name, active FROM models WHERE active IS NOT NULL"))


def look(store: Path) -> Disk:
    """Everything. Call it between two lives of the node."""
    committed, active = books(store)
    corrupt = tuple(version for version in sorted(committed | set(active.values())) if not whole(store, version))
    return Disk(committed, active, corrupt, staged(store))


def whole(store: Path, version: str) -> bool:
    """Whether every hash of a version is right."""
    try:
        verify_version(store / "versions" / version, version)
    except (AiosError, OSError):
        return False
    return True


def staged(store: Path) -> dict[Key, frozenset[int]]:
    """Chunks that are safely on disk, by package; also of a node that runs."""
    found = {}
    for facts_path in (store / "transfers").glob("[0-9a-f]*/transfer.json"):
        facts = json.loads(facts_path.read_text())
        folder, size = facts_path.parent, facts["bytes"]
        slots = (folder / "journal").read_bytes()
        with (folder / "data").open("rb") as data:
            found[facts["version"], facts["base"], facts["sha256"]] = frozenset(
                index for index in range(chunk_count(size)) if _durable(slots, data, size, index)
            )
    return found


def _durable(slots: bytes, data: object, size: int, index: int) -> bool:
    crc, mark = struct.unpack_from("<II", slots, 8 * index)
    if mark != MARK:
        return False
    offset, length = chunk_span(size, index)
    data.seek(offset)  # type: ignore[attr-defined]
    return zlib.crc32(data.read(length)) == crc  # type: ignore[attr-defined]
