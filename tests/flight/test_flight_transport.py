"""The message transport alone, over a pipe in memory with a bounded buffer."""

from __future__ import annotations

import queue
import threading

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import AiosError, ProtocolError, TooLarge, TransferAborted
from aios_node.flight.transport import END, SYNC_SCHEMA, Message, StreamTransport, from_chunk, to_batch


class MemoryPipe:
    """One end of a pair of bounded queues; ``None`` in a queue is the end of the stream."""

    def __init__(self, incoming: queue.Queue, outgoing: queue.Queue, *, calling: bool) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._calling = calling
        self.broken = threading.Event()

    def read(self) -> Message | None:
        while not self.broken.is_set():
            try:
                item = self._incoming.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(item, AiosError):
                raise item
            return item
        raise TransferAborted("broken off")

    def write(self, meta: bytes, data: bytes | memoryview | None) -> None:
        self._put((meta, None if data is None else bytes(data)))

    def finish(self) -> None:
        self._put(None if self._calling else (END, None))

    def cancel(self) -> None:
        self.broken.set()

    def _put(self, item: object) -> None:
        while not self.broken.is_set():
            try:
                self._outgoing.put(item, timeout=0.01)
            except queue.Full:
                continue
            return
        raise TransferAborted("broken off")


def pair(size: int = 4, **options: int) -> tuple[StreamTransport, StreamTransport]:
    there, back = queue.Queue(size), queue.Queue(size)
    caller = MemoryPipe(back, there, calling=True)
    accepter = MemoryPipe(there, back, calling=False)
    return StreamTransport(caller, 1000, **options), StreamTransport(accepter, 1000, **options)


def end(caller: StreamTransport, accepter: StreamTransport) -> None:
    caller.close()
    accepter.close()
    assert accepter.drain(60)
    accepter._pipe._outgoing.put(None)  # what gRPC does when the handler returns
    assert caller.drain(60)


messages = st.lists(st.tuples(st.binary(min_size=1, max_size=20).filter(lambda m: m != END), st.none() | st.binary()))


