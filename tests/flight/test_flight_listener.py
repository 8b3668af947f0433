"""A listener's life: addresses, draining, caps, and an end even when clients do not let go."""

from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_fakes import FakePorts, Serve

from aios_node.engine.errors import BadConfig, Unavailable
from aios_node.flight.calls import CallRecord
from aios_node.flight.limits import Limits
from aios_node.flight.listener import FlightListener, Tls
from aios_node.flight.ports import Action

TABLE = fl.FlightDescriptor.for_path("memory", "notes")
BIG = pa.table({"text": pa.array(["x" * 1000] * 64_000)})  # 64 MB: more than sockets and gRPC buffer


def ticket(client: Any, descriptor: Any = TABLE) -> Any:
    return client.get_flight_info(descriptor).endpoints[0].ticket


def code(error: Exception) -> str:
    return json.loads(error.extra_info)["code"]  # type: ignore[attr-defined]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process is about to make true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        threading.Event().wait(0.01)


# ---- addresses


def test_a_free_port_is_reported(serve: Serve) -> None:
    listener = serve.listener()
    assert listener.port > 0
    assert listener.uri == f"grpc://127.0.0.1:{listener.port}"


def test_a_port_in_use_is_said_before_grpc_speaks(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    taken = serve.listener()
    with pytest.raises(Unavailable, match=f"port {taken.port} on 127.0.0.1 is in use"):
        serve.listener(port=taken.port)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Unavailable, match="in use"):
        serve.listener(port=other.getsockname()[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["localhost", "::1", "0.0.0.0", "::"])
def test_good_hosts(serve: Serve, host: str) -> None:
    listener = serve.listener(host=host)
    assert listener.host == host
    with fl.FlightClient(f"grpc://localhost:{listener.port}") as client:
        assert len(list(client.list_flights())) == 2


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "not an address", ""])
def test_bad_hosts(serve: Serve, host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadConfig, match="cannot listen on"):
        serve.listener(host=host)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("port", [-1, 65536])
def test_bad_ports(serve: Serve, port: int) -> None:
    with pytest.raises(BadConfig, match="between 0 and 65535"):
        serve.listener(port=port)


def test_a_certificate_that_is_none(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadConfig, match="certificate"):
        serve.listener(tls=Tls(b"nonsense", b"nonsense"))
    assert capfd.readouterr() == ("", "")


def test_the_same_port_again_after_shutdown(serve: Serve) -> None:
    first = serve.listener()
    assert len(list(serve.client(first).list_flights())) == 2
    assert first.shutdown() is True
    second = serve.listener(port=first.port)
    assert second.port == first.port
    assert len(list(serve.client(second).list_flights())) == 2


# ---- draining


def test_draining_refuses_new_calls_and_lets_running_ones_end(serve: Serve, fakes: FakePorts) -> None:
    fakes.compute.gate = threading.Event()
    listener = serve.listener(limits=Limits(retry_after=7.0))
    client = serve.client(listener)
    schema = pa.schema([("text", pa.string())])
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("encode"))
    writer.begin(schema)
    writer.write_batch(pa.record_batch([["a"]], schema=schema))
    assert fakes.compute.entered.wait(60)
    listener.drain()
    with pytest.raises(fl.FlightUnavailableError) as caught:
        list(client.list_flights())
    info = json.loads(caught.value.extra_info)
    assert (info["code"], info["retryable"], info["retry_after_s"]) == ("unavailable", True, 7.0)
    assert len(list(client.do_action("health"))) == 1  # health checks still get their answer
    fakes.compute.gate.set()
    assert reader.read_chunk().data.num_rows == 1
    writer.done_writing()
    writer.close()
    assert listener.shutdown(grace=30) is True


# ---- the end


def stalled_get(serve: Serve, fakes: FakePorts, listener: FlightListener) -> Any:
    fakes.memory.rows["notes"] = BIG
    client = serve.client(listener)
    reader = client.do_get(ticket(client))
    reader.read_chunk()
    return reader


