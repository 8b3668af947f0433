"""Sync streams between real peers over mutual TLS, and everyone who is turned away."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow.flight as fl
import pytest
from flight_certificates import Identity, identity
from flight_fakes import FakePorts, Serve

from aios_node.engine.errors import (
    AiosError,
    BadConfig,
    NoBase,
    ProtocolError,
    TransferAborted,
    Unauthenticated,
    Unavailable,
)
from aios_node.flight.auth import by_certificate
from aios_node.flight.client import Client
from aios_node.flight.limits import Limits
from aios_node.flight.listener import FlightListener, Tls
from aios_node.flight.peer_link import PeerLink

SERVER = identity("5" * 64)
PEER = identity("a" * 64)
FOREIGN = identity("b" * 64)
EXPIRED = identity("c" * 64, days=-1)
NAMELESS = identity("d" * 64, first_san="https://example.org")


@pytest.fixture
def listener(serve: Serve, fakes: FakePorts) -> FlightListener:
    """A peers' listener that trusts PEER, EXPIRED and NAMELESS as far as TLS goes."""
    fakes.access.peers = {PEER.node_id, EXPIRED.node_id}
    roots = PEER.certificate + EXPIRED.certificate + NAMELESS.certificate
    return serve.listener(
        identify=by_certificate(fakes.access),
        tls=Tls(SERVER.certificate, SERVER.key, roots),
        limits=Limits(sync_message_bytes=300_000),
    )


def link(listener: FlightListener, who: Identity = PEER, *, ca: bytes = SERVER.certificate, **options: Any) -> PeerLink:
    return PeerLink(listener.uri, ca=ca, cert=who.certificate, key=who.key, **options)


@pytest.fixture
def opened(listener: FlightListener) -> Iterator[PeerLink]:
    with link(listener) as opened:
        yield opened


def test_messages_travel_both_ways(opened: PeerLink, fakes: FakePorts) -> None:
    for message in [(b'{"a":1}', None), (b"{}", b""), (b"{}", b"x" * 262_144)]:
        opened.send(*message)
        assert opened.receive(60) == message
    opened.close()
    (principal,) = fakes.sync.principals
    assert (principal.kind, principal.name) == ("peer", PEER.node_id)


def test_both_sides_send_much_before_they_receive(listener: FlightListener, fakes: FakePorts) -> None:
    count, chunk = 100, b"z" * 200_000  # 20 MB each way: more than gRPC and TCP buffer
    seen: list[int] = []

    def both(transport: Any) -> None:
        for _ in range(count):
            transport.send(b"s", chunk)
        seen.extend(len(transport.receive(60)[1]) for _ in range(count))

    fakes.sync.drive = both
    opened = link(listener)
    for _ in range(count):
        opened.send(b"c", chunk)
    for _ in range(count):
        assert opened.receive(60) == (b"s", chunk)
    assert opened.receive(60) is None
    opened.close()
    assert seen == [len(chunk)] * count


def test_the_server_ends_the_stream(listener: FlightListener, fakes: FakePorts) -> None:
    fakes.sync.drive = lambda transport: transport.send(b"bye")
    with link(listener) as opened:
        assert opened.receive(60) == (b"bye", None)
        assert opened.receive(60) is None


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(NoBase("there is no such base"), NoBase), (ValueError("secret"), AiosError), (SystemExit(3), AiosError)],
)
def test_what_the_session_raises_reaches_the_peer(
    listener: FlightListener, fakes: FakePorts, raised: BaseException, seen: type[AiosError]
) -> None:
    def fail(transport: Any) -> None:
        transport.receive(60)
        raise raised

    fakes.sync.drive = fail
    with link(listener) as opened:
        opened.send(b"hello")
        with pytest.raises(seen) as caught:
            opened.receive(60)
        assert "secret" not in str(caught.value)
        with pytest.raises(seen):
            opened.send(b"more")


def test_messages_above_the_limit_break_the_stream(opened: PeerLink, fakes: FakePorts) -> None:
    opened.send(b"{}", b"x" * 300_001)
    with pytest.raises(ProtocolError, match="300000"):
        opened.receive(60)


def test_plain_clients_that_send_nonsense(serve: Serve, listener: FlightListener, fakes: FakePorts) -> None:
    import pyarrow as pa

    client = serve.client(
        listener,
        tls_root_certs=SERVER.certificate,
        cert_chain=PEER.certificate,
        private_key=PEER.key,
        override_hostname="aios-node",
    )
    rows = pa.table({"other": ["x"]})
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("sync"))
    writer.begin(rows.schema)
    writer.write_table(rows)
    writer.done_writing()

    def read_to_the_end() -> None:
        while True:
            reader.read_chunk()

    with pytest.raises(fl.FlightServerError, match="no sync message"):
        read_to_the_end()
    with pytest.raises(fl.FlightServerError):
        writer.close()


@pytest.mark.parametrize("who", [FOREIGN, EXPIRED])
def test_foreign_and_expired_certificates_are_turned_away(
    listener: FlightListener, fakes: FakePorts, who: Identity
) -> None:
    with pytest.raises(Unavailable, match="TLS"), link(listener, who) as refused:
        refused.receive(60)
    assert fakes.sync.principals == []


def test_a_server_with_another_certificate_is_not_believed(listener: FlightListener) -> None:
    with pytest.raises(Unavailable), link(listener, ca=FOREIGN.certificate) as refused:
        refused.receive(60)


def test_a_certificate_without_a_node_id(listener: FlightListener) -> None:
    with pytest.raises(Unauthenticated, match="first SAN"), link(listener, NAMELESS) as refused:
        refused.receive(60)


