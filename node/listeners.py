"""The node's Flight listeners: one for clients, and under TLS one for peers.

gRPC reads trusted certificates only when a listener starts; when a new peer is pinned, the peers'
listener is started again on its port, which takes a moment that peers bridge by trying again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog

from aios_node.engine.errors import Unavailable
from aios_node.flight.auth import Identify, anyone, by_certificate, by_token
from aios_node.flight.calls import CallRecord
from aios_node.flight.limits import MIB, Limits
from aios_node.flight.listener import FlightListener, Tls
from aios_node.flight.ports import Ports, Principal
from aios_node.flight.tickets import TicketSigner
from aios_node.node.access import Access
from aios_node.node.config import NodeConfig
from aios_node.node.identity import Identity
from aios_node.node.peers import PeerBook

log = structlog.get_logger("listen")


class Listeners:
    """Starts, restarts and ends the listeners of one node."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        peers: PeerBook,
        access: Access,
        ports: Ports,
        observe: Callable[[CallRecord], None],
    ) -> None:
        self._config = config
        self._identity = identity
        self._peers = peers
        self._access = access
        self._ports = ports
        self._observe = observe
        self._tickets = TicketSigner()
        self._lock = threading.Lock()
        self._trusted: dict[str, bytes] = {}
        self._stopped = False
        tls = Tls(identity.certificate, identity.tls_key) if config.tls else None
        identify = by_token(access) if config.tls else open_or_token(access)
        self.clients = self._listener(identify, config.listen.port, tls)
        self.for_peers: FlightListener | None = None

    def start(self) -> None:
        """Listen. Raises BadConfig or Unavailable."""
        self.clients.start()
        if self._config.tls and not self._config.listen.dial_only:
            self._trusted = self._peers.roots()
            self.for_peers = self._peer_listener(self._config.listen.peer_port).start()

    def trust_new_peers(self) -> None:
        """Start the peers' listener again if other certificates are trusted now."""
        with self._lock:
            roots = self._peers.roots()
            old = self.for_peers
            if old is None or self._stopped or roots == self._trusted:
                return
            port = old.port
            if not old.shutdown(self._config.node.grace_s):
                raise Unavailable("the peers' listener did not end: new peers are let in after a restart")
            self._trusted = roots
            self.for_peers = self._peer_listener(port).start()
            log.info("peers' listener restarted", trusted=len(roots))

    def drain(self) -> None:
        """Take no new calls."""
        for listener in self._all():
            listener.drain()

    def shutdown(self, grace_s: float) -> bool:
        """End both within the grace time; False when a call could not be ended."""
        with self._lock:
            self._stopped = True
        results: list[bool] = []
        threads = [
            threading.Thread(target=lambda one=one: results.append(one.shutdown(grace_s))) for one in self._all()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return all(results)

    def _all(self) -> list[FlightListener]:
        return [self.clients, *([self.for_peers] if self.for_peers else [])]

    def _peer_listener(self, port: int) -> FlightListener:
        roots = b"".join([self._identity.certificate, *self._trusted.values()])
        tls = Tls(self._identity.certificate, self._identity.tls_key, client_roots=roots)
        return self._listener(by_certificate(self._access), port, tls)

    def _listener(self, identify: Identify, port: int, tls: Tls | None) -> FlightListener:
        return FlightListener(
            self._ports,
            identify,
            host=self._config.listen.host,
            port=port,
            tls=tls,
            limits=flight_limits(self._config),
            tickets=self._tickets,
            observe=self._observe,
        )


def open_or_token(access: Access) -> Identify:
    """On an open listener everyone may call; a token, where one is sent, must be genuine and counts."""

    def identify(context: Any, token: str | None) -> Principal:
        return anyone(context, token) if token is None else access.authenticate_token(token)

    return identify


def flight_limits(config: NodeConfig) -> Limits:
    """The configuration's limits as Flight's."""
    limits = config.limits
    return Limits(
        streams=limits.streams,
        streams_per_identity=limits.streams_per_identity,
        ticket_ttl=config.security.ticket_ttl_s,
        idle_timeout=limits.idle_timeout_s,
        put_bytes=limits.request_mb * MIB,
        put_rows=limits.rows_per_put,
        batch_bytes=min(64, limits.request_mb) * MIB,
    )
