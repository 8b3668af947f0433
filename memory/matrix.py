"""A table's vectors in memory: an append-only float32 matrix that mirrors the log, version by version.

A view is immutable and belongs to exactly one version of the table, so a search that has a snapshot of
the log and the view of the same version sees one consistent state without waiting for anyone. Knows the
log's tables ``vectors`` and ``graves``; nothing about ids, filters or scores.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aios_node.memory.vectors import from_blobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_BYTES = 8 << 20
_READ_AT_ONCE = 4096
_KEPT = 16  # views of recent versions, for searches that began a moment ago
_WORTH_COMPACTING = 4096


@dataclass(frozen=True, eq=False)
class View:
    """The vectors of one version of a table.

    The first ``count`` rows of the ``blocks`` (float32 [capacity, d] each, unit length) are slots;
    ``seqs`` int64 [count], ascending, says whose they are; ``dead`` bool [count] marks removed ones.
    """

    version: int
    last_seq: int
    count: int = 0
    blocks: tuple[NDArray[np.float32], ...] = ()
    seqs: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    dead: NDArray[np.bool_] | None = None

    @property
    def living(self) -> int:
        """Slots that are not dead."""
        return self.count - (0 if self.dead is None else int(np.count_nonzero(self.dead)))

    def parts(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first slot, rows float32 [m, d]) for each block in use."""
        start = 0
        for block in self.blocks:
            if start < self.count:
                yield start, block[: self.count - start]
            start += len(block)

    def take(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these slots, float32 [m, d], copied."""
        out = np.empty((len(slots), self.blocks[0].shape[1]), np.float32)
        for start, rows in self.parts():
            here = (slots >= start) & (slots < start + len(rows))
            out[here] = rows[slots[here] - start]
        return out

    def slots_of(self, seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of those ``seqs`` (int64 [m]) that have a vector."""
        slots = np.searchsorted(self.seqs, seqs)
        slots[slots == self.count] = 0
        present: NDArray[np.int64] = slots[self.seqs[slots] == seqs] if self.count else slots[:0]
        return present


class Matrix:
    """Views of the last few versions. Loaded when first searched; from then on every commit stages its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: tuple[View, ...] = ()  # oldest first; replaced as a whole, read without the lock
        self._staged = False

    def view(self, connection: sqlite3.Connection) -> View | None:
        """The view of the version that this read transaction sees.

        None when that version is gone already: begin a new transaction and ask again.
        """
        version = _version(connection)
        found = self._find(version)
        if found is not None:
            return found
        with self._lock:
            found = self._find(version)
            if found is None and (not self._views or version > self._views[-1].version):
                found = self._advance(connection, version)
            return found

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Make the view of what is committed, should another process have written."""
        with self._lock:
            self._follow(connection)

    def stage(self, connection: sqlite3.Connection) -> None:
        """Make the view of the version that ``connection``'s write transaction will commit next."""
        with self._lock:
            self._staged = self._follow(connection)

    def unstage(self) -> None:
        """Drop the view that ``stage`` made: its version never came to be."""
        with self._lock:
            if self._staged:
                self._views = self._views[:-1]
            self._staged = False

    def _follow(self, connection: sqlite3.Connection) -> bool:
        version = _version(connection)
        if not self._views or version <= self._views[-1].version:
            return False
        self._advance(connection, version)
        return True

    def _find(self, version: int) -> View | None:
        return next((view for view in reversed(self._views) if view.version == version), None)

    def _advance(self, connection: sqlite3.Connection, version: int) -> View:
        """Make and keep the view of ``version`` from the newest one and what the log says has changed."""
        base = self._views[-1] if self._views else View(version=-1, last_seq=0)
        view = _bury(_grow(base, connection, version), base.version, connection)
        if view.count - view.living > max(_WORTH_COMPACTING, view.living):
            view = _grow(View(version=-1, last_seq=0), connection, version)
        self._views = (*self._views, view)[-_KEPT:]
        return view


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    return int(version)


def _grow(base: View, connection: sqlite3.Connection, version: int) -> View:
    """``base`` plus the vectors that the log has beyond it."""
    last_seq, parts, seqs = base.last_seq, [], []
    row = connection.execute("SELECT value FROM meta WHERE key = 'dimension'").fetchone()
    cursor = connection.execute("SELECT seq, value FROM vectors WHERE seq > ? ORDER BY seq", (last_seq,))
    while found := cursor.fetchmany(_READ_AT_ONCE):
        parts.append(_units(from_blobs([blob for _, blob in found], int(row[0]))))
        seqs.append(np.fromiter((seq for seq, _ in found), np.int64, len(found)))
        last_seq = found[-1][0]
    count = base.count + sum(map(len, parts))
    return View(
        version=version,
        last_seq=last_seq,
        count=count,
        blocks=_with_rows(base, parts),
        seqs=_with_seqs(base, seqs),
        dead=None if base.dead is None else np.concatenate([base.dead, np.zeros(count - base.count, bool)]),
    )


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to unit length, float32 [n, d]; a damaged row of zeros stays zero and is never near."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1
    units: NDArray[np.float32] = (vectors / norms[:, None]).astype(np.float32)
    return units


def _with_rows(base: View, parts: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], ...]:
    """Blocks that also hold ``parts``. Free rows behind ``base.count`` are filled: no view can see them."""
    blocks = list(base.blocks)
    filled = base.count - sum(map(len, blocks[:-1]))  # rows used of the last block
    waiting = sum(map(len, parts))
    for part in parts:
        while len(part):
            if not blocks or filled == len(blocks[-1]):
                width = part.shape[1]
                blocks.append(np.empty((max(waiting, 1 + _BLOCK_BYTES // (4 * width)), width), np.float32))
                filled = 0
            fits = min(len(part), len(blocks[-1]) - filled)
            blocks[-1][filled : filled + fits] = part[:fits]
            filled, part, waiting = filled + fits, part[fits:], waiting - fits
    return tuple(blocks)


def _with_seqs(base: View, parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """``base.seqs`` with ``parts`` behind, in a shared buffer that doubles when it is full."""
    added = sum(map(len, parts))
    if not added:
        return base.seqs
    buffer = base.seqs.base if isinstance(base.seqs.base, np.ndarray) else base.seqs
    if len(buffer) < base.count + added:
        buffer = np.empty(max(1024, 2 * (base.count + added)), np.int64)
        buffer[: base.count] = base.seqs
    buffer[base.count : base.count + added] = np.concatenate(parts)
    return buffer[: base.count + added]


def _bury(view: View, since: int, connection: sqlite3.Connection) -> View:
    """``view`` with the vectors marked dead that were removed after version ``since``."""
    if since < 0:
        return view  # loaded as a whole: what was removed is not there
    removed = connection.execute("SELECT seq FROM graves WHERE version > ? ORDER BY seq", (since,))
    slots = view.slots_of(np.fromiter(itertools.chain.from_iterable(removed), np.int64))
    if not len(slots):
        return view
    dead = np.zeros(view.count, bool) if view.dead is None else view.dead  # _grow made it for this view alone
    dead[slots] = True
    return View(view.version, view.last_seq, view.count, view.blocks, view.seqs, dead)
