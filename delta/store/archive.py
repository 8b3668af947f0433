"""Old versions as backward deltas: each leads from a version that was kept to one that was pruned.

    ARCHIVE/ID.back    a package whose base is the successor and whose target is version ID
    ARCHIVE/ID.json    what it is: base, size, when it was put here, to which models the version belonged

An entry counts when both files are there and agree. The package gets its name first and the books follow in one
atomic write; removing goes the other way round, so that a crash leaves an entry or an orphan, never half of one.
Entries form chains that end in a stored version. The whole is kept under a bound in bytes: the oldest ends of the
chains go first. Knows neither how deltas are coded nor which versions are worth keeping.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aios_node.delta.disk import Observer, Step, make_folder, write_durably
from aios_node.delta.names import check_model, check_version
from aios_node.delta.store.heads import Member
from aios_node.engine.errors import BadRequest
from aios_node.engine.weights.disk import sync_folder
from aios_node.engine.weights.names import canonical_json

MOST_MEMBERS: Final = 32
"""Models of which an entry remembers that the version belonged to them."""

_FORMAT: Final = 1
_MOST_BOOK_BYTES: Final = 1 << 20
_BOOK = re.compile(r"[0-9a-f]{64}\.json")


@dataclass(frozen=True)
class Entry:
    """One archived version. ``base`` is where its delta starts; ``number`` counts entries in the order of archiving.

    ``size`` is that of the backward delta in bytes; ``members`` says to which models the version belonged, and its
    envelope and time in each.
    """

    version: str
    base: str
    size: int
    number: int
    members: tuple[tuple[str, Member], ...] = ()

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "format": _FORMAT,
                "version": self.version,
                "base": self.base,
                "bytes": self.size,
                "number": self.number,
                "members": [_member_json(model, member) for model, member in self.members],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Raises ValueError, TypeError, KeyError or BadRequest for what is no entry."""
        raw = json.loads(data)
        if raw["format"] != _FORMAT or type(raw["bytes"]) is not int or type(raw["number"]) is not int:
            raise ValueError("not an entry of this format")
        version, base = check_version(raw["version"]), check_version(raw["base"])
        if version == base or raw["bytes"] < 0:
            raise ValueError("an entry that cannot be")
        members = tuple(_read_member(version, one) for one in raw["members"])
        return cls(version, base, raw["bytes"], raw["number"], members)


class Archive:
    """The entries of one folder. Thread-safe; raises OSError, which the store turns into errors for people."""

    def __init__(self, folder: Path, *, max_bytes: int, observer: Observer) -> None:
        """``max_bytes``: of all backward deltas together; 0 keeps none. Removes what a crash left half-made."""
        self._folder, self._max_bytes, self._observer = folder, max_bytes, observer
        self._mutex = threading.Lock()
        make_folder(folder)
        self._entries = self._load()
        self._sweep()

    @property
    def max_bytes(self) -> int:
        """The bound; 0: nothing is archived."""
        return self._max_bytes

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All entries by version, as they are now."""
        with self._mutex:
            return dict(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes of all backward deltas."""
        return sum(entry.size for entry in self.entries.values())

    def path(self, version: str) -> Path:
        """Where the backward delta of a version lies or would lie."""
        return self._folder / f"{check_version(version)}.back"

    def chain(self, version: str, ends: Collection[str]) -> tuple[Entry, ...]:
        """The entries that lead from one of ``ends`` to a version, in the order of applying; empty: no way."""
        return _chain(self.entries, version, ends)

    def put(self, version: str, base: str, package: Path, members: Sequence[tuple[str, Member]]) -> bool:
        """Take a package in, replacing an entry of the same version. False where the bound has no room for it.

        ``package`` is moved; it must lie on the same file system and be durable. Durable on return.
        """
        size = package.stat().st_size
        if size > self._max_bytes:
            return False
        with self._mutex:
            number = 1 + max((entry.number for entry in self._entries.values()), default=0)
            entry = Entry(version, base, size, number, tuple(members[:MOST_MEMBERS]))
            self._forget(version)
            self._observer(Step.NAME_ARCHIVE)
            try:
                package.rename(self.path(version))
                write_durably(self._book(version), entry.to_bytes())
            except BaseException:
                self.path(version).unlink(missing_ok=True)
                raise
            self._entries[version] = entry
            self._trim()
            return version in self._entries

    def tidy(self, stored: Collection[str]) -> None:
        """Drop entries of versions that are stored, and chains that end in none that is."""
        with self._mutex:
            for version in [version for version in self._entries if version in stored]:
                self._forget(version)
            self._drop_loose(stored)
            self._trim()

    def recover(self, stored: Collection[str]) -> None:
        """After a start: as ``tidy``, but an entry of a stored version stays: its pruning was interrupted."""
        with self._mutex:
            self._drop_loose(stored)
            self._trim()

    def _drop_loose(self, stored: Collection[str]) -> None:
        for version in list(self._entries):
            if not _chain(self._entries, version, stored):
                self._forget(version)

    def _trim(self) -> None:
        """Drop the oldest ends of chains until the bound holds."""
        while sum(entry.size for entry in self._entries.values()) > self._max_bytes:
            needed = {entry.base for entry in self._entries.values()}
            ends = [entry for entry in self._entries.values() if entry.version not in needed]
            self._forget(min(ends or self._entries.values(), key=lambda entry: entry.number).version)

    def _forget(self, version: str) -> None:
        if version not in self._entries:
            return
        self._observer(Step.REMOVE)
        self._book(version).unlink(missing_ok=True)
        self.path(version).unlink(missing_ok=True)
        del self._entries[version]

    def _book(self, version: str) -> Path:
        return self._folder / f"{check_version(version)}.json"

    def _load(self) -> dict[str, Entry]:
        found = (self._read(path) for path in sorted(self._folder.iterdir()) if _BOOK.fullmatch(path.name))
        return {entry.version: entry for entry in found if entry is not None}

    def _read(self, book: Path) -> Entry | None:
        """An entry that is whole, or None."""
        try:
            if book.stat().st_size > _MOST_BOOK_BYTES:
                return None
            entry = Entry.from_bytes(book.read_bytes())
            whole = self.path(entry.version).stat().st_size == entry.size and book.stem == entry.version
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, BadRequest):
            return None
        return entry if whole else None

    def _sweep(self) -> None:
        """Remove every file that belongs to no entry."""
        known = {path.name for version in self._entries for path in (self.path(version), self._book(version))}
        for path in self._folder.iterdir():
            if path.name not in known and path.is_file():
                path.unlink()
        sync_folder(self._folder)


def _chain(entries: Mapping[str, Entry], version: str, ends: Collection[str]) -> tuple[Entry, ...]:
    links: dict[str, Entry] = {}
    while version not in links and version in entries:
        links[version] = entry = entries[version]
        version = entry.base
        if version in ends:
            return tuple(reversed(links.values()))
    return ()


def _member_json(model: str, member: Member) -> dict[str, Any]:
    envelope = None if member.envelope is None else base64.b64encode(member.envelope).decode()
    return {"model": model, "created_at": member.created_at, "envelope": envelope}


def _read_member(version: str, raw: Mapping[str, Any]) -> tuple[str, Member]:
    envelope = None if raw["envelope"] is None else base64.b64decode(raw["envelope"], validate=True)
    return check_model(raw["model"]), Member(version, str(raw["created_at"]), envelope)
