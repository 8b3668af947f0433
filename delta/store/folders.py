"""Where versions lie on disk: finished ones under their id, everything else in a work folder.

A folder gets its final name only when it is whole and synced, and loses it before it is taken apart, so
that a name under ``versions/`` is never half of anything. Knows nothing about models or heads.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from aios_node.delta.disk import Observer, Step, fresh_folder, make_folder, remove_folder
from aios_node.delta.names import check_version
from aios_node.engine.weights.disk import sync_folder

_BUILDING, _GONE = "new-", "gone-"
_VERSION = re.compile(r"[0-9a-f]{64}")


class VersionFolders:
    """The two folders of a store. Raises OSError; the store turns it into errors for people."""

    def __init__(self, path: Path, observer: Observer) -> None:
        self._versions, self._work = path / "versions", path / "work"
        self._observer = observer

    def prepare(self) -> None:
        """Make both folders where they are missing."""
        make_folder(self._versions)
        make_folder(self._work)

    def path(self, version: str) -> Path:
        """Where a version lies or would lie."""
        return self._versions / check_version(version)

    def found(self) -> frozenset[str]:
        """Versions that lie here, whoever knows of them."""
        if not self._versions.is_dir():
            return frozenset()
        return frozenset(entry.name for entry in self._versions.iterdir() if _VERSION.fullmatch(entry.name))

    def sweep(self, registered: Collection[str]) -> None:
        """After a crash: remove what was being built or taken apart, and versions that nobody registered."""
        for version in self.found() - frozenset(registered):
            self.detach(version)
        for entry in sorted(self._work.iterdir()):
            if entry.name.startswith((_BUILDING, _GONE)):
                remove_folder(entry)

    def new_workspace(self) -> Path:
        """An empty folder to build a version in."""
        return fresh_folder(self._work, _BUILDING)

    def is_workspace(self, folder: Path) -> bool:
        return folder.parent == self._work and folder.name.startswith(_BUILDING) and folder.is_dir()

    def place(self, folder: Path, version: str) -> None:
        """Give a finished folder its final name, in place of any damaged one. Durable on return."""
        final = self.path(version)
        if final.exists():
            self.detach(version)
        self._observer(Step.RENAME)
        folder.rename(final)
        self._observer(Step.SYNC_NAME)
        sync_folder(self._versions)

    def detach(self, version: str) -> Path:
        """Take a version's name away at once; ``remove_folder`` may take its time with the result."""
        gone = fresh_folder(self._work, _GONE)
        try:
            return self.path(version).rename(gone)
        except OSError:
            gone.rmdir()
            raise


def freed_bytes(folder: Path) -> int:
    """Bytes that removing a folder gives back: files that no other folder links to."""
    stats = [entry.stat() for entry in folder.iterdir()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
