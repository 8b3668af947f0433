"""Packages on their way out: built once by a worker, kept under a bound, shared by all who ask.

The same key gives the same bytes, so that a transfer that broke off goes on where it stopped, also
with a package that was built anew. A base that was pruned here is rebuilt from the archive, so that a peer
that is far behind gets one direct delta; where that is not possible the package is full.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from aios_node.delta.chunks import TransferKey
from aios_node.delta.names import short
from aios_node.delta.offers import PackageInfo
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import AiosError, Busy, Unavailable
from aios_node.engine.weights.folder import read_folder
from aios_node.node import jobs
from aios_node.node.files import read_json, write_json
from aios_node.node.sync.diskcache import DiskCache, Held
from aios_node.node.workers import Workers

log = structlog.get_logger("sync")

PACKAGE = "package"
INFO = "info.json"
KEPT = "received"


@dataclass(frozen=True)
class Lease:
    """A package that is being read; ``release`` it afterwards."""

    path: Path
    info: PackageInfo
    release: Callable[[], None]
    kept: bool = False  # it was received, not built here


class OutgoingPackages:
    """Packages and rebuilt bases in one cache on disk. Thread-safe."""

    def __init__(self, folder: Path, store: VersionStore, workers: Workers, *, max_bytes: int) -> None:
        self._store = store
        self._workers = workers
        self._cache = DiskCache(folder, max_bytes=max_bytes)

    def prepare(self, key: TransferKey, codecs: tuple[str, ...]) -> Lease:
        """The package of ``key`` in these codecs, from the cache or built now. Raises AiosError.

        Only an ancestor is taken as base: a delta from anything else would tell who may read one model about another.
        """
        if key.base is not None and key.base not in self._store.ancestors(key.version):
            key = TransferKey(key.model, key.version)
        held = self._cache.hold(_name(key, codecs), lambda work: self._build(work, key, codecs), _whole_package)
        info = PackageInfo(**read_json(held.path / INFO, None))
        return Lease(held.path / PACKAGE, info, held.release, (held.path / KEPT).exists())

    def keep(self, key: TransferKey, codecs: tuple[str, ...], info: PackageInfo, package: Path) -> None:
        """Remember a package that was received, so that it is passed on as it came. Where that fails it is not kept."""

        def link(work: Path) -> None:
            os.link(package, work / PACKAGE)
            write_json(work / INFO, asdict(info))
            (work / KEPT).touch()

        with suppress(OSError, AiosError):  # another file system, a full disk: it is built when someone asks
            self._cache.hold(_name(key, codecs), link, _whole_package).release()

    def _build(self, work: Path, key: TransferKey, codecs: tuple[str, ...]) -> None:
        envelope = self._store.envelope(key.model, key.version)
        with self._store.pin(key.version) as target, self._base(key) as base:
            job = jobs.PackageJob(base, target, envelope, codecs, work / PACKAGE)
            info = self._workers.run(jobs.build_package, job)
        write_json(work / INFO, asdict(info))

    @contextmanager
    def _base(self, key: TransferKey) -> Iterator[Path | None]:
        """The folder of the base, stored or rebuilt; None where there is none to be had."""
        if key.base is None:
            yield None
        elif self._store.has(key.base):
            with self._store.pin(key.base) as base:
                yield base
        else:
            held = self._rebuilt(key.base)
            try:
                yield held.path if held else None
            finally:
                if held:
                    held.release()

    def _rebuilt(self, version: str) -> Held | None:
        facts = self._store.picture.facts.get(version)
        if facts is None or facts.bytes > self._cache.max_bytes or version not in self._store.archive.entries:
            return None
        try:
            return self._cache.hold(version, lambda work: self._rebuild(version, work), _whole_version)
        except (Busy, Unavailable):
            raise  # a full package would not be built now either
        except AiosError as error:
            log.warning("an archived version cannot be rebuilt", version=short(version), error=error.message)
            return None

    def _rebuild(self, version: str, work: Path) -> None:
        with self._store.route(version) as route:
            self._workers.run(jobs.rebuild_version, jobs.RebuildJob(route, work))


def _whole_package(path: Path) -> bool:
    facts = read_json(path / INFO, None)
    package = path / PACKAGE
    return facts is not None and package.exists() and package.stat().st_size == facts["bytes"]


def _whole_version(path: Path) -> bool:
    try:
        return read_folder(path).version == path.name
    except AiosError:
        return False


def _name(key: TransferKey, codecs: tuple[str, ...]) -> str:
    identity = json.dumps([key.model, key.version, key.base, sorted(codecs)])
    return "package-" + hashlib.sha256(identity.encode()).hexdigest()[:40]