def stalled_exchange(serve: Serve, fakes: FakePorts, listener: FlightListener) -> Any:
    pair = serve.client(listener).do_exchange(fl.FlightDescriptor.for_path("encode"))
    pair[0].begin(pa.schema([("text", pa.string())]))
    until(lambda: listener.running_calls > 0)
    return pair


def stalled_put(serve: Serve, fakes: FakePorts, listener: FlightListener) -> Any:
    pair = serve.client(listener).do_put(TABLE, pa.schema([("text", pa.string())]))
    until(lambda: listener.running_calls > 0)
    return pair


def stalled_reader_stream(serve: Serve, fakes: FakePorts, listener: FlightListener) -> Any:
    fakes.memory.scan = lambda name: pa.RecordBatchReader.from_batches(BIG.schema, iter(BIG.to_batches()))
    client = serve.client(listener)
    reader = client.do_get(ticket(client))
    reader.read_chunk()
    return reader


def silent_put(serve: Serve, fakes: FakePorts, listener: FlightListener) -> Any:
    """A stream without even a first message: no handler runs, but a thread of the server waits."""
    channel = grpc.insecure_channel(f"127.0.0.1:{listener.port}")
    put = channel.stream_stream("/arrow.flight.protocol.FlightService/DoPut")
    sending = threading.Event()
    held = put(iter(sending.wait, None))
    until(lambda: listener.running_calls > 0)
    serve.closers += [sending.set, held.cancel, channel.close]
    return held


STALLS = [silent_put, stalled_get, stalled_reader_stream, stalled_exchange, stalled_put]


@pytest.mark.parametrize("stall", STALLS)
def test_shutdown_ends_with_a_stalled_client(serve: Serve, fakes: FakePorts, stall: Callable) -> None:
    listener = serve.listener()
    held = stall(serve, fakes, listener)
    assert listener.running_calls == 1
    assert listener.shutdown(grace=0.2) is True
    assert listener.running_calls == 0
    del held


def test_shutdown_says_when_a_port_never_returns(serve: Serve, fakes: FakePorts, monkeypatch: Any) -> None:
    monkeypatch.setattr("aios_node.flight.listener._AFTER_CUT", 0.2)
    gate, entered = threading.Event(), threading.Event()

    def stuck(args: object) -> Iterator[dict]:
        entered.set()
        gate.wait()
        yield {}

    fakes.control.more["stuck"] = (Action("stuck", "", "admin", "node/stuck"), stuck)
    listener = serve.listener()
    client = serve.client(listener)

    def call() -> None:
        with pytest.raises(fl.FlightError):
            list(client.do_action("stuck"))

    caller = threading.Thread(target=call)
    caller.start()
    assert entered.wait(60)
    assert listener.shutdown(grace=0.1) is False
    gate.set()
    caller.join()
    assert listener.shutdown(grace=30) is True


def test_shutdown_twice_and_before_start(fakes: FakePorts) -> None:
    from aios_node.flight.auth import anyone

    listener = FlightListener(fakes.ports, anyone)
    assert listener.shutdown() is True
    with listener as started:
        assert started.port > 0
    assert listener.shutdown() is True


# ---- idle clients


@pytest.mark.parametrize("stall", STALLS)
def test_a_connection_without_progress_is_cut(serve: Serve, fakes: FakePorts, stall: Callable) -> None:
    listener = serve.listener(limits=Limits(idle_timeout=0.4))
    held = stall(serve, fakes, listener)
    assert listener.wait_idle(60)
    del held


def test_a_slow_handler_is_not_an_idle_client(serve: Serve, fakes: FakePorts) -> None:
    """The watchdog looks many times while the node computes; the call still gets its answer."""
    looks = threading.Semaphore(0)
    listener = serve.listener(limits=Limits(idle_timeout=0.1))
    original = listener._watchdog.look

    def look(port: int) -> int:
        count = original(port)
        looks.release()
        return count

    listener._watchdog.look = look  # type: ignore[method-assign]

    def work(args: object) -> Iterator[dict]:
        for _ in range(12):  # three idle timeouts
            assert looks.acquire(timeout=60)
        yield {"done": True}

    fakes.control.more["work"] = (Action("work", "", "admin", "node/work"), work)
    (result,) = serve.client(listener).do_action("work")
    assert b"done" in result.body.to_pybytes()