def test_a_trusted_certificate_of_a_node_that_is_no_peer_any_more(listener: FlightListener, fakes: FakePorts) -> None:
    fakes.access.peers = set()
    with pytest.raises(Unauthenticated, match="no peer"), link(listener) as refused:
        refused.receive(60)


def test_no_certificate_at_all(listener: FlightListener) -> None:
    with (
        pytest.raises(Unavailable),
        Client(listener.uri, ca=SERVER.certificate, hostname="aios-node", attempts=1) as client,
    ):
        client.status()


def test_a_peer_is_a_client_too(listener: FlightListener) -> None:
    with Client(
        listener.uri, ca=SERVER.certificate, cert=PEER.certificate, key=PEER.key, hostname="aios-node"
    ) as client:
        assert client.status()["principal"] == PEER.node_id
        assert client.search("notes", text="apples", k=1).num_rows == 1


def test_refused_and_broken_links_print_nothing(
    listener: FlightListener, fakes: FakePorts, capfd: pytest.CaptureFixture[str]
) -> None:
    gc.collect()
    capfd.readouterr()  # what links of earlier tests said when they were collected is not this test's matter
    for who in (FOREIGN, NAMELESS):
        with pytest.raises(AiosError), link(listener, who) as refused:
            refused.receive(60)
    fakes.sync.drive = lambda transport: transport.send(None)  # breaks the session
    with pytest.raises(AiosError), link(listener) as broken:
        broken.receive(60)
    with link(listener) as cancelled:
        cancelled._transport.cancel()
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_on_an_open_listener_everyone_is_a_peer(serve: Serve, fakes: FakePorts) -> None:
    with PeerLink(serve.listener().uri) as opened:
        opened.send(b"hello")
        assert opened.receive(60) == (b"hello", None)
    assert [principal.kind for principal in fakes.sync.principals] == ["open"]


def test_a_new_certificate_is_trusted_after_a_restart_on_the_same_port(
    serve: Serve, listener: FlightListener, fakes: FakePorts
) -> None:
    with pytest.raises(Unavailable), link(listener, FOREIGN) as refused:
        refused.receive(60)
    port = listener.port
    assert listener.shutdown(grace=5) is True
    fakes.access.peers.add(FOREIGN.node_id)
    again = serve.listener(
        identify=by_certificate(fakes.access),
        port=port,
        tls=Tls(SERVER.certificate, SERVER.key, PEER.certificate + FOREIGN.certificate),
    )
    with link(again, FOREIGN) as opened:
        opened.send(b"hello")
        assert opened.receive(60) == (b"hello", None)


def test_nobody_listens(serve: Serve) -> None:
    gone = serve.listener()
    assert gone.shutdown() is True
    with pytest.raises(Unavailable), PeerLink(gone.uri) as dead:
        dead.receive(60)


def test_a_server_that_stops_taking_is_left_after_the_idle_timeout(listener: FlightListener, fakes: FakePorts) -> None:
    gate = threading.Event()
    fakes.sync.drive = lambda transport: gate.wait()
    chunk = b"x" * 200_000

    def send_all(opened: PeerLink) -> None:
        for _ in range(1000):  # 200 MB: more than the buffers between the two
            opened.send(b"c", chunk)

    with link(listener, idle_timeout=0.4) as opened, pytest.raises(TransferAborted):
        send_all(opened)
    gate.set()


def test_a_peer_that_stops_taking_is_cut_by_the_server(serve: Serve, fakes: FakePorts) -> None:
    fakes.access.peers = {PEER.node_id}
    listener = serve.listener(
        identify=by_certificate(fakes.access),
        tls=Tls(SERVER.certificate, SERVER.key, PEER.certificate),
        limits=Limits(idle_timeout=0.4),
    )
    outcome: list[AiosError] = []

    def flood(transport: Any) -> None:
        try:
            while True:
                transport.send(b"s", b"x" * 200_000)
        except AiosError as error:
            outcome.append(error)
            raise

    fakes.sync.drive = flood
    with link(listener) as opened:
        assert opened.receive(60) is not None
        assert listener.wait_idle(60)
    assert isinstance(outcome[0], TransferAborted)


def test_a_peer_that_vanishes_shows_as_an_abort_not_as_an_end(listener: FlightListener, fakes: FakePorts) -> None:
    outcome: list[AiosError] = []

    def receive(transport: Any) -> None:
        transport.send(b"go")
        with pytest.raises(TransferAborted) as caught:
            transport.receive(60)
        outcome.append(caught.value)

    fakes.sync.drive = receive
    with link(listener) as opened:
        assert opened.receive(60) == (b"go", None)
        opened._transport.cancel()  # as a killed process looks from the other side
        assert listener.wait_idle(60)
    assert "vanished" in outcome[0].message


def test_shutdown_ends_open_syncs(listener: FlightListener, fakes: FakePorts) -> None:
    with link(listener) as opened:
        opened.send(b"hello")
        assert opened.receive(60) == (b"hello", None)
        assert listener.shutdown(grace=0.2) is True
        with pytest.raises(AiosError):
            opened.receive(60)


@pytest.mark.parametrize("uri", ["http://x:1", "grpc://", "grpc://host", "127.0.0.1:1", "grpc://a b:1"])
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(BadConfig, match="address"):
        PeerLink(uri)


def test_certificates_need_tls_and_their_keys(tmp_path: Any) -> None:
    with pytest.raises(BadConfig, match="grpc\\+tls"):
        PeerLink("grpc://127.0.0.1:1", ca=b"x")
    with pytest.raises(BadConfig, match="key"):
        PeerLink("grpc+tls://127.0.0.1:1", cert=b"x")
    with pytest.raises(BadConfig, match="cannot be read"):
        PeerLink("grpc+tls://127.0.0.1:1", ca=tmp_path / "none.pem")
