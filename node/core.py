"""The node without its network: stores, models, workers, peers and tokens, opened and closed together.

Operations work on a core. ``aios-node run`` puts a Flight service around it; a command without a running
node opens one on the folder directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.delta.envelope import Envelope, seal
from aios_node.delta.names import check_model, check_version
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import Corrupt, UnknownVersion
from aios_node.node.access import Access
from aios_node.node.config import NodeConfig
from aios_node.node.identity import Identity, load_identity
from aios_node.node.models import ModelHost, NodeEmbedder
from aios_node.node.peers import PeerBook
from aios_node.node.tokens import TokenBook
from aios_node.node.workers import Workers

if TYPE_CHECKING:
    from aios_node.memory.store import MemoryStore
    from aios_node.node.dialing import Dialer
    from aios_node.node.discovery.service import Discovery
    from aios_node.node.metrics import Metrics
    from aios_node.node.network_search import NetworkSearch
    from aios_node.node.privacy import PrivacyBook
    from aios_node.node.residuals import Residuals
    from aios_node.node.sums.member import SumHost
    from aios_node.node.sync.service import SyncService

MIB = 1 << 20


class NodeCore:
    """Everything a node owns. Open it with ``NodeCore.open``; the caller holds the folder's lock."""

    def __init__(self, config: NodeConfig, identity: Identity, store: VersionStore) -> None:
        """Only ``open`` calls this."""
        self.config = config
        self.identity = identity
        self.store = store
        self.state = "stopped"
        self.address: str | None = None
        self.peer_address: str | None = None
        self.ports: dict[str, int] = {}
        self.models = ModelHost(store, config.engine, config.models.encoder)
        self.embedder = NodeEmbedder(self.models)
        self.peers = PeerBook(config.keys_dir, config.peers, config.base)
        self.tokens = TokenBook(config.keys_dir / "tokens.json")
        self.access = Access(self.tokens, self.peers, config.security.peer_rights)
        self.discovery: Discovery | None = None
        self.peers_changed: Callable[[], None] = lambda: None
        self.request_stop: Callable[[], None] = lambda: None
        self._closing = ExitStack()
        self._lazy = threading.RLock()
        self._embedding = threading.Lock()

    @classmethod
    @contextmanager
    def open(cls, config: NodeConfig) -> Iterator[NodeCore]:
        """Open a node's folder. Raises AiosError: a damaged store, missing keys, a disk that refuses."""
        with ExitStack() as stack:
            identity = load_identity(config.keys_dir, certificate_hosts(config))
            store = stack.enter_context(
                VersionStore.open(
                    config.data_dir / "store",
                    max_staged_bytes=config.store.staging_mb * MIB,
                    max_archive_bytes=config.store.history_mb * MIB,
                )
            )
            core = cls(config, identity, store)
            stack.callback(core.models.close)
            stack.enter_context(core._closing)
            yield core

    @cached_property
    def workers(self) -> Workers:
        """The worker processes; none runs before the first job."""
        with self._lazy:
            config = self.config
            workers = Workers(config.jobs.workers, config.engine.threads, config.limits.memory_mb * MIB)
            self._closing.callback(workers.close)
            return workers

    @property
    def scratch(self) -> Path:
        """Where jobs keep what they can make again: calibration texts, checkpoints of long work."""
        return self.config.data_dir / "scratch"

    @cached_property
    def privacy(self) -> PrivacyBook:
        """What private publications have cost, by table."""
        from aios_node.node.privacy import PrivacyBook

        with self._lazy:
            return PrivacyBook(self.config.data_dir / "privacy.json")

    @cached_property
    def sums(self) -> SumHost:
        """Secure sums that this node gives a vector to."""
        from aios_node.node.sums.member import SumHost

        with self._lazy:
            return SumHost(self.identity)

    @cached_property
    def residuals(self) -> Residuals:
        """What this node's lossy versions lack."""
        from aios_node.node.residuals import Residuals

        with self._lazy:
            return Residuals(self.config.data_dir / "residuals")

    @cached_property
    def memory(self) -> MemoryStore:
        """The memory tables."""
        from aios_node.memory.store import MemoryStore

        with self._lazy:
            memory = MemoryStore.open(self.config.data_dir / "memory", embedder=self._embedder_if_any())
            self._closing.callback(memory.close)
            self._closing.callback(self.store.subscribe(lambda _event: self._refresh_embedder(memory)))
            return memory

    @cached_property
    def search(self) -> NetworkSearch:
        """Searches over this node and its peers."""
        from aios_node.node.network_search import NetworkSearch

        with self._lazy:
            config = self.config
            timeout_s = config.memory.search_timeout_s
            search = NetworkSearch(
                config.node.name, self.memory, self.embedder, self.peers, self.dialer.search, timeout_s
            )
            self._closing.callback(search.close)
            return search

    @cached_property
    def dialer(self) -> Dialer:
        """Calls to peers in this node's name."""
        from aios_node.node.dialing import Dialer

        timeout_s = self.config.limits.idle_timeout_s
        return Dialer(self.identity, self.peers, idle_timeout_s=timeout_s, tls=self.config.peer_tls)

    @cached_property
    def metrics(self) -> Metrics:
        """Counters of this process."""
        from aios_node.node.metrics import Metrics

        metrics = Metrics()
        metrics.peers_up.set_function(lambda: sum(peer.state == "up" for peer in self.peers.all()))
        return metrics

    @cached_property
    def sync(self) -> SyncService:
        """Exchange with peers."""
        from aios_node.node.sync.build import build_sync

        with self._lazy:
            return build_sync(self)

    def version(self, model: str, text: str | None) -> str:
        """The full id of a version: a prefix resolved, or the active one. Raises UnknownModel, UnknownVersion."""
        if text is not None:
            return self.store.resolve(model, text)
        active = self.store.active(model)
        if active is None:
            raise UnknownVersion(f"{model} has no active version: activate one of its versions")
        return active

    def parents(self, model: str) -> tuple[str, ...]:
        """What a new version of a model descends from: its active version, if it has one."""
        active = self.store.active(model) if model in self.store.models() else None
        return (active,) if active else ()

    def publish(self, model: str, folder: Path) -> str:
        """Adopt a version folder as this node's own work, signed, and serve it."""
        check_model(model)
        created_at = now()

        def envelope(version: str) -> bytes:
            return seal(
                model,
                version,
                publisher=self.config.node.name,
                created_at=created_at,
                public_key=self.identity.node_id,
                sign=self.identity.sign,
            ).to_bytes()

        return self.store.adopt(model, folder, created_at=created_at, envelope=envelope, activate=True)

    def publisher_of(self, model: str, version: str) -> str | None:
        """Node id of a version's author, if its envelope names one."""
        data = self.store.envelope(model, check_version(version))
        if data is None:
            return None
        try:
            return Envelope.from_bytes(data).public_key
        except Corrupt:
            return None

    def trusted_publishers(self) -> frozenset[str] | None:
        """Node ids whose signed versions are accepted; None on an open network: anyone's."""
        known = self.peers.all()
        keyed = self.config.tls or any(peer.tls for peer in known)
        if not keyed and not self.config.security.publishers:
            return None
        peers = {peer.node_id for peer in known if peer.node_id}
        return frozenset({*peers, *self.config.security.publishers, self.identity.node_id})

    def embed_waiting(self) -> int:
        """Embed rows that were stored while there was no encoder; returns how many."""
        if self._embedder_if_any() is None:
            return 0
        with self._embedding:
            return sum(self.memory.embed_missing(table) for table in self.memory.tables())

    def documents(self, table: str) -> Iterator[dict[str, str]]:
        """Texts of a table with their titles, for training: ``{"title", "text"}``."""
        for batch in self.memory.scan(table, columns=["source", "text"], filter="text IS NOT NULL"):
            for row in batch.to_pylist():
                yield {"title": row["source"] or "", "text": row["text"]}

    def _embedder_if_any(self) -> NodeEmbedder | None:
        return self.embedder if self.embedder.ready else None

    def _refresh_embedder(self, memory: MemoryStore) -> None:
        memory.embedder = self._embedder_if_any()

    def memory_stats(self, table: str) -> dict[str, Any]:
        """A table's figures as status and lists show them."""
        stats = self.memory.stats(table)
        return {
            "table": table,
            "rows": stats.rows,
            "bytes": stats.bytes,
            "dimension": stats.dimension,
            "space": stats.space,
            "version": stats.version,
        }


def certificate_hosts(config: NodeConfig) -> list[str]:
    """Names and addresses that the TLS certificate must be valid for."""
    named = [host for host in (config.listen.host, config.listen.advertise) if host]
    wildcards = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    if wildcards.isdisjoint(named):
        return named
    return [*(host for host in named if host not in wildcards), *_own_addresses()]


def _own_addresses() -> list[str]:
    """This machine's name and IPv4 addresses: where a listener on all addresses can be reached."""
    import socket

    import psutil

    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
                 if entry.family == socket.AF_INET]  # fmt: skip
    return [socket.gethostname(), *sorted(addresses)]


def now() -> str:
    """This moment as versions record it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
