"""What a version store can be asked: models, versions, lineage, folders. Changes nothing.

Every answer comes from one immutable picture (``heads``), so readers never wait for a commit and never see
half of one. Knows nothing about who may ask.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from aios_node.delta.names import check_model, check_version, short
from aios_node.delta.store.archive import Archive
from aios_node.delta.store.backward import Route
from aios_node.delta.store.folders import VersionFolders
from aios_node.delta.store.heads import Heads, Member, Pointers, VersionInfo
from aios_node.delta.store.integrity import verify_version
from aios_node.delta.store.pins import Pin, Pins
from aios_node.engine.errors import Corrupt, DataError, UnknownVersion
from aios_node.engine.weights.folder import VersionFolder, read_folder
from aios_node.engine.weights.manifest import Manifest
from aios_node.engine.weights.parquet import ShardInfo


class Catalog:
    """The reading half of ``VersionStore``. Models are named, versions are full ids unless said otherwise."""

    def __init__(self, folders: VersionFolders, heads: Heads, archive: Archive) -> None:
        self._folders, self._heads, self._archive = folders, heads, archive
        self._mutex = threading.Lock()
        self._pins = Pins()
        self._damaged: dict[str, str] = {}

    @property
    def picture(self) -> Heads:
        """All models and their lineage at one moment, for who asks several questions at once."""
        return self._heads

    def models(self) -> tuple[str, ...]:
        return tuple(sorted(self._heads.models))

    def versions(self, model: str) -> tuple[VersionInfo, ...]:
        """All versions of a model, newest first. Raises UnknownModel."""
        return self._heads.info(model)

    def pointers(self, model: str) -> Pointers:
        """Active and previous version, as one."""
        return self._heads.model(model).pointers

    def active(self, model: str) -> str | None:
        return self.pointers(model).active

    def previous(self, model: str) -> str | None:
        return self.pointers(model).previous

    def heads(self, model: str) -> tuple[str, ...]:
        """Versions of a model that none of its others descends from, newest first."""
        return self._heads.heads(model)

    def ancestors(self, version: str) -> tuple[str, ...]:
        """Known ancestors, nearest first, also those whose files are gone."""
        return self._heads.ancestors(version)

    def lineage(self, model: str) -> dict[str, tuple[str, ...]]:
        """Parents of every version of a model and of all known ancestors."""
        return self._heads.lineage(model)

    def derived(self, model: str) -> tuple[str, ...]:
        """Models whose active version was derived from this one."""
        return self._heads.derived(check_model(model))

    def resolve(self, model: str, prefix: str) -> str:
        """The one version of a model that begins so (4 digits or more). Raises UnknownVersion."""
        return self._heads.resolve(model, prefix)

    def envelope(self, model: str, version: str) -> bytes | None:
        """The envelope under which a version was committed to a model."""
        return self._heads.member(model, version).envelope

    def has(self, version: str) -> bool:
        """Whether a version is here and whole."""
        return version in self._heads.registered() and version not in self._damaged

    def damaged(self) -> Mapping[str, str]:
        """Registered versions whose files are not what they should be, and why."""
        return dict(self._damaged)

    def path(self, version: str) -> Path:
        """The folder of a version (full id). Raises UnknownVersion, or Corrupt where its files are damaged."""
        if version in self._damaged:
            raise Corrupt(
                f"version {short(version)} is damaged ({self._damaged[version]}): roll back, or sync or import it again"
            )
        if version not in self._heads.registered():
            raise UnknownVersion(f"no version {short(check_version(version))} is stored here")
        return self._folders.path(version)

    def folder(self, version: str) -> VersionFolder:
        """What lies in a version's folder; sizes are checked, hashes are not."""
        return read_folder(self.path(version))

    def manifest(self, version: str) -> Manifest:
        return self.folder(version).manifest

    def shards(self, version: str) -> tuple[ShardInfo, ...]:
        return self.folder(version).shards

    @property
    def archive(self) -> Archive:
        """Pruned versions as backward deltas."""
        return self._archive

    def archived(self, model: str) -> dict[str, Member]:
        """Versions of a model that are not stored any more but can be rebuilt, newest first."""
        self._heads.model(model)
        stored = self._heads.registered()
        entries = sorted(self._archive.entries.values(), key=lambda entry: entry.number, reverse=True)
        named = {entry.version: dict(entry.members).get(model) for entry in entries if entry.version not in stored}
        return {version: member for version, member in named.items() if member is not None}

    @contextlib.contextmanager
    def route(self, version: str) -> Iterator[Route]:
        """How to rebuild an archived version; its root stays stored until the end. Raises UnknownVersion, Corrupt."""
        links = self._archive.chain(version, self._heads.registered())
        if not links:
            raise UnknownVersion(f"version {short(check_version(version))} is not in the archive")
        with self.pin(links[0].base) as root:
            yield Route(version, root, tuple(self._archive.path(link.version) for link in links))

    def pin(self, version: str) -> Pin:
        """Keep a version's folder from garbage collection while someone reads it."""
        with self._mutex:
            return self._pins.pin(version, self.path(version))

    def verify(self, version: str) -> None:
        """Recompute every hash of a version. Raises Corrupt or HashMismatch and remembers the damage."""
        with self.pin(version) as path:
            try:
                verify_version(path, version)
            except DataError as error:
                self._damaged[version] = error.message
                raise
