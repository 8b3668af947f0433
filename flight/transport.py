"""The sync exchange as a transport of messages, the same for both ends. Knows nothing of what they mean.

A message is one Flight message of a fixed schema: the envelope in ``app_metadata``, its bytes (if any) as
one row. A thread of its own reads, so that both directions flow at once. What it has read waits in a
queue. A full queue stops the reading, and so, through TCP, the other side; but while our own side is itself
blocked in sending, reading goes on up to a hard cap: otherwise two sides that both send would wait for
each other for ever. A peer that sends past that cap ignores the window of the protocol, and the stream breaks.

The accepting side cannot end a call while a thread still reads from it (the C++ stream would be freed under
it), so it says END and reads on until the other side has stopped sending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import pyarrow as pa

from aios_node.engine.errors import AiosError, ProtocolError, TransferAborted
from aios_node.flight.limits import MIB, require_size

SYNC_SCHEMA = pa.schema([pa.field("data", pa.binary())])
"""The one schema of a sync stream; a message with data is a batch of one row."""

END = b"\x00end"
"""Sent by the accepting side as its last message; protocol messages are JSON and never begin with NUL."""

log = logging.getLogger("aios_node.flight")

_END_PATIENCE = 60.0  # seconds for a blocked send to end after the other side said END
_REASON_PATIENCE = 2.0  # seconds for the reader to learn why a write failed
_SOFT_BYTES = 4 * MIB
_HARD_BYTES = 64 * MIB

Message = tuple[bytes, bytes | None]


class Pipe(Protocol):
    """One end of a Flight exchange, reduced to what the transport needs."""

    def read(self) -> Message | None:
        """Block for the next message; None at the end. Raises ``AiosError``."""
        ...

    def write(self, meta: bytes, data: bytes | memoryview | None) -> None:
        """Send one message, blocking. Raises ``AiosError``."""
        ...

    def finish(self) -> None:
        """Say that no more messages come from here."""
        ...

    def cancel(self) -> None:
        """Break the stream off where this side can; blocked reads and writes then end."""
        ...


class StreamTransport:
    """A ``SyncTransport`` over a ``Pipe``. ``turn`` is entered while this side waits for the other."""

    def __init__(
        self,
        pipe: Pipe,
        message_bytes: int,
        *,
        soft: int = _SOFT_BYTES,
        hard: int = _HARD_BYTES,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._pipe = pipe
        self._message_bytes = message_bytes
        self._soft = soft
        self._hard = hard
        self._turn = turn
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._state = threading.Condition()
        self._ended = False  # nothing more will be queued
        self._error: AiosError | None = None
        self._closed = False
        self._sending = threading.Lock()  # held while the pipe writes
        self._sending_since: float | None = None
        self._finished = False  # no more writes; guarded by _sending
        self._reader = threading.Thread(target=self._read_all, name="sync-reader", daemon=True)
        self._reader.start()

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        """Send one message; blocks while the other side is behind."""
        require_size(len(meta), self._message_bytes, "the metadata of a sync message (bytes)")
        if data is not None:
            require_size(len(data), self._message_bytes, "a sync message (bytes)")
        with self._sending:
            self._require_open()
            with self._state:
                self._sending_since = time.monotonic()
                self._state.notify_all()  # a blocked sender opens the intake
            try:
                self._pipe.write(meta, data)
            except AiosError as exc:
                raise self._reason(exc) from None
            finally:
                with self._state:
                    self._sending_since = None

    def _require_open(self) -> None:
        if self._closed:
            raise TransferAborted("this sync stream is closed")
        if self._ended or self._finished:
            # gRPC would accept the message and drop it.
            raise self._reason(TransferAborted("the other side has ended the sync stream"))

    def _reason(self, default: AiosError) -> AiosError:
        """Why the stream ended: the reader learns what the other side said, a failed write does not."""
        with self._state:
            self._state.wait_for(lambda: self._ended, _REASON_PATIENCE)
            return self._error or default

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None when the other side ended the stream. Raises ``TimeoutError``."""
        with self._turn(), self._state:
            if not self._state.wait_for(lambda: self._queue or self._ended or self._closed, timeout):
                raise TimeoutError(f"nothing came in {timeout} s")
            if self._queue:
                message = self._queue.popleft()
                self._queued -= _size(message)
                self._state.notify_all()
                return message
            if self._error is not None:
                raise self._error
            return None

    @property
    def sending_for(self) -> float:
        """Seconds that the current ``send`` has been blocked; 0 when none is."""
        since = self._sending_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End the stream from this side. Idempotent."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._finish(timeout=1.0)

    def drain(self, timeout: float | None = None) -> bool:
        """After ``close``: read on, dropping what comes, until the other side ends; False if it did not."""
        with self._turn():
            self._reader.join(timeout)
        return not self._reader.is_alive()

    def cancel(self) -> None:
        """Break the stream off where this side can."""
        self._pipe.cancel()

    def _finish(self, timeout: float) -> None:
        if not self._sending.acquire(timeout=timeout):
            return  # a send is blocked: whoever watches the stream will break it off
        try:
            if not self._finished:
                self._finished = True
                self._pipe.finish()
        except AiosError:
            return  # it is over anyway
        finally:
            self._sending.release()

    def _read_all(self) -> None:
        error: AiosError | None = None
        try:
            while (message := self._pipe.read()) is not None:
                if message[0] == END:
                    self._finish(timeout=_END_PATIENCE)
                else:
                    self._check(message)
                    self._put(message)
        except AiosError as exc:
            error = exc
        except Exception as exc:
            log.exception("reading a sync stream failed")
            error = TransferAborted(f"the sync stream broke: {type(exc).__name__}")
        with self._state:
            self._ended = True
            self._error = error
            blocked = self._sending_since is not None
            self._state.notify_all()
        if error is not None and blocked:
            self._pipe.cancel()

    def _check(self, message: Message) -> None:
        meta, data = message
        if len(meta) > self._message_bytes or (data is not None and len(data) > self._message_bytes):
            raise ProtocolError(f"the peer sent a sync message of more than {self._message_bytes} bytes")

    def _put(self, message: Message) -> None:
        with self._state:
            self._state.wait_for(self._may_queue)
            if self._closed:
                return
            if self._queued >= self._hard:
                raise ProtocolError("the peer sends without waiting for its window")
            self._queue.append(message)
            self._queued += _size(message)
            self._state.notify_all()

    def _may_queue(self) -> bool:
        return self._closed or self._queued < self._soft or self._sending_since is not None


def _size(message: Message) -> int:
    meta, data = message
    return len(meta) + len(data or b"") + 64


def to_batch(data: bytes | memoryview) -> Any:
    """A message's bytes as the one-row batch of ``SYNC_SCHEMA``, without copying."""
    offsets = pa.py_buffer(bytes(4) + len(data).to_bytes(4, "little"))
    column = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)])
    return pa.RecordBatch.from_arrays([column], schema=SYNC_SCHEMA)


def from_chunk(chunk: Any) -> Message:
    """The message in a chunk that a Flight reader returned. Raises ``ProtocolError``."""
    meta = chunk.app_metadata.to_pybytes() if chunk.app_metadata is not None else b""
    batch = chunk.data
    if batch is None:
        return meta, None
    try:
        batch.validate(full=True)
    except pa.ArrowException:
        raise ProtocolError("the peer sent a damaged batch") from None
    if batch.schema != SYNC_SCHEMA or batch.num_rows != 1 or batch.column(0).null_count:
        raise ProtocolError("the peer sent a batch that is no sync message")
    return meta, batch.column(0)[0].as_buffer().to_pybytes()
