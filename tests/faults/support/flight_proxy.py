"""A node in between that loses, repeats, swaps, damages, delays and cuts messages. It speaks Flight.

To the caller it is a Flight server, to the node behind it a client, so that faults hit single messages: under TLS
a flipped bit on the wire is only a disconnect. With the keys of both nodes it terminates mutual TLS on either side.
What happens to a message follows from the plan alone, which sees the number of the stream, the direction and the
number of the message in it, never a clock.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import AiosError
from aios_node.flight import connections
from aios_node.flight.dialing import dial
from aios_node.flight.transport import SYNC_SCHEMA, from_chunk, to_batch

BROKEN = (fl.FlightError, pa.ArrowException, OSError, AiosError)
_JOIN_S = 30.0


class Fault(Enum):
    """What may happen to a message, or from a message on."""

    DROP = "dropped"
    DUPLICATE = "sent twice"
    SWAP = "swapped with the next"
    FLIP_METADATA = "a bit of its metadata flipped"
    FLIP_DATA = "a bit of its data flipped"
    DELAY = "delayed"
    END = "the stream ended politely before it (to the node behind only)"
    CUT = "the connection cut before it"
    STALL = "this and all later messages held back"


class Way(Enum):
    """Which way a message goes."""

    OUT = "to the node behind"
    BACK = "to the caller"


@dataclass(frozen=True)
class Place:
    """A message: of which stream since the proxy began, which way, and the how many-th there."""

    stream: int
    way: Way
    message: int


@dataclass(frozen=True)
class Hit:
    """What a plan does to one message. ``amount``: seconds of a delay, or the number of the bit that is flipped."""

    fault: Fault
    amount: float = 0.0


Plan = Callable[[Place], Hit | None]
Message = tuple[bytes, bytes | None]


@dataclass(frozen=True)
class Keys:
    """Who the proxy is on either side: the certificate and key of the node behind, and those of the caller."""

    behind_certificate: bytes
    behind_key: bytes
    caller_certificate: bytes
    caller_key: bytes


class FlightProxy(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow is untyped
    """Stands for the node at ``target``. ``hits`` lists what was done, in the order in which it was."""

    def __init__(self, target: Callable[[], str], plan: Plan, *, keys: Keys | None = None, hostname: str = "") -> None:
        self.hits: list[tuple[Place, Fault]] = []
        self.streams = 0
        self.pace: Callable[[int], None] = lambda _count: None  # told how many bytes pass, may wait
        self.plan = plan
        self._target, self._keys, self._hostname = target, keys, hostname
        self._lock = threading.Lock()
        self._ending = threading.Event()
        super().__init__(f"grpc{'+tls' if keys else ''}://127.0.0.1:0", **_server_options(keys))

    @property
    def uri(self) -> str:
        return f"grpc{'+tls' if self._keys else ''}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End, with whatever still runs cut off."""
        self._ending.set()
        connections.cut(self.port)
        self.shutdown()

    # ---- what Flight calls

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """Passed on as it is."""
        with self._dialled() as client:
            try:
                yield from [result.body for result in client.do_action(action)]
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                raise fl.FlightUnavailableError(str(error)) from None

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Two lines, one each way; both have ended when this returns."""
        with self._lock:
            number = self.streams
            self.streams += 1
        address = connections.parse_peer(context.peer())
        with self._dialled() as client:
            try:
                forth, back = client.do_exchange(descriptor)
                forth.begin(SYNC_SCHEMA)
                writer.begin(SYNC_SCHEMA)
            except BROKEN:
                raise fl.FlightUnavailableError("the node behind the proxy cannot be reached") from None
            stream = _Stream(self, number, lambda: (back.cancel(), connections.cut(self.port, {address})))
            out = _Line(stream, Way.OUT, reader, forth, forth.done_writing)
            home = _Line(stream, Way.BACK, back, writer, lambda: None)
            thread = threading.Thread(target=out.run, name="proxy-out", daemon=True)
            thread.start()
            home.run()
            if not stream.ended_politely:
                stream.cut()
            thread.join(_JOIN_S)
            with contextlib.suppress(*BROKEN):
                forth.close()

    @contextlib.contextmanager
    def _dialled(self) -> Iterator[Any]:
        keys = self._keys
        given = {"ca": keys.behind_certificate, "cert": keys.caller_certificate, "key": keys.caller_key} if keys else {}
        client = dial(self._target(), hostname=self._hostname or None, **given)
        try:
            yield client
        finally:
            client.close()

    def note(self, place: Place, fault: Fault) -> None:
        with self._lock:
            self.hits.append((place, fault))

    def wait(self, seconds: float) -> None:
        """Hold a message back; returns early when the proxy ends."""
        self._ending.wait(seconds)


class _Stream:
    """What the two lines of an exchange share."""

    def __init__(self, proxy: FlightProxy, number: int, cut: Callable[[], object]) -> None:
        self.proxy, self.number = proxy, number
        self.ended_politely = False
        self.over = threading.Event()
        self._cut = cut

    def cut(self) -> None:
        """Break both connections."""
        self.over.set()
        with contextlib.suppress(*BROKEN):
            self._cut()


class _Line:
    """One direction of an exchange."""

    def __init__(self, stream: _Stream, way: Way, reader: Any, writer: Any, finish: Callable[[], object]) -> None:
        self._stream, self._way = stream, way
        self._reader, self._writer, self._finish = reader, writer, finish
        self._held: Message | None = None  # waits for the next message to overtake it
        self._count = 0

    def run(self) -> None:
        """Pass messages on until either side ends, or a fault does."""
        try:
            while (message := self._read()) is not None:
                if not self._pass(message):
                    return
            self._flush()
            self._finish()
            if self._way is Way.BACK:
                self._stream.ended_politely = True
        except BROKEN:
            self._stream.cut()

    def _read(self) -> Message | None:
        try:
            return from_chunk(self._reader.read_chunk())
        except StopIteration:
            return None

    def _pass(self, message: Message) -> bool:
        """Do to one message what the plan says; False when the line is dead from here on."""
        place = Place(self._stream.number, self._way, self._count)
        self._count += 1
        hit = self._stream.proxy.plan(place)
        if hit is None:
            self._send(message)
            self._flush()
            return True
        self._stream.proxy.note(place, hit.fault)
        return self._suffer(message, hit)

    def _suffer(self, message: Message, hit: Hit) -> bool:
        match hit.fault:
            case Fault.DROP:
                return True
            case Fault.SWAP if self._held is None:
                self._held = message
                return True
            case Fault.DELAY:
                self._stream.proxy.wait(hit.amount)
            case Fault.END:
                self._finish()
                return self._swallow()
            case Fault.CUT:
                self._stream.cut()
                return False
            case Fault.STALL:
                self._swallow()
                self._stream.cut()  # whoever stalls takes his connection along in the end
                return False
            case Fault.DUPLICATE:
                self._send(message)
        self._send(damaged(message, hit))
        self._flush()
        return True

    def _swallow(self) -> bool:
        """Read on, so that the other side is not held up, and pass nothing on."""
        while self._read() is not None:
            pass
        return False

    def _flush(self) -> None:
        if self._held is not None:
            message, self._held = self._held, None
            self._send(message)

    def _send(self, message: Message) -> None:
        meta, data = message
        self._stream.proxy.pace(len(meta) + len(data or b""))
        if data is None:
            self._writer.write_metadata(meta)
        else:
            self._writer.write_with_metadata(to_batch(data), meta)


def damaged(message: Message, hit: Hit) -> Message:
    """The message with one bit of its metadata or data flipped, where that is the fault."""
    meta, data = message
    if hit.fault is Fault.FLIP_DATA and data:
        return meta, flipped(data, int(hit.amount))
    if hit.fault in {Fault.FLIP_METADATA, Fault.FLIP_DATA} and meta:
        return flipped(meta, int(hit.amount)), data
    return message


def flipped(data: bytes, bit: int) -> bytes:
    """A copy with one bit flipped; ``bit`` counts around."""
    place, which = divmod(bit % (8 * len(data)), 8)
    return data[:place] + bytes([data[place] ^ 1 << which]) + data[place + 1 :]


def _server_options(keys: Keys | None) -> dict[str, Any]:
    if keys is None:
        return {}
    return {
        "tls_certificates": [(keys.behind_certificate, keys.behind_key)],
        "verify_client": True,
        "root_certificates": keys.caller_certificate,
    }


def slow(bytes_per_s: float) -> Callable[[int], None]:
    """A pace: so many bytes a second over all streams."""
    lock = threading.Lock()

    def pass_on(count: int) -> None:
        with lock:
            time.sleep(count / bytes_per_s)

    return pass_on
