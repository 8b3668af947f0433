"""What a node's configuration may say: one class per top-level key of ``node.yaml``.

Every field has a default, so that an empty file is a working node. Units are in the names
(``_s`` seconds, ``_mb`` mebibytes, ``_bytes``). Knows nothing about files or the environment.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from aios_node.engine.errors import BadConfig
from aios_node.node.grants import parse_grant

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
TableName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _grant(text: str) -> str:
    parse_grant(text)
    return text


GrantText = Annotated[str, AfterValidator(_grant)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NodeSection(Section):
    """Who this node is and where it keeps things."""

    name: Name = Field("node", description="name shown to people and in each search hit")
    data_dir: Path = Field(Path("data"), description="weights, memories and state; one node at a time owns it")
    keys_dir: Path = Field(Path("keys"), description="identity, certificates and tokens")
    grace_s: Seconds = Field(10.0, description="seconds that running requests get when the node is told to stop")


class ListenSection(Section):
    """Where the node can be reached."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: Port = Field(0, description="Flight port for clients; 0 takes a free one")
    peer_port: Port = Field(0, description="Flight port for peers under TLS; 0 takes a free one")
    dial_only: bool = Field(False, description="take no calls from peers: this node dials them, for both directions")
    advertise: str | None = Field(None, description="host that peers and clients should use, when it is not `host`")
    health_port: Port | None = Field(None, description="gRPC health service; absent: none, 0: a free port")
    metrics_port: Port | None = Field(None, description="Prometheus metrics over HTTP; absent: none, 0: a free port")


class SecuritySection(Section):
    """TLS, tokens and what callers may do."""

    tls: Literal["auto", "on", "off"] = Field("auto", description="auto: plain on loopback, TLS on any other address")
    insecure: bool = Field(False, description="allow plain and open service on an address that is not loopback")
    peer_rights: tuple[GrantText, ...] = Field(
        ("weights/*:read", "weights/*:write", "memory/*:read", "encode/*:read", "node/status:read"),
        description="what a peer may do unless its own entry says otherwise",
    )
    publishers: tuple[Fingerprint, ...] = Field(
        (), description="authors, beside the peers, whose signed versions are accepted"
    )
    ticket_ttl_s: Seconds = Field(3600.0, description="seconds a ticket stays valid")


class PeerEntry(Section):
    """A node to stay in step with."""

    uri: str = Field(
        pattern=r"^(grpc(\+tls|\+tcp)?://[^/\s]+:\d{1,5}|key:[0-9a-f]{64})$",
        description="grpc+tls://HOST:PORT of its peer port; key:NODE_ID for a node that only dials",
    )
    fingerprint: Fingerprint | None = Field(default=None, description="node id of the peer; needed under TLS")
    certificate: Path | None = Field(default=None, description="its certificate, where it cannot be fetched from it")
    rights: tuple[GrantText, ...] | None = Field(default=None, description="instead of security.peer_rights")

    @property
    def node_id(self) -> str | None:
        """The node id that the peer must prove, wherever it is stated."""
        return self.uri.removeprefix("key:") if self.uri.startswith("key:") else self.fingerprint

    @model_validator(mode="after")
    def _one_key(self) -> PeerEntry:
        if self.fingerprint not in {None, self.node_id}:
            raise ValueError("uri and fingerprint name different nodes: leave the fingerprint out")
        return self


class DiscoverySection(Section):
    """Finding nodes on the local network."""

    mdns: bool = Field(
        False, description="announce this node by mDNS, and find peers that were pinned wherever they are"
    )
    interfaces: tuple[IPv4Address, ...] = Field((), description="addresses of the interfaces to use; none: all")


class StoreSection(Section):
    """The version store."""

    keep_versions: int = Field(8, ge=2, description="versions kept per model beside those still referenced")
    history_mb: int = Field(1024, ge=0, description="most that older versions may take as backward deltas; 0: none")
    cache_mb: int = Field(2048, ge=1, description="most that packages and rebuilt bases for peers may take on disk")
    staging_mb: int = Field(8192, ge=1, description="most that unfinished transfers may hold on disk")


class ModelsSection(Section):
    """Which models this node keeps and follows."""

    subscribe: tuple[str, ...] = Field(("*",), description="names or patterns of models taken from peers")
    serve: tuple[str, ...] = Field(("*",), description="names or patterns of models offered to peers")
    encoder: str | None = Field(None, description="model used to embed; absent: the only encoder, if there is one")
    preload: bool = Field(True, description="open the encoder at start instead of at the first request")
    merge_strategy: str = Field("none", description="how diverged versions are merged by themselves; none: not at all")
    merge_options: dict[str, float | int | str] = Field({}, description="options of that strategy")
    merge_heads: int = Field(2, ge=2, le=64, description="versions that must have diverged before they are merged")
    merge_wait_s: Seconds = Field(2.0, description="seconds without news of a model before it is merged")

    @model_validator(mode="after")
    def _merging_can_work(self) -> ModelsSection:
        if self.merge_strategy != "none":
            from aios_node.delta.merge.registry import make_strategy

            try:
                make_strategy(self.merge_strategy, self.merge_options)
            except BadConfig as error:
                raise ValueError(error.message) from None
        return self