# ---- caps


def test_streams_per_identity_and_overall(serve: Serve, fakes: FakePorts) -> None:
    listener = serve.listener(limits=Limits(streams_per_identity=2, streams=3))
    client = serve.client(listener)
    held = [stalled_put(serve, fakes, listener) for _ in range(2)]
    until(lambda: listener.running_calls == 2)
    with pytest.raises(fl.FlightUnavailableError) as caught:
        client.do_get(ticket(client)).read_all()
    assert code(caught.value) == "busy"
    assert json.loads(caught.value.extra_info)["retry_after_s"] > 0
    assert len(list(client.list_flights())) == 2  # short questions are still answered
    writer, answers = held.pop()
    writer.write_table(pa.table({"text": ["a"]}))
    writer.done_writing()
    assert answers.read() is not None
    writer.close()
    until(lambda: listener.running_calls == 1)
    assert client.do_get(ticket(client)).read_all().num_rows == 4


def test_running_calls_of_any_kind_are_capped(serve: Serve, fakes: FakePorts) -> None:
    listener = serve.listener(limits=Limits(calls=1))
    client = serve.client(listener)
    writer, _ = stalled_put(serve, fakes, listener)
    with pytest.raises(fl.FlightUnavailableError) as caught:
        list(client.list_flights())
    assert code(caught.value) == "busy"
    with pytest.raises(fl.FlightError):
        writer.close()
    assert listener.wait_idle(60)
    assert len(list(client.list_flights())) == 2


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        (Limits(put_rows=10), {"text": ["a"] * 11}),
        (Limits(put_bytes=100_000), {"text": ["a" * 1000] * 200}),
        (Limits(batch_bytes=100_000), {"text": ["a" * 1000] * 200}),
    ],
)
def test_puts_are_refused_as_soon_as_they_are_too_large(
    serve: Serve, fakes: FakePorts, limits: Limits, rows: dict
) -> None:
    client = serve.client(serve.listener(limits=limits))
    before = fakes.memory.rows["notes"]
    table = pa.table(rows)
    writer, answers = client.do_put(TABLE, table.schema)
    writer.write_table(table)  # and the stream is not ended: the refusal does not wait for that
    assert answers.read() is None
    with pytest.raises(fl.FlightServerError) as caught:
        writer.close()
    assert code(caught.value) == "too_large"
    assert fakes.memory.rows["notes"] is before


def test_exchange_batches_have_a_row_limit(serve: Serve) -> None:
    client = serve.client(serve.listener(limits=Limits(batch_rows=3)))
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("encode"))
    rows = pa.table({"text": ["a"] * 4})
    writer.begin(rows.schema)
    writer.write_table(rows)
    with pytest.raises(fl.FlightServerError) as caught:
        reader.read_chunk()
    assert code(caught.value) == "too_large"
    with pytest.raises(fl.FlightServerError):
        writer.close()


def test_searches_of_an_exchange_have_a_limit_of_hits(serve: Serve) -> None:
    client = serve.client(serve.listener(limits=Limits(hits=25)))
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("search", "notes"))
    rows = pa.table({"text": ["a"] * 3})  # each asks for ten
    writer.begin(rows.schema)
    writer.write_table(rows)
    with pytest.raises(fl.FlightServerError) as caught:
        reader.read_chunk()
    assert code(caught.value) == "too_large"
    with pytest.raises(fl.FlightServerError):
        writer.close()


def test_actions_have_a_body_limit(serve: Serve) -> None:
    client = serve.client(serve.listener(limits=Limits(action_bytes=10)))
    with pytest.raises(fl.FlightServerError) as caught:
        list(client.do_action(fl.Action("status", b'{"a": "' + b"x" * 20 + b'"}')))
    assert code(caught.value) == "too_large"


