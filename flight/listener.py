"""One listening Flight server: where it listens, how it drains, and how it ends even when clients do not.

A process may have several (clients, peers), sharing ports and ticket signer. gRPC reads certificates only
when a listener starts: to trust a new peer, shut the listener down and start another on the same port.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import BadConfig, Unavailable
from aios_node.flight import connections
from aios_node.flight.auth import Identify
from aios_node.flight.calls import KEY, CallFactory, CallRecord, CallRegistry
from aios_node.flight.errors import clip
from aios_node.flight.limits import Limits
from aios_node.flight.ports import Ports
from aios_node.flight.server import FlightService
from aios_node.flight.tickets import TicketSigner
from aios_node.flight.watchdog import Watchdog

log = logging.getLogger("aios_node.flight")

_AFTER_CUT = 5.0  # seconds for gRPC to notice that its connections are gone


@dataclass(frozen=True)
class Tls:
    """PEM texts. With ``client_roots`` (certificates, one after the other) clients must present one of them."""

    certificate: bytes
    key: bytes
    client_roots: bytes | None = None


class FlightListener:
    """A Flight server on one address. Use ``start``, ``drain``, ``shutdown``; or ``with``."""

    def __init__(
        self,
        ports: Ports,
        identify: Identify,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls | None = None,
        limits: Limits | None = None,
        tickets: TicketSigner | None = None,
        observe: Callable[[CallRecord], None] | None = None,
    ) -> None:
        self._ports = ports
        self._identify = identify
        self._host = host
        self._port = port
        self._tls = tls
        self._limits = limits or Limits()
        self._tickets = tickets or TicketSigner()
        self._registry = CallRegistry(observe)
        self._watchdog = Watchdog(self._registry, self._limits.idle_timeout)
        self._service: FlightService | None = None
        self._bound_port = 0
        self._ending: threading.Thread | None = None

    def start(self) -> Self:
        """Listen. Raises ``BadConfig`` for an address that cannot be used, ``Unavailable`` for a port in use."""
        check_address(self._host, self._port)
        options: dict[str, Any] = {}
        if self._tls is not None:
            options["tls_certificates"] = [(self._tls.certificate, self._tls.key)]
            if self._tls.client_roots is not None:
                options["verify_client"] = True
                options["root_certificates"] = self._tls.client_roots
        factory = CallFactory(self._registry, self._limits)
        try:
            self._service = FlightService(
                self._ports,
                self._identify,
                self._limits,
                self._tickets,
                location=self._location(self._port),
                middleware={KEY: factory},
                **options,
            )
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            what = f"cannot listen on {self._host}:{self._port}"
            if self._tls is not None:
                raise BadConfig(f"{what}: check certificate and key ({clip(str(error), 300)})") from None
            raise Unavailable(f"{what}: {clip(str(error), 300)}") from None
        self._bound_port = int(self._service.port)
        self._watchdog.start(self._bound_port)
        return self

    @property
    def host(self) -> str:
        """The host this listener was told to use."""
        return self._host

    @property
    def port(self) -> int:
        """The port it listens on; 0 before ``start``."""
        return self._bound_port

    @property
    def uri(self) -> str:
        """Where clients reach it: ``grpc://HOST:PORT``, or ``grpc+tls://`` under TLS."""
        return self._location(self._bound_port)

    @property
    def running_calls(self) -> int:
        """Calls that run now."""
        return len(self._registry.running())

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no call runs; False when some still do after ``timeout`` seconds."""
        return self._registry.wait_idle(timeout)

    def _location(self, port: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'grpc' if self._tls is None else 'grpc+tls'}://{host}:{port}"

    def drain(self) -> None:
        """Refuse new calls with ``Unavailable``; running ones go on."""
        if self._service is not None:
            self._service.drain()

    def shutdown(self, grace: float = 10.0) -> bool:
        """Drain, give running calls ``grace`` seconds, then cut their connections.

        Returns True when everything has ended and the port is free; False when a handler is still inside
        a port's method (nothing can end that but the process). Never takes much longer than ``grace``.
        Idempotent: a later call waits again.
        """
        service = self._service
        if service is None:
            return True
        service.drain()
        deadline = time.monotonic() + grace
        if self._ending is None:
            self._ending = threading.Thread(target=service.shutdown, name="flight-shutdown", daemon=True)
            self._ending.start()
        self._ending.join(max(0.0, deadline - time.monotonic()))
        if self._ending.is_alive():
            self._cut_all()
            self._ending.join(_AFTER_CUT)
        if self._ending.is_alive():
            methods = sorted(call.method for call in self._registry.running())
            log.error("the listener on %s did not end; still running: %s", self.uri, ", ".join(methods))
            return False
        self._watchdog.stop()
        self._service = None
        return True

    def _cut_all(self) -> None:
        count = connections.cut(self._bound_port)
        log.warning("cut %d connections: calls were still running at the end of the grace time", count)

    def __enter__(self) -> Self:
        return self if self._service is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(grace=5.0)


def check_address(host: str, port: int) -> None:
    """Find out whether one can listen there, before gRPC tries and prints. Closes again at once.

    Raises ``BadConfig`` for a host or port that cannot be used here, ``Unavailable`` for a port in use.
    """
    if not 0 <= port <= 65535:
        raise BadConfig(f"port {port} is not between 0 and 65535")
    try:
        found = socket.getaddrinfo(host or "(none)", port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise BadConfig(f"cannot listen on {host!r}: no such host; give an address of this machine") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: TIME_WAIT is no obstacle
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                raise _refused(host, port, error) from None


def _refused(host: str, port: int, error: OSError) -> BadConfig | Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"port {port} on {host} is in use: stop the program that uses it, or take port 0")
    if error.errno == errno.EACCES:
        return BadConfig(f"port {port} needs more rights than this user has: take one above 1023")
    return BadConfig(f"cannot listen on {host!r}: it is no address of this machine ({error.strerror})")
