"""Folders that can be made again, kept on disk by name under a bound: the least recently used go first.

What is being read is never removed, and what is being made has no name yet, so that a crash leaves nothing half.
Knows nothing about what the folders hold.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aios_node.delta.disk import fresh_folder, remove_folder, sync_files
from aios_node.delta.store.folders import freed_bytes

_BUILDING = "new-"


@dataclass(frozen=True)
class Held:
    """A folder that is being read; ``release`` it afterwards."""

    path: Path
    release: Callable[[], None]


class DiskCache:
    """The cache in one folder, which belongs to it alone. Thread-safe."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """``max_bytes``: of all folders together, without files that are links to others. Removes half-made ones."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._readers: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.is_dir():
                path.unlink()
            elif path.name.startswith(_BUILDING):
                remove_folder(path)

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._max_bytes

    def hold(self, name: str, make: Callable[[Path], None], whole: Callable[[Path], bool]) -> Held:
        """The folder of this name, as it is if ``whole`` says so, else made in an empty folder by ``make``.

        Others who ask for the same name meanwhile wait for it. Raises what ``make`` raises.
        """
        with self._lock:
            self._readers[name] += 1
            making = self._making.setdefault(name, threading.Lock())
        path = self._folder / name
        try:
            with making:
                if not path.is_dir() or not whole(path):
                    self._make(path, make)
                os.utime(path)
            self._trim()
        except BaseException:
            self._leave(name)
            raise
        return Held(path, lambda: self._leave(name))

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        remove_folder(path)
        work = fresh_folder(self._folder, _BUILDING)
        try:
            make(work)
            sync_files(work)
            work.rename(path)
        except BaseException:
            remove_folder(work)
            raise

    def _leave(self, name: str) -> None:
        with self._lock:
            self._readers[name] -= 1

    def _trim(self) -> None:
        with self._lock:
            kept = [path for path in self._folder.iterdir() if not path.name.startswith(_BUILDING)]
            sizes = {path: freed_bytes(path) for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)}
            total = sum(sizes.values())
            for path, size in sizes.items():
                if total <= self._max_bytes:
                    return
                if self._readers[path.name] <= 0:
                    total -= size
                    remove_folder(path)