# ---- clients that vanish


CLIENT = """
import sys, pyarrow as pa, pyarrow.flight as fl
kind, uri = sys.argv[1:]
client = fl.connect(uri)
schema = pa.schema([("text", pa.string())])
if kind == "get":
    info = client.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes"))
    held = client.do_get(info.endpoints[0].ticket); held.read_chunk()
elif kind == "put":
    held, _ = client.do_put(fl.FlightDescriptor.for_path("memory", "notes"), schema)
    held.write_table(pa.table({"text": ["half"]}))
else:
    held, reader = client.do_exchange(fl.FlightDescriptor.for_path("encode"))
    held.begin(schema); held.write_table(pa.table({"text": ["half"]})); reader.read_chunk()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["get", "put", "exchange"])
def test_a_killed_client_gives_everything_back(serve: Serve, fakes: FakePorts, kind: str) -> None:
    if kind == "get":
        fakes.memory.rows["notes"] = BIG
    ended: list[CallRecord] = []
    listener = serve.listener(observe=ended.append)
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, kind, listener.uri], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until(lambda: listener.running_calls == 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert listener.wait_idle(60)
    assert f"do_{kind}" in {record.method for record in ended}


def test_a_killed_put_writes_nothing(serve: Serve, fakes: FakePorts) -> None:
    """Arrow shows a killed client as an ordinary end of the stream."""
    ended: list[CallRecord] = []
    listener = serve.listener(observe=ended.append)
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, "put", listener.uri], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    assert listener.wait_idle(60)
    assert [record.code for record in ended] == ["aborted"]
    assert fakes.memory.rows["notes"].num_rows == 3


# ---- leaks


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_listeners_and_streams_leave_nothing_behind(serve: Serve, fakes: FakePorts) -> None:
    def once() -> None:
        with FlightListener(fakes.ports, lambda context, token: _anyone()) as listener:
            client = fl.FlightClient(listener.uri, generic_options=[("grpc.use_local_subchannel_pool", 1)])
            for path in (("weights", "tiny"), ("memory", "notes")):
                for endpoint in client.get_flight_info(fl.FlightDescriptor.for_path(*path)).endpoints:
                    client.do_get(endpoint.ticket).read_all()
            client.close()
        assert listener.running_calls == 0

    def counted() -> tuple[int, int]:
        gc.collect()
        return descriptors(), threading.active_count()

    for _ in range(3):
        once()
    files, threads = counted()
    for _ in range(20):
        once()
    until(lambda: counted()[0] <= files + 3)
    assert counted()[1] <= threads
    assert fakes.weights.leases == 0


def _anyone() -> Any:
    from aios_node.flight.ports import Principal

    return Principal("open", "open")


def test_a_lease_lasts_as_long_as_its_stream(serve: Serve, fakes: FakePorts, tmp_path: Path) -> None:
    fakes.weights.add(tmp_path / "wide", "wide", {"w": np.zeros((2000, 4000), np.float32)})
    listener = serve.listener()
    client = serve.client(listener)
    reader = client.do_get(ticket(client, fl.FlightDescriptor.for_path("weights", "wide")))
    assert fakes.weights.leases == 1
    reader.read_all()
    until(lambda: fakes.weights.leases == 0)


def test_finished_calls_are_reported(serve: Serve, fakes: FakePorts) -> None:
    ended: list[CallRecord] = []
    listener = serve.listener(observe=ended.append)
    client = serve.client(listener)
    list(client.list_flights())
    with pytest.raises(fl.FlightError):
        client.get_flight_info(fl.FlightDescriptor.for_path("weights", "none"))
    client.do_get(ticket(client)).read_all()
    until(lambda: len(ended) == 4)
    assert [(r.method, r.code) for r in ended] == [
        ("list_flights", "ok"),
        ("get_flight_info", "unknown_model"),
        ("get_flight_info", "ok"),
        ("do_get", "ok"),
    ]
    assert all(r.principal is not None and r.principal.kind == "open" and r.seconds >= 0 for r in ended)
