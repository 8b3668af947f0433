"""A simulated node: what it has durably, what it remembers, and how it performs the effects of its sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aios_node.delta.chunks import TransferKey, as_ranges
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    FindStaged,
    OpenStaged,
    ReadChunk,
    Shared,
    SharePackage,
    StageChunk,
)
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.offers import Decision, Offer
from aios_node.delta.simulation.catalog import MODEL, Catalog, version_of
from aios_node.delta.simulation.clock import Clock
from aios_node.delta.swarm.description import Description
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import HashMismatch, NotFound

OWN, RECEIVED = "own", "received"


@dataclass
class Staged:
    """Chunks on a simulated disk."""

    description: Description
    chunks: dict[int, bytes | memoryview] = field(default_factory=dict)


class SimulatedNode:
    """``versions`` and ``staging`` are durable; everything else is gone after ``restart``."""

    def __init__(self, name: str, clock: Clock, catalog: Catalog, *, liar: bool = False) -> None:
        self.name, self.clock, self.catalog, self.liar = name, clock, catalog, liar
        self.versions: dict[str, str] = {}  # version -> how it came
        self.staging: dict[TransferKey, Staged] = {}
        self.again = 0  # chunks that came although they were staged
        self.hops: dict[tuple[str, int], int] = {}  # (version, chunk) -> links from the source
        self.finished: dict[str, float] = {}
        self.began: Callable[[], None] = lambda: None
        self.committed: Callable[[], None] = lambda: None
        self.swarm = Swarm()
        self.restart()

    def restart(self) -> None:
        """Begin anew with what is durable."""
        self.swarm = Swarm(began=self._began)

    def _began(self) -> None:
        self.began()

    def adopt(self, version: str, how: str) -> None:
        """A version is here, with its ancestors."""
        self.versions[version] = how
        self.finished[version] = self.clock.now
        self.committed()

    def session(self, peer: str) -> SyncSession:
        """A session with a peer."""
        offers = [
            Offer(MODEL, version, self.catalog.lineage(version), len(self.catalog.payloads[version]))
            for version in list(self.versions)[-1:]
        ]
        return SyncSession(offers, self, swarm=self.swarm, peer=peer)

    def wants(self, offer: Offer) -> Decision:
        """The policy: what is not here, from the nearest ancestor that is."""
        if offer.version in self.versions:
            return Decision(want=False, reason="already here")
        return Decision(want=True, base=next((old for old in offer.lineage if old in self.versions), None))

    def perform(self, effect: Effect, peer: SimulatedNode) -> Any:
        """Do what an effect of a session with ``peer`` asks for. Raises AiosError."""
        match effect:
            case OpenStaged():
                return self._open(effect.key, effect.description)
            case StageChunk():
                self._stage(effect)
                far = peer.hops.get((effect.key.version, effect.index), 0)
                self.hops[effect.key.version, effect.index] = far + 1
            case CommitTransfer():
                self._commit(effect)
            case DiscardStaged():
                self.staging.pop(effect.key, None)
            case SharePackage():
                return self._share(effect)
            case ReadChunk():
                return self._read(effect)
            case FindStaged():
                raise NotFound("simulated nodes speak protocol 2")
            case _:
                pass  # nothing to do in a simulation
        return None

    def _open(self, key: TransferKey, description: Description) -> tuple[tuple[int, int], ...]:
        staged = self.staging.get(key)
        if staged is None or staged.description.root != description.root:
            staged = self.staging[key] = Staged(description)
        return as_ranges(index for index in range(description.count) if index not in staged.chunks)

    def _stage(self, effect: StageChunk) -> None:
        staged = self.staging.get(effect.key)
        if staged is None:
            raise NotFound("nothing is being received")
        self.again += effect.index in staged.chunks
        staged.chunks[effect.index] = effect.data

    def _commit(self, effect: CommitTransfer) -> None:
        chunks = self.staging[effect.key].chunks
        payload = b"".join(chunks[index] for index in range(len(chunks)))
        right = hashlib.sha256(payload).hexdigest() == effect.package.sha256
        if not right or version_of(effect.key.base, payload) != effect.key.version:
            raise HashMismatch("the package is not what was promised")
        self.adopt(effect.key.version, RECEIVED)

    def _share(self, effect: SharePackage) -> Shared:
        if effect.arriving is not None and effect.key in self.staging:
            return Shared(effect.arriving, origin=False)
        if effect.key.version not in self.versions:
            raise NotFound("not here")
        description, _ = self.catalog.package(effect.key)
        return Shared(description, origin=self.versions[effect.key.version] == OWN)

    def _read(self, effect: ReadChunk) -> bytes | memoryview:
        _, chunks = self.catalog.package(effect.key)
        chunk = chunks[effect.index]
        return bytes(len(chunk)) if self.liar else chunk
