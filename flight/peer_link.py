"""The calling side of a sync: one do_exchange to a peer over mutual TLS, as a transport of messages.

Both ends prove themselves: the server's certificate must be the pinned one, ours is checked by the server.
"""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import AiosError
from aios_node.flight.dialing import Pem, dial
from aios_node.flight.errors import from_flight
from aios_node.flight.limits import MIB
from aios_node.flight.transport import SYNC_SCHEMA, Message, StreamTransport, from_chunk, to_batch

_LINGER = 5.0  # seconds that the peer has for its last words after we closed


class PeerLink:
    """An open sync stream to a peer. A ``SyncTransport``; close it, or use it with ``with``."""

    def __init__(
        self,
        uri: str,
        *,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        hostname: str | None = "aios-node",
        idle_timeout: float = 120.0,
        message_bytes: int = MIB,
    ) -> None:
        """``ca`` is the peer's pinned certificate; without any certificate the link is plain (tests, loopback).

        Raises ``BadConfig``; that a peer cannot be reached shows in the first ``send`` or ``receive``.
        """
        tls = ca is not None or cert is not None
        self._client = dial(uri, ca=ca, cert=cert, key=key, hostname=hostname if tls else None)
        self._idle_timeout = idle_timeout
        self._closing = threading.Event()
        self._pipe = _ClientPipe(uri, self._client)
        self._transport = StreamTransport(self._pipe, message_bytes)
        self._watch = threading.Thread(target=self._watch_sending, name="sync-watch", daemon=True)
        self._watch.start()

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        """Send one message; broken off when the peer takes nothing for the idle timeout."""
        self._transport.send(meta, data)

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None at the peer's end. Raises ``TimeoutError`` after ``timeout`` seconds."""
        return self._transport.receive(self._idle_timeout if timeout is None else timeout)

    def close(self) -> None:
        """End the stream: politely, then by cancelling it. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._transport.close()
        ended = self._transport.drain(_LINGER)
        if not ended:
            self._transport.cancel()
            ended = self._transport.drain(_LINGER)
        if ended:
            self._pipe.dispose()
        self._watch.join()
        self._client.close()

    def _watch_sending(self) -> None:
        while not self._closing.wait(self._idle_timeout / 4):
            if self._transport.sending_for >= self._idle_timeout:
                self._transport.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ClientPipe:
    """The calling end of an exchange."""

    def __init__(self, uri: str, client: Any) -> None:
        self._uri = uri
        self._writing = threading.Lock()
        try:
            self._writer, self._reader = client.do_exchange(fl.FlightDescriptor.for_path("sync"))
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            client.close()
            raise from_flight(error, uri) from None
        try:
            self._writer.begin(SYNC_SCHEMA)
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            self.dispose()
            client.close()
            raise from_flight(error, uri) from None

    def read(self) -> Message | None:
        try:
            return from_chunk(self._reader.read_chunk())
        except StopIteration:
            self._finish_call()
            return None
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            raise from_flight(error, self._uri) from None

    def _finish_call(self) -> None:
        """Ask how the call ended: where a write noticed it first, the reader sees a plain end."""
        with self._writing:
            try:
                self._writer.close()
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                raise from_flight(error, self._uri) from None

    def write(self, meta: bytes, data: bytes | memoryview | None) -> None:
        with self._writing:
            try:
                if data is None:
                    self._writer.write_metadata(meta)
                else:
                    self._writer.write_with_metadata(to_batch(data), meta)
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                raise from_flight(error, self._uri) from None

    def finish(self) -> None:
        with self._writing:
            try:
                self._writer.done_writing()
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                raise from_flight(error, self._uri) from None

    def cancel(self) -> None:
        self._reader.cancel()

    def dispose(self) -> None:
        """Once nobody reads: end the call here, or Arrow prints how it ended when it is collected."""
        with contextlib.suppress(AiosError):  # receive and send have told
            self._finish_call()
