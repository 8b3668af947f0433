"""The accepting side of a sync: one do_exchange of a peer, handed to the node as a transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import TransferAborted, Unauthorized
from aios_node.flight.calls import Call
from aios_node.flight.limits import Limits
from aios_node.flight.ports import SyncPort
from aios_node.flight.transport import END, SYNC_SCHEMA, Message, StreamTransport, from_chunk, to_batch


def sync(
    port: SyncPort,
    context: Any,
    reader: Any,
    writer: Any,
    call: Call,
    limits: Limits,
    cut: Callable[[], object],
) -> None:
    """Hand an accepted sync stream to the node; ``cut`` breaks the connection.

    For peers, and for everyone on an open listener (loopback). Raises ``Unauthorized`` for others.
    """
    principal = call.principal
    if principal is None or principal.kind not in {"peer", "open"}:
        raise Unauthorized("sync is for peers: connect to the peers' listener with a trusted certificate")
    pipe = _ServerPipe(context, reader, writer, call, cut)
    transport = StreamTransport(pipe, limits.sync_message_bytes, turn=call.waiting)
    try:
        port.exchange(principal, transport)
    finally:
        try:
            transport.close()
        finally:
            transport.drain()  # whatever happens: the reading thread must not outlive this call


class _ServerPipe:
    """The accepting end of an exchange."""

    def __init__(self, context: Any, reader: Any, writer: Any, call: Call, cut: Callable[[], object]) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer
        self._call = call
        self._cut = cut
        self._begun = False

    def read(self) -> Message | None:
        try:
            return from_chunk(self._reader.read_chunk())
        except StopIteration:
            if self._context.is_cancelled():
                raise TransferAborted("the peer vanished in the middle of the sync") from None
            return None
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            raise TransferAborted(f"the sync stream broke: {type(error).__name__}") from None

    def write(self, meta: bytes, data: bytes | memoryview | None) -> None:
        with self._call.waiting():
            try:
                if not self._begun:
                    self._writer.begin(SYNC_SCHEMA)
                    self._begun = True
                if data is None:
                    self._writer.write_metadata(meta)
                else:
                    self._writer.write_with_metadata(to_batch(data), meta)
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                raise TransferAborted(f"the peer ended the sync stream: {type(error).__name__}") from None

    def finish(self) -> None:
        self.write(END, None)

    def cancel(self) -> None:
        self._cut()
