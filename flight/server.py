"""The Flight service: each method finds out who calls and what for, checks the right, and calls a port.

Holds no policy and no data. Every method and every generator it returns lets only Flight errors out.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow.flight as fl

from aios_node.engine.errors import BadRequest, Unauthorized, Unavailable
from aios_node.flight import actions, batches, connections, exchange, puts, sync
from aios_node.flight.auth import Identify
from aios_node.flight.calls import KEY, Call
from aios_node.flight.descriptors import (
    EncodeTarget,
    MemoryTarget,
    SearchTarget,
    SyncTarget,
    WeightsTarget,
    parse_descriptor,
)
from aios_node.flight.errors import for_get_schema, guarded, to_flight
from aios_node.flight.limits import Limits, StreamGovernor, require_size
from aios_node.flight.listings import Catalog
from aios_node.flight.ports import Ports, Principal, Right
from aios_node.flight.tickets import TicketSigner

Method = TypeVar("Method", bound=Callable[..., Any])


def only_flight_errors(method: Method) -> Method:
    """Turn whatever a method raises into a Flight error; pyarrow would send a traceback."""

    @functools.wraps(method)
    def wrapped(self: Any, context: Any, *args: Any) -> Any:
        try:
            return method(self, context, *args)
        except BaseException as exc:  # a SystemExit in a port must not reach gRPC's thread either
            raise to_flight(exc, method.__name__) from None

    return wrapped  # type: ignore[return-value]  # same signature, which functools.wraps cannot say


class FlightService(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow is untyped
    """One listener's service. ``FlightListener`` gives it its address and its life."""

    def __init__(
        self,
        ports: Ports,
        identify: Identify,
        limits: Limits,
        tickets: TicketSigner,
        **flight: Any,
    ) -> None:
        self._ports = ports
        self._identify = identify
        self._limits = limits
        self._governor = StreamGovernor(limits.streams, limits.streams_per_identity, limits.retry_after)
        self._catalog = Catalog(ports, limits, tickets)
        self._draining = threading.Event()
        super().__init__(**flight)

    def drain(self) -> None:
        """Refuse new calls from now on; those that run go on."""
        self._draining.set()

    # ---- who calls, and what they may do

    def _enter(self, context: Any, *, always: bool = False) -> Call:
        """The call of this context, with its caller identified. ``always``: also while draining."""
        call: Call = context.get_middleware(KEY)
        call.peer = context.peer()
        call.principal = self._identify(context, call.token)
        if self._draining.is_set() and not always:
            raise Unavailable(
                "this node is shutting down: try again, or ask another node",
                retry_after_s=self._limits.retry_after,
            )
        return call

    def _stream(self, context: Any) -> Call:
        """The same for a call that may take long: it takes one of the caller's places."""
        call = self._enter(context)
        self._count(call)
        return call

    def _count(self, call: Call) -> None:
        principal = _principal(call)
        host, _, _ = call.peer.rpartition(":")
        name = host if principal.kind == "open" else principal.name
        call.on_end(self._governor.enter(f"{principal.kind}:{name}"))

    def _check(self, call: Call, right: Right, resource: str) -> None:
        self._ports.access.check(_principal(call), right, resource)

    # ---- finding out what there is

    @only_flight_errors
    def list_flights(self, context: Any, criteria: bytes) -> list[Any]:
        """All models and tables the caller may read whose path begins with ``criteria``."""
        call = self._enter(context)
        require_size(len(criteria), 1024, "the criteria (bytes)")
        prefix = criteria.decode("utf-8", "replace")

        def readable(resource: str) -> bool:
            try:
                self._check(call, "read", resource)
            except Unauthorized:
                return False
            return True

        return self._catalog.flights(prefix, readable)

    @only_flight_errors
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """Schema, totals and tickets of weights, a table or a search."""
        call = self._enter(context)
        target = parse_descriptor(descriptor, self._limits)
        self._check(call, "read", _resource(target))
        return self._catalog.info(target, descriptor)

    def get_schema(self, context: Any, descriptor: Any) -> Any:
        """The schema that ``do_get`` of the same descriptor yields."""
        try:
            return self._get_schema(context, descriptor)
        except fl.FlightError as error:
            raise for_get_schema(error, context) from None

    @only_flight_errors
    def _get_schema(self, context: Any, descriptor: Any) -> Any:
        call = self._enter(context)
        target = parse_descriptor(descriptor, self._limits)
        self._check(call, "read", _resource(target))
        return fl.SchemaResult(self._catalog.schema(target))

    # ---- streams

    @only_flight_errors
    def do_get(self, context: Any, ticket: Any) -> Any:
        """The data behind a ticket."""
        call = self._stream(context)
        target, file = self._catalog.redeem(ticket.ticket)
        self._check(call, "read", _resource(target))
        if isinstance(target, WeightsTarget):
            return batches.stream(self._catalog.shard(target, file, call), call)
        if isinstance(target, MemoryTarget):
            return batches.stream(self._ports.memory.scan(target.table), call)
        request = target.request
        (result,) = self._ports.memory.search([request], _principal(call))
        end = json.dumps({"complete": result.complete, "missing": list(result.missing)}).encode()
        return batches.stream_with_end(self._catalog.hits(request, result), end, call)

    @only_flight_errors
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Rows into a memory table; answered when they are durable."""
        call = self._stream(context)
        target = parse_descriptor(descriptor, self._limits)
        if not isinstance(target, MemoryTarget):
            raise BadRequest("rows can be put to memory/<table> only")
        self._check(call, "write", _resource(target))
        rows = puts.read_rows(context, reader, call, self._limits)
        result = self._ports.memory.put(target.table, rows, _principal(call))
        puts.answer(writer, call, {"rows": result.rows, "version": result.version})

    @only_flight_errors
    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Encode, search or sync, both directions at once."""
        call = self._stream(context)
        target = parse_descriptor(descriptor, self._limits, exchange=True)
        if isinstance(target, EncodeTarget):
            if target.model is not None:
                self._check(call, "read", f"encode/{target.model}")
            model = self._ports.compute.encoder(target.model).model
            self._check(call, "read", f"encode/{model}")
            exchange.encode(self._ports.compute, model, reader, writer, call, self._limits)
        elif isinstance(target, SearchTarget):
            self._check(call, "read", _resource(target))
            exchange.search(self._ports.memory, target.request, _principal(call), reader, writer, call, self._limits)
        elif isinstance(target, SyncTarget):
            cut = functools.partial(self._cut, call)
            sync.sync(self._ports.sync, context, reader, writer, call, self._limits, cut)
        else:
            raise BadRequest("exchanges are encode[/<model>], search/<table> and sync")

    def _cut(self, call: Call) -> None:
        address = connections.parse_peer(call.peer)
        if address is not None:
            connections.cut(self.port, {address})

    # ---- actions

    @only_flight_errors
    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """All actions with their arguments and results."""
        self._enter(context)
        return [(action.name, action.description) for action in self._ports.control.actions()]

    @only_flight_errors
    def do_action(self, context: Any, action: Any) -> Iterator[bytes]:
        """Run one action; results stream as they come."""
        name = str(action.type)
        known = {a.name: a for a in self._ports.control.actions()}
        always = name in known and known[name].right is None
        call = self._enter(context, always=always)
        spec = actions.find_action(name, known)
        arguments = actions.parse_arguments(action.body.to_pybytes(), self._limits)
        if spec.right is not None:
            self._count(call)
            self._check(call, spec.right, actions.resource_of(spec, arguments))
        results = self._ports.control.call(name, arguments, _principal(call))
        return guarded(batches.turns(actions.encode_results(results), call), f"action {name}")


def _principal(call: Call) -> Principal:
    if call.principal is None:
        raise RuntimeError("a handler ran before its caller was identified")
    return call.principal


def _resource(target: Any) -> str:
    """What a right to read this target is about."""
    if isinstance(target, WeightsTarget):
        return f"weights/{target.model}"
    if isinstance(target, MemoryTarget):
        return f"memory/{target.table}"
    if isinstance(target, SearchTarget):
        return f"memory/{target.request.table}"
    raise BadRequest("encode, sync and search/<table> are exchanges: use do_exchange")
