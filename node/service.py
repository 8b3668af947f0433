"""``aios-node run``: one process from its first line to its last.

Order matters: take the folder, open the stores, spawn workers, only then start gRPC; say ``ready`` when
everything listens. On SIGTERM or Ctrl-C: refuse new calls, let running ones end within the grace time,
then leave, with stalled readers cut off.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from aios_node.delta.store.events import Event
from aios_node.delta.store.folderlock import FolderLock
from aios_node.engine.errors import AiosError, BadConfig
from aios_node.flight.calls import CallRecord
from aios_node.flight.ports import Ports
from aios_node.node.archiving import prune
from aios_node.node.config import NodeConfig
from aios_node.node.core import NodeCore
from aios_node.node.derive import Deriver
from aios_node.node.listeners import Listeners
from aios_node.node.logs import start_logging
from aios_node.node.merging import Merger
from aios_node.node.ports.compute import HostedCompute
from aios_node.node.ports.control import Operations
from aios_node.node.ports.memory import StoredMemory
from aios_node.node.ports.weights import StoredWeights
from aios_node.node.reach import RunFile, prepare_folder

if TYPE_CHECKING:
    from aios_node.node.health import HealthService
    from aios_node.node.metrics import MetricsServer

log = structlog.get_logger("node")


def serve(config: NodeConfig) -> int:
    """Run a node until it is told to stop; returns the exit code. Raises AiosError when it cannot start."""
    check_exposure(config)
    prepare_folder(config.data_dir)
    start_logging(config.log.level, config.log.format, config.log_file)
    stop = _stop_on_signals()
    with FolderLock.acquire(config.data_dir) as lock, NodeCore.open(config) as core:
        service = Service(core, stop)
        try:
            service.start()
            lock.announce(core.address or "")
            print(f"ready {core.address} node={config.node.name}", flush=True)
            stop.wait()
            ended = service.stop()
        except BaseException:
            service.stop()
            raise
        if not ended:
            log.warning("calls did not end within the grace time: leaving anyway")
            sys.stderr.flush()
            os._exit(0)
    return 0


def check_exposure(config: NodeConfig) -> None:
    """Refuse to be open to a network by accident. Raises BadConfig."""
    if config.loopback or config.tls or config.security.insecure:
        return
    raise BadConfig(
        f"listen.host {config.listen.host} is not loopback and security.tls is off: anyone on the network could "
        "read and change everything; remove `tls: off`, or pass --insecure if that is what you want"
    )


class Service:
    """The network side of a core."""

    def __init__(self, core: NodeCore, stop: threading.Event) -> None:
        self._core = core
        self._stop = stop
        self._closing = ExitStack()
        self._health: HealthService | None = None
        self._listeners: Listeners | None = None
        self._stopped = False

    def start(self) -> None:
        """Bring everything up; what was started is stopped again by ``stop``, also after a failure."""
        core, config = self._core, self._core.config
        core.request_stop = self._stop.set
        core.state = "serving"
        core.workers.warm()
        ports = Ports(
            access=core.access,
            weights=StoredWeights(core.store),
            memory=StoredMemory(core.memory, core.search),
            compute=HostedCompute(core.models, core.metrics),
            control=Operations(core),
            sync=core.sync,
        )
        self._listeners = Listeners(config, core.identity, core.peers, core.access, ports, self._observe)
        self._listeners.start()
        self._announce(self._listeners)
        self._start_monitoring()
        self._closing.callback(RunFile.remove, config.data_dir)
        certificate = str(config.keys_dir / "node.crt") if config.tls else None
        uri = _reachable(core.address or "", config)
        RunFile(uri, core.access.owner_token, os.getpid(), certificate).write(config.data_dir)
        self._start_background()
        if not config.tls:
            log.warning("open to every program on this machine: security.tls is off", address=core.address)

    def stop(self) -> bool:
        """Drain and end everything; False when a call could not be ended."""
        if self._stopped:
            return True
        self._stopped = True
        grace_s = self._core.config.node.grace_s
        self._core.state = "draining"
        if self._health is not None:
            self._health.serving(False)
        if self._listeners is not None:
            self._listeners.drain()
        self._core.sync.stop(grace_s / 2)
        ended = self._listeners.shutdown(grace_s) if self._listeners is not None else True
        self._closing.close()
        return ended

    def _announce(self, listeners: Listeners) -> None:
        core = self._core
        core.address = _with_host(listeners.clients.uri, core.config.listen.advertise)
        core.ports = {"client": listeners.clients.port}
        if listeners.for_peers is not None:
            core.peer_address = _with_host(listeners.for_peers.uri, core.config.listen.advertise)
            core.ports["peer"] = listeners.for_peers.port

    def _start_monitoring(self) -> None:
        listen = self._core.config.listen
        if listen.health_port is not None:
            from aios_node.node.health import HealthService

            self._health = HealthService(listen.host, listen.health_port)
            self._closing.callback(self._health.close)
            self._core.ports["health"] = self._health.port
            self._health.serving(True)
        if listen.metrics_port is not None:
            from aios_node.node.metrics import MetricsServer

            server: MetricsServer = MetricsServer(self._core.metrics, listen.host, listen.metrics_port)
            self._closing.callback(server.close)
            self._core.ports["metrics"] = server.port

    def _start_background(self) -> None:
        core = self._core
        core.models.on_swap = self._swapped
        core.peers_changed = self._peers_changed
        core.dialer.on_new_certificate = self._trust_new_peers
        deriver = Deriver(core)
        self._closing.callback(deriver.close, core.config.node.grace_s)
        if core.config.models.merge_strategy != "none" and core.config.sync.auto_activate:
            self._closing.callback(Merger(core).close, core.config.node.grace_s)
        self._closing.callback(core.store.subscribe(self._changed))
        if core.config.sync.enabled:
            core.sync.start()
        if core.config.discovery.mdns:
            self._discover()
        threading.Thread(target=self._prune, name="prune", daemon=True).start()
        if core.config.models.preload:
            threading.Thread(target=self._preload, name="preload", daemon=True).start()

    def _discover(self) -> None:
        from aios_node.node.discovery.service import Discovery

        discovery = Discovery(self._core)
        try:
            self._core.discovery = discovery.start()
        except AiosError as error:
            log.error("no discovery", error=error.message)
        self._closing.callback(discovery.close)

    def _trust_new_peers(self) -> None:
        if self._listeners is not None:
            self._listeners.trust_new_peers()

    def _peers_changed(self) -> None:
        self._trust_new_peers()
        if self._core.config.sync.enabled:
            self._core.sync.peers_changed()

    def _changed(self, event: Event) -> None:
        if event.kind == "activated":
            log.info("active", model=event.model, version=event.version[:12])
            threading.Thread(target=self._tidy, name="tidy", daemon=True).start()

    def _swapped(self, model: str, version: str) -> None:
        self._core.metrics.swaps.inc()
        log.info("swapped", model=model, version=version[:12])

    def _preload(self) -> None:
        try:
            self._core.models.preload()
        except AiosError as error:
            log.error("encoder not opened", error=error.message)

    def _tidy(self) -> None:
        """After a change: rows stored before there was an encoder are embedded, old versions collected."""
        try:
            self._core.embed_waiting()
        except AiosError as error:
            log.error("not tidied up", error=error.message)
        self._prune()

    def _prune(self) -> None:
        """Also at start: a pruning may have been cut off."""
        try:
            prune(self._core)
        except AiosError as error:
            log.error("old versions not removed", error=error.message)

    def _observe(self, record: CallRecord) -> None:
        self._core.metrics.requests.labels(record.method, record.code).inc()


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def told(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(130)  # a second Ctrl-C: now
        stop.set()

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
    return stop


def _with_host(uri: str, host: str | None) -> str:
    if host is None:
        return uri
    scheme, _, address = uri.partition("://")
    return f"{scheme}://{host}:{address.rpartition(':')[2]}"


def _reachable(uri: str, config: NodeConfig) -> str:
    """Where this machine's owner finds the node: a wildcard address is no destination."""
    wildcard = config.listen.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return _with_host(uri, "127.0.0.1" if wildcard else config.listen.host)
