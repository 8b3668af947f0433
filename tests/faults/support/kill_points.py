"""Where a node may be killed: five phases of a version's way to a peer, and named points in each.

A point is a moment between two operations, reached in the same order whatever the machine's speed. Beside
the points, a phase can be hit at any moment: so many microseconds after it was entered.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_ARMED, _PHASE, _POINT, _TRIGGERED, _FIRED = range(5)
_LEFT, _DELAY, _ACTIVE = 8, 12, 16
_BYTES = 4096


class Phase(Enum):
    """What a node does when it is hit. In the order of a version's way."""

    ENCODE = "encode"
    SEND = "send"
    STAGE = "stage"
    COMMIT = "commit"
    ACTIVATE = "activate"

    @property
    def number(self) -> int:
        return list(Phase).index(self)


class Point(Enum):
    """Named moments: the phase, the most times a transfer passes there (a kill takes one of them), what is done."""

    ENCODE_BEGIN = (Phase.ENCODE, 1, "nothing is written")
    ENCODE_PROGRESS = (Phase.ENCODE, 2, "part of the package is written")
    ENCODE_BUILT = (Phase.ENCODE, 1, "the package is whole")
    ENCODE_NAMED = (Phase.ENCODE, 1, "whole, and about to be described for the cache")
    SEND_READ = (Phase.SEND, 60, "a chunk is about to be read")
    SEND_CHUNK = (Phase.SEND, 60, "a chunk is read, not on the stream")
    SEND_SENT = (Phase.SEND, 60, "a chunk is on the stream")
    SEND_COMMIT = (Phase.SEND, 1, "all chunks are out, COMMIT is not")
    CREATE_TRANSFER = (Phase.STAGE, 1, "before there is a folder")
    NAME_TRANSFER = (Phase.STAGE, 1, "the folder is filled, under no name yet")
    WRITE_CHUNK = (Phase.STAGE, 60, "a chunk is here, not written")
    SYNC_CHUNKS = (Phase.STAGE, 2, "chunks are written, not synced")
    WRITE_JOURNAL = (Phase.STAGE, 2, "chunks are synced, not marked")
    SYNC_JOURNAL = (Phase.STAGE, 2, "chunks are marked, the journal is not synced")
    ASSEMBLE = (Phase.COMMIT, 1, "all chunks are here, the hash is not checked")
    APPLY = (Phase.COMMIT, 1, "the hash is right, the package not applied")
    APPLIED = (Phase.COMMIT, 1, "the version lies in a work folder")
    VERIFY = (Phase.COMMIT, 1, "its hashes are not checked")
    RENAME = (Phase.COMMIT, 1, "checked and synced, under no name yet")
    SYNC_NAME = (Phase.COMMIT, 1, "named, the name is not synced")
    REGISTER_ROW = (Phase.COMMIT, 3, "inside the transaction that enters it in the books")
    ACKNOWLEDGE = (Phase.COMMIT, 1, "in the books, nobody told")
    DISCARD = (Phase.COMMIT, 1, "committed, the staged package is still there")
    SAY_COMMITTED = (Phase.COMMIT, 1, "committed, the sender not told")
    POINT = (Phase.ACTIVATE, 1, "before the transaction (activation by hand)")
    ACTIVATE_ROW = (Phase.ACTIVATE, 1, "inside the transaction, the pointer is not written")
    ACTIVATE_COMMIT = (Phase.ACTIVATE, 1, "the pointer is written, the transaction not ended")
    ACTIVATE_TOLD = (Phase.ACTIVATE, 1, "durable, nobody told")

    @property
    def phase(self) -> Phase:
        return self.value[0]

    @property
    def most(self) -> int:
        return self.value[1]

    @property
    def number(self) -> int:
        return 1 + list(Point).index(self)


@dataclass(frozen=True)
class Plan:
    """One kill: at the ``nth`` passing of a point, or (no point) ``delay_us`` after the phase was entered."""

    phase: Phase
    point: Point | None
    nth: int = 1
    delay_us: int = 0

    def __str__(self) -> str:
        where = f"{self.point.name} number {self.nth}" if self.point else f"{self.delay_us} us after its beginning"
        return f"{self.phase.value}: {where}"


class ControlBlock:
    """A few bytes that the harness and a node share, and that outlive the node."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BYTES)

    def arm(self, plan: Plan) -> None:
        """From now on the node is to be killed."""
        self._map[:_ACTIVE] = bytes(_ACTIVE)
        self._map[_PHASE] = plan.phase.number
        self._map[_POINT] = plan.point.number if plan.point else 0
        self._put(_LEFT, plan.nth)
        self._put(_DELAY, plan.delay_us)
        self._map[_ARMED] = 1

    def disarm(self) -> None:
        self._map[_ARMED] = 0

    @property
    def triggered(self) -> bool:
        """Whether the node will be dead within its delay."""
        return self._map[_TRIGGERED] == 1

    @property
    def fired(self) -> bool:
        return self._map[_FIRED] == 1

    def fire(self) -> None:
        self._map[_FIRED] = 1

    def due(self, phase: Phase, point: Point | None) -> int | None:
        """Asked by the node at every point and phase: microseconds to live, or None."""
        if not self._map[_ARMED] or self._map[_TRIGGERED]:
            return None
        if (self._map[_PHASE], self._map[_POINT]) != (phase.number, point.number if point else 0):
            return None
        left = self._get(_LEFT) - 1
        self._put(_LEFT, max(left, 0))
        if left > 0:
            return None
        self._map[_TRIGGERED] = 1
        return self._get(_DELAY)

    def mark(self, phase: Phase, active: bool) -> None:
        self._map[_ACTIVE + phase.number] = active

    def clear(self) -> None:
        """A new life: in no phase."""
        self._map[_ACTIVE : _ACTIVE + len(Phase)] = bytes(len(Phase))

    def phase(self) -> Phase | None:
        """The innermost phase the node is in, or was in when it died."""
        return next((phase for phase in reversed(Phase) if self._map[_ACTIVE + phase.number]), None)

    def _put(self, offset: int, value: int) -> None:
        self._map[offset : offset + 4] = value.to_bytes(4, "little")

    def _get(self, offset: int) -> int:
        return int.from_bytes(self._map[offset : offset + 4], "little")
