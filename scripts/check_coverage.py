"""Holds every room to its share of covered lines and branches. Reads what `coverage json` wrote.

usage: check_coverage.py FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# The longest folder that a file lies in decides; the figures are percent that must be exceeded.
THRESHOLDS = {
    "engine/quant": 90.0,
    "engine/weights": 90.0,
    "delta": 90.0,
    "memory": 90.0,
    "engine": 85.0,
    "flight": 85.0,
    "node": 85.0,
}


@dataclass
class Tally:
    """Lines and branches of one room: how many there are and how many ran."""

    total: int = 0
    covered: int = 0

    def add(self, summary: Mapping[str, Any]) -> None:
        self.total += summary["num_statements"] + summary["num_branches"]
        self.covered += summary["covered_lines"] + summary["covered_branches"]

    @property
    def percent(self) -> float:
        return 100.0 * self.covered / self.total if self.total else 100.0


def room_of(path: Path) -> str | None:
    """The room that a file (relative to the root) counts for; None: it lies in none."""
    fitting = [room for room in THRESHOLDS if path.is_relative_to(room)]
    return max(fitting, key=len, default=None)


def tally(files: Mapping[str, Mapping[str, Any]], root: Path = ROOT) -> dict[str, Tally]:
    """Add up the report's files by room; names may lead through the links in src/."""
    rooms = {room: Tally() for room in THRESHOLDS}
    for name, report in files.items():
        path = (root / name).resolve()
        room = room_of(path.relative_to(root)) if path.is_relative_to(root) else None
        if room is not None:
            rooms[room].add(report["summary"])
    return rooms


def unmeasured(files: Iterable[str], root: Path = ROOT) -> list[str]:
    """Modules that the report does not know: a room that no test imports would pass silently."""
    known = {(root / name).resolve() for name in files}
    folders = {room.split("/")[0] for room in THRESHOLDS}
    modules = [path for folder in folders for path in (root / folder).rglob("*.py") if path.stat().st_size]
    return sorted(str(path.relative_to(root)) for path in modules if path.resolve() not in known)


def main(arguments: list[str]) -> int:
    """0: every room is above its threshold; 1: one is not; 2: wrong use."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    files = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))["files"]
    failed = False
    for room, found in tally(files).items():
        good = found.percent > THRESHOLDS[room]
        failed |= not good
        verdict = "ok" if good else "TOO LOW"
        print(f"{room:16} {found.percent:6.1f} %   more than {THRESHOLDS[room]:.0f} % needed   {verdict}")
    for name in unmeasured(files):
        failed = True
        print(f"not measured at all: {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