@given(messages, messages)
def test_both_directions_arrive_in_order(there: list[Message], back: list[Message]) -> None:
    caller, accepter = pair(soft=200)
    received: dict[str, list] = {"caller": [], "accepter": []}

    def drive(name: str, own: StreamTransport, out: list[Message], expected: int) -> None:
        for message in out:
            own.send(*message)
        for _ in range(expected):
            received[name].append(own.receive(60))

    threads = [
        threading.Thread(target=drive, args=("caller", caller, there, len(back))),
        threading.Thread(target=drive, args=("accepter", accepter, back, len(there))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert received == {"caller": back, "accepter": there}
    end(caller, accepter)


def test_two_sides_that_both_send_first_do_not_wait_for_each_other() -> None:
    """Far more than queues and buffers hold, from both sides at once, before anyone receives."""
    caller, accepter = pair(size=2, soft=100)
    count = 300

    def send_all(own: StreamTransport) -> None:
        for number in range(count):
            own.send(b"%d" % number, b"x" * 100)

    threads = [threading.Thread(target=send_all, args=(own,)) for own in (caller, accepter)]
    for thread in threads:
        thread.start()
    for own in (caller, accepter):
        assert [own.receive(60) for _ in range(count)] == [(b"%d" % n, b"x" * 100) for n in range(count)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    end(caller, accepter)


def test_a_peer_that_ignores_the_window_is_cut_off() -> None:
    """We are blocked in sending, and the other side only sends."""
    there, back = queue.Queue(1), queue.Queue()
    transport = StreamTransport(MemoryPipe(back, there, calling=False), 1000, soft=500, hard=5000)
    there.put(("blocks", None))
    for number in range(200):
        back.put((b"%d" % number, b"x" * 100))
    with pytest.raises(ProtocolError, match="window"):
        transport.send(b"never gets out")
    transport.close()
    assert transport.drain(60)


def test_a_slow_receiver_stops_the_sender() -> None:
    there, back = queue.Queue(1), queue.Queue(1)
    caller = StreamTransport(MemoryPipe(back, there, calling=True), 1000)
    accepter = StreamTransport(MemoryPipe(there, back, calling=False), 1000, soft=500)
    sent = threading.Semaphore(0)

    def send_all() -> None:
        for number in range(50):
            caller.send(b"%d" % number, b"x" * 100)
            sent.release()

    sender = threading.Thread(target=send_all)
    sender.start()
    for _ in range(5):
        assert sent.acquire(timeout=60)
    assert accepter._queued <= 500 + 200
    assert [accepter.receive(60) for _ in range(50)][-1] == (b"49", b"x" * 100)
    sender.join(60)
    end(caller, accepter)


def test_timeouts_leave_the_stream_usable() -> None:
    caller, accepter = pair()
    with pytest.raises(TimeoutError):
        accepter.receive(0.0)
    caller.send(b"late")
    assert accepter.receive(60) == (b"late", None)
    end(caller, accepter)


def test_after_the_end_nothing_can_be_sent() -> None:
    caller, accepter = pair()
    caller.send(b"last")
    caller.close()
    assert accepter.receive(60) == (b"last", None)
    assert accepter.receive(60) is None
    with pytest.raises(TransferAborted, match="other side has ended"):
        accepter.send(b"into the void")
    with pytest.raises(TransferAborted, match="closed"):
        caller.send(b"x")
    end(caller, accepter)


def test_the_accepting_side_ends_first() -> None:
    caller, accepter = pair()
    accepter.send(b"bye")
    accepter.close()
    assert caller.receive(60) == (b"bye", None)
    assert accepter.drain(60)  # the caller heard END and stopped sending by itself
    accepter._pipe._outgoing.put(None)
    assert caller.receive(60) is None


def test_the_reason_of_the_end_reaches_both_calls() -> None:
    there, back = queue.Queue(), queue.Queue()
    transport = StreamTransport(MemoryPipe(back, there, calling=True), 1000)
    back.put(ProtocolError("you broke a rule"))
    with pytest.raises(ProtocolError, match="you broke a rule"):
        transport.receive(60)
    with pytest.raises(ProtocolError, match="you broke a rule"):
        transport.send(b"x")


@pytest.mark.parametrize("message", [(b"x" * 2000, None), (b"x", b"y" * 2000)])
def test_sizes_are_checked_on_both_ends(message: Message) -> None:
    there, back = queue.Queue(), queue.Queue()
    transport = StreamTransport(MemoryPipe(back, there, calling=True), 1000)
    with pytest.raises(TooLarge):
        transport.send(*message)
    back.put(message)
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        transport.receive(60)


class Chunk:
    def __init__(self, data: object, meta: bytes | None) -> None:
        self.data = data
        self.app_metadata = None if meta is None else pa.py_buffer(meta)


@given(st.binary(), st.none() | st.binary())
def test_messages_survive_their_batch(meta: bytes, data: bytes | None) -> None:
    batch = None if data is None else to_batch(data)
    assert from_chunk(Chunk(batch, meta)) == (meta, data)
    if data is not None:
        batch.validate(full=True)
        assert from_chunk(Chunk(to_batch(memoryview(data)), meta)) == (meta, data)


def lying_batch() -> pa.RecordBatch:
    """A batch whose offsets point far behind its data, as a hostile peer could send it."""
    wire = to_batch(b"short").serialize().to_pybytes()
    before, offsets, after = wire.rpartition(b"\0\0\0\0\x05\0\0\0")
    wire = before + b"\0" * 4 + b"\xff\xff\xff\x7f" + after
    assert offsets
    return pa.ipc.read_record_batch(wire, SYNC_SCHEMA)


@pytest.mark.parametrize(
    "batch",
    [
        pa.record_batch({"data": pa.array([b"a", b"b"])}),
        pa.record_batch({"data": pa.array([], pa.binary())}),
        pa.record_batch({"data": pa.array([None], pa.binary())}),
        pa.record_batch({"other": pa.array([b"a"])}),
        lying_batch(),
    ],
)
def test_batches_that_are_no_messages(batch: pa.RecordBatch) -> None:
    with pytest.raises(ProtocolError):
        from_chunk(Chunk(batch, b"{}"))
