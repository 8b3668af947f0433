"""Packages on their way out: built once by a worker, kept under a bound, shared by all who ask.

The same key gives the same bytes, so that a transfer that broke off goes on where it stopped, also
with a package that was built anew.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from aios_node.delta.chunks import TransferKey
from aios_node.delta.offers import PackageInfo
from aios_node.delta.store.store import VersionStore
from aios_node.node import jobs
from aios_node.node.files import read_json, write_json
from aios_node.node.workers import Workers


@dataclass(frozen=True)
class Lease:
    """A package that is being read; ``release`` it afterwards."""

    path: Path
    info: PackageInfo
    release: Callable[[], None]


class OutgoingPackages:
    """A cache of packages on disk, least recently used out first. Thread-safe."""

    def __init__(self, folder: Path, store: VersionStore, workers: Workers, *, max_bytes: int) -> None:
        self._folder = folder
        self._store = store
        self._workers = workers
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._building: dict[str, threading.Lock] = {}
        self._readers: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, key: TransferKey, codecs: tuple[str, ...]) -> Lease:
        """The package of ``key`` in these codecs, from the cache or built now. Raises AiosError."""
        name = _name(key, codecs)
        with self._lock:
            self._readers[name] += 1
            building = self._building.setdefault(name, threading.Lock())
        try:
            with building:
                info = self._cached(name) or self._build(name, key, codecs)
            self._trim()
        except BaseException:
            self._leave(name)
            raise
        return Lease(self._folder / name, info, lambda: self._leave(name))

    def _leave(self, name: str) -> None:
        with self._lock:
            self._readers[name] -= 1

    def _cached(self, name: str) -> PackageInfo | None:
        path = self._folder / name
        facts = read_json(path.with_suffix(".json"), None)
        if facts is None or not path.exists() or path.stat().st_size != facts["bytes"]:
            return None
        path.touch()
        return PackageInfo(**facts)

    def _build(self, name: str, key: TransferKey, codecs: tuple[str, ...]) -> PackageInfo:
        path = self._folder / name
        partial = path.with_suffix(".part")
        envelope = self._store.envelope(key.model, key.version)
        with self._store.pin(key.version) as target:
            if key.base is not None and self._store.has(key.base):
                with self._store.pin(key.base) as base:
                    job = jobs.PackageJob(base, target, envelope, codecs, partial)
                    info = self._workers.run(jobs.build_package, job)
            else:
                info = self._workers.run(jobs.build_package, jobs.PackageJob(None, target, envelope, codecs, partial))
        partial.replace(path)
        write_json(path.with_suffix(".json"), asdict(info))
        return info

    def _trim(self) -> None:
        """Remove the least recently used packages until the bound holds; never one that is being read."""
        with self._lock:
            packages = sorted(self._folder.glob("*.pkg"), key=lambda path: path.stat().st_mtime_ns)
            total = sum(path.stat().st_size for path in packages)
            for path in packages:
                if total <= self._max_bytes:
                    return
                if self._readers[path.name] <= 0:
                    total -= path.stat().st_size
                    path.unlink()
                    path.with_suffix(".json").unlink(missing_ok=True)


def _name(key: TransferKey, codecs: tuple[str, ...]) -> str:
    identity = json.dumps([key.model, key.version, key.base, sorted(codecs)])
    return hashlib.sha256(identity.encode()).hexdigest()[:40] + ".pkg"