class MemorySection(Section):
    """Memory tables."""

    default_table: TableName = Field("notes", description="table used when none is named")
    search_timeout_s: Seconds = Field(5.0, description="seconds a network search waits for peers")


class SyncSection(Section):
    """How the node stays in step."""

    enabled: bool = True
    interval_s: Seconds = Field(30.0, description="seconds between two visits to a peer without news")
    backoff_max_s: Seconds = Field(300.0, description="longest wait before a peer that was down is tried again")
    auto_activate: bool = Field(True, description="serve a verified newer version by itself")


class EngineSection(Section):
    """Computing."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?|xpu(:\d+)?|mps)$", description="auto, cpu, cuda, xpu, mps"
    )
    mode: Literal["auto", "float32", "bfloat16", "float16", "int8", "packed"] = Field(
        "auto", description="arithmetic; auto: int8 for quantised models where that is fastest here, else float32"
    )
    threads: int = Field(0, ge=0, le=1024, description="threads for computing; 0: all cores")
    batch_max: int = Field(64, ge=1, le=4096, description="texts computed together at most")
    queue_max: int = Field(1024, ge=1, description="requests that may wait before callers must come back later")


class LimitsSection(Section):
    """Bounds that protect the machine."""

    memory_mb: int = Field(4096, ge=256, description="no job starts while node and workers use more than this")
    request_mb: int = Field(1024, ge=1, description="largest request accepted")
    rows_per_put: int = Field(1_000_000, ge=1, description="most rows in one do_put")
    streams: int = Field(64, ge=1, description="calls served at once")
    streams_per_identity: int = Field(16, ge=1, description="calls served at once for one caller")
    idle_timeout_s: Seconds = Field(60.0, description="a transfer without progress for this long is given up")
    bandwidth_mbit: float = Field(
        0.0, ge=0, description="cap on what sync sends, and on what it takes, over all peers; 0: none"
    )


class JobsSection(Section):
    """Heavy work in processes of its own."""

    workers: int = Field(1, ge=1, le=64, description="worker processes for deltas, quantising and training")


class PrivacySection(Section):
    """Noise on what training publishes; docs/privacy.md explains what it protects."""

    noise_multiplier: float = Field(0.0, ge=0, le=1e4, description="noise over clip_norm; 0: none, no privacy")
    clip_norm: float = Field(1.0, gt=0, le=1e9, description="L2 norm that an update is shortened to")
    delta: float = Field(1e-5, gt=0, lt=1, description="probability with which epsilon may fail")
    epsilon_max: float | None = Field(None, gt=0, description="most that one table may cost, all publications together")
    sums: tuple[str, ...] = Field((), description="models, or patterns, whose secure sums this node trains for")
    sums_least: int = Field(3, ge=2, description="least number of members that must be in a sum with this node")


class LogSection(Section):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    file: Path | None = Field(None, description="absent: stderr")


class NodeConfig(Section):
    """A whole configuration. ``base`` is the folder that relative paths count from."""

    node: NodeSection = NodeSection()
    listen: ListenSection = ListenSection()
    security: SecuritySection = SecuritySection()
    peers: tuple[PeerEntry, ...] = ()
    discovery: DiscoverySection = DiscoverySection()
    store: StoreSection = StoreSection()
    models: ModelsSection = ModelsSection()
    memory: MemorySection = MemorySection()
    sync: SyncSection = SyncSection()
    engine: EngineSection = EngineSection()
    limits: LimitsSection = LimitsSection()
    jobs: JobsSection = JobsSection()
    privacy: PrivacySection = PrivacySection()
    log: LogSection = LogSection()
    base: Path = Field(Path(), exclude=True)

    @field_validator("peers")
    @classmethod
    def _each_peer_once(cls, peers: tuple[PeerEntry, ...]) -> tuple[PeerEntry, ...]:
        uris = [peer.uri for peer in peers]
        twice = {uri for uri in uris if uris.count(uri) > 1}
        if twice:
            raise ValueError(f"{min(twice)} is listed twice")
        return peers

    @model_validator(mode="after")
    def _tls_peers_are_pinned(self) -> NodeConfig:
        for index, peer in enumerate(self.peers):
            if peer.uri.startswith("grpc+tls://") and peer.fingerprint is None:
                raise ValueError(f"peers.{index}.fingerprint: a grpc+tls peer needs the node id it must prove")
        return self

    @property
    def loopback(self) -> bool:
        """Whether the node listens only to its own machine."""
        host = self.listen.host
        return host in {"localhost", "::1"} or host.startswith("127.")

    @property
    def tls(self) -> bool:
        """Whether clients and peers meet TLS."""
        return self.security.tls == "on" or (self.security.tls == "auto" and not self.loopback)

    @property
    def peer_tls(self) -> bool:
        """Whether this node meets peers under TLS: it listens so, or it only dials."""
        return self.tls or self.listen.dial_only

    @property
    def data_dir(self) -> Path:
        """Absolute folder of weights, memories and state."""
        return (self.base / self.node.data_dir).absolute()

    @property
    def log_file(self) -> Path | None:
        """Absolute path of the log, or None for stderr."""
        return (self.base / self.log.file).absolute() if self.log.file else None

    @property
    def keys_dir(self) -> Path:
        """Absolute folder of the identity."""
        return (self.base / self.node.keys_dir).absolute()
