"""Models as Flight serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import UnknownVersion
from aios_node.flight.ports import ModelVersion, ShardFile


class StoredWeights:
    """WeightsPort over the version store."""

    def __init__(self, store: VersionStore) -> None:
        self._store = store

    def models(self) -> Sequence[str]:
        """Models that have an active version."""
        return [model for model in self._store.models() if self._store.active(model)]

    def resolve(self, model: str, version: str | None) -> ModelVersion:
        """The version of this prefix, or the active one."""
        if version is not None:
            full = self._store.resolve(model, version)
        else:
            active = self._store.active(model)
            if active is None:
                raise UnknownVersion(f"{model} has no active version")
            full = active
        return self._described(model, full, self._store.path(full))

    @contextmanager
    def lease(self, model: str, version: str) -> Iterator[ModelVersion]:
        """The same, kept from garbage collection meanwhile."""
        full = self._store.resolve(model, version)
        with self._store.pin(full) as folder:
            yield self._described(model, full, folder)

    def _described(self, model: str, version: str, folder: Path) -> ModelVersion:
        shards = tuple(
            ShardFile(folder / shard.file, shard.file, shard.bytes, shard.sha256, len(shard.tensors))
            for shard in self._store.shards(version)
        )
        return ModelVersion(model, version, shards)
