"""Puts the sync service of a core together: sessions by policy, work over the store, calls to peers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aios_node.delta.chunks import TransferKey
from aios_node.delta.envelope import Envelope, check_envelope
from aios_node.delta.exchange.effects import TransferDone
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.offers import Decision, Offer
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import BadWeights, Unauthenticated
from aios_node.flight.limits import MIB
from aios_node.flight.ports import Principal
from aios_node.node import jobs
from aios_node.node.identity import verify
from aios_node.node.patterns import chosen
from aios_node.node.sync.gathered import Descriptions, Gathered
from aios_node.node.sync.history import TransferRecord
from aios_node.node.sync.outgoing import OutgoingPackages
from aios_node.node.sync.policy import Policy, offers_for, permitted
from aios_node.node.sync.service import SyncService
from aios_node.node.sync.work import TransferWork

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore


def build_sync(core: NodeCore) -> SyncService:
    """The sync service of this node. It does nothing until it is started or asked."""
    dialer = core.dialer
    sessions = _Sessions(core)
    service = SyncService(
        core.config, core.peers, sessions, dialer.link, lambda record: _count(core, record), dialer.news
    )
    core.store.subscribe(service.changed)
    sessions.began = service.arriving
    return service


def _count(core: NodeCore, record: TransferRecord) -> None:
    result = record.result
    core.metrics.sync_bytes.labels(result.direction, result.mode or "none").inc(result.bytes)
    core.metrics.transfers.labels(result.direction, "ok" if result.hash_ok else result.error or "failed").inc()


class _Sessions:
    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self.began: Callable[[], None] = lambda: None
        self._swarm = Swarm(guard=threading.RLock(), began=self._began)
        self._gathered = Gathered(core.store.staging)
        self._descriptions = Descriptions()
        self._refused: set[tuple[str, str]] = set()
        folder = core.config.data_dir / "outgoing"
        max_bytes = core.config.store.cache_mb * MIB
        self._packages = OutgoingPackages(folder, core.store, core.workers, max_bytes=max_bytes)

    def _began(self) -> None:
        self.began()

    def session(self, peer: Principal, only: str | None) -> SyncSession:
        core = self._core
        offers = offers_for(
            core.store.picture,
            core.publisher_of,
            peer=peer,
            check=core.access.check,
            serve=core.config.models.serve,
            only=only,
        )
        return SyncSession(
            offers,
            _Refusing(lambda: self._policy(peer, only), self._refused),
            swarm=self._swarm,
            peer=peer.name if peer.kind == "peer" else "",
            may_offer=lambda offer: only in {None, offer.model} and self._may_offer(peer, offer),
        )

    def _policy(self, peer: Principal, only: str | None) -> Policy:
        """By what is here now: a session may last while others bring news."""
        core = self._core
        return Policy(
            core.store.picture,
            core.store.has,
            peer=peer,
            check=core.access.check,
            subscribe=core.config.models.subscribe,
            publishers=core.trusted_publishers(),
            only=only,
        )

    def _may_offer(self, peer: Principal, offer: Offer) -> bool:
        """Whether a peer may have what is still arriving here."""
        core = self._core
        served = chosen(offer.model, tuple(core.config.models.serve))
        return served and permitted(core.access.check, peer, "read", f"weights/{offer.model}")

    def work(self, on_done: Callable[[TransferDone, float], None]) -> TransferWork:
        staging = self._core.store.staging
        return TransferWork(staging, self._gathered, self._descriptions, self._packages, self._commit, on_done)

    def _commit(self, key: TransferKey, offer: Offer, package: Path) -> None:
        """Apply a verified package, check who signed it, and adopt the version."""
        core = self._core
        with core.store.workspace() as folder:
            try:
                applied = self._apply(key, package, folder)
                envelope = self._checked(applied, key)
            except (Unauthenticated, BadWeights):
                self._refused.add((key.model, key.version))  # nothing would be different the next time
                raise
            core.store.adopt(
                key.model,
                folder,
                created_at=envelope.created_at,
                envelope=applied,
                ancestors=offer.lineage,
                expected=key.version,
                activate=self._should_activate(key, offer),
            )

    def _apply(self, key: TransferKey, package: Path, folder: Path) -> bytes | None:
        core = self._core
        if key.base is None:
            return core.workers.run(jobs.apply_package, jobs.ApplyJob(package, None, folder))
        with core.store.pin(key.base) as base:
            return core.workers.run(jobs.apply_package, jobs.ApplyJob(package, base, folder))

    def _checked(self, data: bytes | None, key: TransferKey) -> Envelope:
        if data is None:
            raise Unauthenticated(f"{key.model} {key.version[:12]} came without a signature")
        envelope = Envelope.from_bytes(data)
        check_envelope(envelope, model=key.model, version=key.version, verify=_verify)
        trusted = self._core.trusted_publishers()
        if trusted is not None and envelope.public_key not in trusted:
            raise Unauthenticated(f"{key.model} {key.version[:12]} is signed by {envelope.public_key[:12]}, a stranger")
        return envelope

    def _should_activate(self, key: TransferKey, offer: Offer) -> bool:
        """A first version, or one that descends from what is active; a diverged one stays a head."""
        if not self._core.config.sync.auto_activate:
            return False
        models = self._core.store.picture.models
        active = models[key.model].pointers.active if key.model in models else None
        return active is None or active in offer.lineage


def _verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    return verify(public_key.hex(), message, signature)


class _Refusing:
    """The policy of this moment, which takes no version again whose signature or content was no good."""

    def __init__(self, policy: Callable[[], Policy], refused: set[tuple[str, str]]) -> None:
        self._policy = policy
        self._refused = refused

    def wants(self, offer: Offer) -> Decision:
        if (offer.model, offer.version) in self._refused:
            return Decision(False, reason="it was refused before: signature or content")
        return self._policy().wants(offer)
