"""One call from its first header to its end: caller, resources to give back, and whose turn it is.

pyarrow tells only middleware when a call has ended (``call_completed``), also for streams that C++ sends
and for clients that vanished. So the middleware object is the call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow.flight as fl

from aios_node.engine.errors import Busy
from aios_node.flight import auth
from aios_node.flight.errors import from_flight, to_flight
from aios_node.flight.limits import Limits
from aios_node.flight.ports import Principal

log = logging.getLogger("aios_node.flight")

KEY = "aios"  # under which handlers find their call


@dataclass(frozen=True)
class CallRecord:
    """A finished call, for metrics and logs."""

    method: str  # do_get, ...
    principal: Principal | None
    seconds: float
    code: str  # "ok" or an error code; a stream whose client vanished may count as ok


class Call(fl.ServerMiddleware):  # type: ignore[misc]  # pyarrow is untyped
    """The state of one running call. Handlers set it up; the watchdog and shutdown read it."""

    def __init__(self, method: str, token: str | None, registry: CallRegistry) -> None:
        super().__init__()
        self.method = method
        self.token = token
        self.principal: Principal | None = None
        self.peer = ""  # gRPC's name of the connection, such as ipv4:127.0.0.1:40112
        self.moves = 0  # grows whenever the client's turn ends
        self._registry = registry
        self._resources = ExitStack()
        self._waiting = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()

    @property
    def waits_for_client(self) -> bool:
        """True when the server has nothing to compute: the network or the client must move."""
        return self._waiting > 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around reading from or writing to the client."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                self.moves += 1

    def hand_over(self) -> None:
        """The handler is done; what remains is for C++ to send."""
        with self._lock:
            self._waiting += 1

    def on_end(self, callback: Callable[[], object]) -> None:
        """Run ``callback`` when the call has ended, last registered first."""
        self._resources.callback(callback)

    def keep(self, context: Any) -> Any:
        """Enter a context manager until the call has ended."""
        return self._resources.enter_context(context)

    def call_completed(self, exception: Exception | None) -> None:
        """Flight's notice that the call is over, for whatever reason."""
        try:
            self._resources.close()
        except Exception:
            log.exception("resources of a finished %s call could not be given back", self.method)
        code = "ok" if exception is None else from_flight(exception, "").code
        seconds = time.monotonic() - self._started
        self._registry.ended(self, CallRecord(self.method, self.principal, seconds, code))


class CallRegistry:
    """All calls that run now on one listener. Thread-safe."""

    def __init__(self, observe: Callable[[CallRecord], None] | None = None) -> None:
        self._observe = observe
        self._lock = threading.Condition()
        self._running: set[Call] = set()

    def began(self, call: Call, limit: int) -> None:
        """Count a call in. Raises ``Busy`` when ``limit`` calls run already."""
        with self._lock:
            if len(self._running) >= limit:
                raise Busy(f"this node already serves {limit} calls: try again shortly", retry_after_s=1.0)
            self._running.add(call)

    def ended(self, call: Call, record: CallRecord) -> None:
        """Report a call and count it out."""
        try:
            if self._observe is not None:
                self._observe(record)
        except Exception:
            log.exception("the observer of finished calls failed")
        with self._lock:
            self._running.discard(call)
            self._lock.notify_all()

    def running(self) -> list[Call]:
        """The calls that run now."""
        with self._lock:
            return list(self._running)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no call runs; False when some still do after ``timeout`` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._running, timeout)


class CallFactory(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow is untyped
    """Makes the ``Call`` of each call. Sees headers only: identities come later, in the handler."""

    def __init__(self, registry: CallRegistry, limits: Limits) -> None:
        super().__init__()
        self._registry = registry
        self._limits = limits

    def start_call(self, info: Any, headers: dict[str, list[str | bytes]]) -> Call:
        """Flight's notice that a call begins."""
        method = str(info.method).rpartition(".")[2].lower()
        try:
            token = auth.bearer_token(headers, self._limits.token_bytes)
            call = Call(method, token, self._registry)
            self._registry.began(call, self._limits.calls)
        except Exception as exc:
            raise to_flight(exc, method) from None
        return call
