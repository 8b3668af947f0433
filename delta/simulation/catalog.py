"""Versions and packages of a simulated network: random bytes whose hashes are real, shared by all nodes.

A version's id is the hash of its parent's id and its payload, so that a node that applied a package proves by the id
that it has the right bytes. The package is the payload.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from random import Random

from aios_node.delta.chunks import TransferKey, chunk_count, chunk_span
from aios_node.delta.offers import PackageInfo
from aios_node.delta.swarm.description import Description, chunk_hashes
from aios_node.engine.errors import NoBase, UnknownVersion

MODEL = "model"


def version_of(parent: str | None, payload: bytes) -> str:
    """The id of what a package makes of its base."""
    return hashlib.sha256((parent or "").encode() + payload).hexdigest()


@dataclass
class Catalog:
    """All that was ever published. ``payloads``: version -> what leads to it from its parent."""

    payloads: dict[str, bytes] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    _packages: dict[str, tuple[Description, tuple[bytes, ...]]] = field(default_factory=dict)

    def publish(self, random: Random, parent: str | None, size: int) -> str:
        """A new version, ``size`` bytes away from its parent."""
        payload = random.randbytes(size)
        version = version_of(parent, payload)
        self.payloads[version], self.parents[version] = payload, parent
        return version

    def lineage(self, version: str) -> tuple[str, ...]:
        """Ancestors, nearest first."""
        found = []
        parent = self.parents[version]
        while parent is not None:
            found.append(parent)
            parent = self.parents[parent]
        return tuple(found)

    def package(self, key: TransferKey) -> tuple[Description, tuple[bytes, ...]]:
        """The package of a version from its parent, and its chunks. Raises UnknownVersion, NoBase."""
        if key.version not in self.payloads:
            raise UnknownVersion(f"no version {key.version}")
        if key.base != self.parents[key.version]:
            raise NoBase("simulated packages lead from a version's parent")
        if key.version not in self._packages:
            self._packages[key.version] = self._build(key)
        return self._packages[key.version]

    def _build(self, key: TransferKey) -> tuple[Description, tuple[bytes, ...]]:
        payload = self.payloads[key.version]
        spans = [chunk_span(len(payload), index) for index in range(chunk_count(len(payload)))]
        chunks = tuple(payload[offset : offset + length] for offset, length in spans)
        sha256 = hashlib.sha256(payload).hexdigest()
        mode = "full" if key.base is None else "delta"
        info = PackageInfo(len(payload), sha256, mode, key.base, len(payload), len(payload))  # type: ignore[arg-type]
        return Description(info, chunk_hashes(chunks)), chunks
