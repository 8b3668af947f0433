"""Finding and cutting connections that stand still: addresses, marks and the clock, without waiting."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_fakes import FakePorts, Serve

from aios_node.engine.errors import Busy
from aios_node.flight import connections
from aios_node.flight.calls import Call, CallRegistry
from aios_node.flight.limits import StreamGovernor
from aios_node.flight.watchdog import Watchdog


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:40112", ("127.0.0.1", 40112)),
        ("ipv6:%5B::1%5D:40112", ("::1", 40112)),
        ("ipv6:[::1]:40112", ("::1", 40112)),
        ("ipv6:[::ffff:10.0.0.7]:5", ("10.0.0.7", 5)),
        ("ipv6:[fe80::1%25eth0]:5", ("fe80::1", 5)),
        ("unix:/tmp/socket", None),
        ("ipv4:nonsense:5", None),
        ("ipv4:127.0.0.1:", None),
        ("", None),
    ],
)
def test_names_of_peers(peer: str, address: tuple[str, int] | None) -> None:
    assert connections.parse_peer(peer) == address


class Line:
    """One TCP connection inside this process; ``peer`` is what the server's side calls the client."""

    def __init__(self, family: int = socket.AF_INET, host: str = "127.0.0.1") -> None:
        with socket.create_server((host, 0), family=family) as server:
            self.client = socket.create_connection(server.getsockname()[:2])
            self.served, _ = server.accept()
        self.port = self.served.getsockname()[1]
        name = self.client.getsockname()
        self.address = (name[0], name[1])
        self.peer = f"ipv6:%5B{name[0]}%5D:{name[1]}" if family == socket.AF_INET6 else f"ipv4:{name[0]}:{name[1]}"

    def close(self) -> None:
        self.client.close()
        self.served.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def test_progress_counts_both_directions(line: Line) -> None:
    assert connections.progress(line.port) == {line.address: 0}
    line.client.sendall(b"x" * 1000)
    assert len(line.served.recv(1000, socket.MSG_WAITALL)) == 1000
    assert connections.progress(line.port) == {line.address: 1000}
    line.served.sendall(b"y" * 500)
    assert len(line.client.recv(500, socket.MSG_WAITALL)) == 500
    assert connections.progress(line.port)[line.address] in {1000, 1500}  # acknowledged soon


def test_only_the_named_connection_on_the_named_port_is_cut(line: Line) -> None:
    other = Line()
    assert connections.cut(line.port, {other.address}) == 0
    assert connections.cut(line.port, {line.address}) == 1
    assert line.client.recv(1) == b""
    other.client.sendall(b"alive")
    assert other.served.recv(5) == b"alive"
    other.close()


def test_looking_for_connections_leaves_the_locks_on_files_alone(line: Line, tmp_path: Path) -> None:
    """SQLite's locks end with the first descriptor of the file that this process closes: none may be copied."""
    asked = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with (tmp_path / "books").open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        connections.progress(line.port)
        assert connections.cut(line.port) == 1
        other = subprocess.run([sys.executable, "-c", asked, file.name], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in other.stderr


def test_ipv6_connections_are_found() -> None:
    line = Line(socket.AF_INET6, "::1")
    assert connections.parse_peer(line.peer) == line.address
    assert connections.cut(line.port) == 1
    line.close()


def test_a_listener_on_ipv6(serve: Serve, fakes: FakePorts) -> None:
    fakes.memory.rows["notes"] = pa.table({"text": pa.array(["x" * 1000] * 64_000)})
    listener = serve.listener(host="::1")
    client = serve.client(listener)
    reader = client.do_get(client.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes")).endpoints[0].ticket)
    assert reader.read_chunk().data.num_rows > 0
    assert listener.shutdown(grace=0.1) is True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(line: Line) -> tuple[Watchdog, Call, Clock]:
    """A watchdog with a timeout of 10 s over one call on ``line`` that waits for its client."""
    registry, clock = CallRegistry(), Clock()
    call = Call("do_get", None, registry)
    call.peer = line.peer
    registry.began(call, 9)
    call.hand_over()
    return Watchdog(registry, 10.0, now=clock), call, clock


def test_a_connection_is_cut_after_the_idle_timeout_not_before(line: Line) -> None:
    watchdog, _, clock = watched(line)
    for moment in (100.0, 105.0, 109.9):
        clock.now = moment
        assert watchdog.look(line.port) == 0
    clock.now = 110.0
    assert watchdog.look(line.port) == 1
    assert line.client.recv(1) == b""


def test_traffic_is_progress_but_keepalive_pings_are_not(line: Line) -> None:
    watchdog, _, clock = watched(line)
    watchdog.look(line.port)
    clock.now = 109.0
    line.client.sendall(b"x" * 2000)
    assert len(line.served.recv(2000, socket.MSG_WAITALL)) == 2000
    assert watchdog.look(line.port) == 0
    clock.now = 118.0
    line.client.sendall(b"p" * 17)
    assert len(line.served.recv(17, socket.MSG_WAITALL)) == 17
    assert watchdog.look(line.port) == 0
    clock.now = 119.0
    assert watchdog.look(line.port) == 1


def test_messages_are_progress(line: Line) -> None:
    watchdog, call, clock = watched(line)
    watchdog.look(line.port)
    clock.now = 109.0
    with call.waiting():
        pass
    assert watchdog.look(line.port) == 0
    clock.now = 118.0
    assert watchdog.look(line.port) == 0
    clock.now = 119.0
    assert watchdog.look(line.port) == 1


def test_a_computing_call_protects_its_connection(line: Line) -> None:
    watchdog, call, clock = watched(line)
    busy = Call("do_action", None, call._registry)
    busy.peer = line.peer
    call._registry.began(busy, 9)
    for moment in (100.0, 150.0, 500.0):
        clock.now = moment
        assert watchdog.look(line.port) == 0
    busy.call_completed(None)
    clock.now = 600.0
    assert watchdog.look(line.port) == 0  # from now on it counts
    clock.now = 610.0
    assert watchdog.look(line.port) == 1


def test_a_resting_connection_is_left_alone_unless_unknown_calls_run(line: Line) -> None:
    registry, clock = CallRegistry(), Clock()
    watchdog = Watchdog(registry, 10.0, now=clock)
    elsewhere = Call("do_get", None, registry)
    elsewhere.peer = "ipv4:127.0.0.1:1"
    registry.began(elsewhere, 9)
    for moment in (100.0, 200.0):
        clock.now = moment
        assert watchdog.look(line.port) == 0
    registry.began(Call("do_put", None, registry), 9)  # no handler knows its peer yet
    assert watchdog.look(line.port) == 0
    clock.now = 210.0
    assert watchdog.look(line.port) == 1


def test_places_come_back_once() -> None:
    governor = StreamGovernor(overall=3, per_identity=2, retry_after=1.5)
    leave = [governor.enter("ann"), governor.enter("ann")]
    with pytest.raises(Busy, match="2 streams of yours") as caught:
        governor.enter("ann")
    assert caught.value.retry_after_s == 1.5
    governor.enter("bob")
    with pytest.raises(Busy, match="already serves 3"):
        governor.enter("eve")
    leave[0]()
    leave[0]()
    assert governor.open == 2
    governor.enter("ann")
    assert governor.open == 3
