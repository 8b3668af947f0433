"""Discovery: hostile announcements, strangers, peers that move; mDNS itself on the loopback interface."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import Unauthenticated, Unavailable
from aios_node.node.config.model import PeerEntry
from aios_node.node.demo.processes import DemoNode, wait_until
from aios_node.node.discovery import records
from aios_node.node.discovery.finder import Finder
from aios_node.node.discovery.mdns import Announcement, Mdns
from aios_node.node.discovery.records import Sighting, Sightings, properties, read, service_name
from aios_node.node.peers import Peer, PeerBook

PATIENCE_S = 60.0
ONE, TWO, THREE, OTHER = "1" * 64, "2" * 64, "3" * 64, "f" * 64


def texts(node_id: str, name: str = "n") -> dict[bytes, bytes | None]:
    return {key.encode(): value for key, value in properties(node_id, name).items()}


def test_an_announcement_is_read_back() -> None:
    found = read(service_name(ONE), ["192.168.1.7", "10.0.0.1"], 8816, texts(ONE, "alpha"))
    assert found == Sighting(ONE, ("192.168.1.7", "10.0.0.1"), 8816, "alpha")
    assert found is not None
    assert found.uris == ("grpc+tls://192.168.1.7:8816", "grpc+tls://10.0.0.1:8816")
    assert all(len(label) <= 63 for label in service_name(ONE).split("."))


@pytest.mark.parametrize(
    ("service", "addresses", "port", "changed"),
    [
        (service_name(TWO), ["10.0.0.1"], 1, {}),
        (service_name(ONE), [], 1, {}),
        (service_name(ONE), ["224.0.0.251"], 1, {}),
        (service_name(ONE), ["0.0.0.0"], 1, {}),
        (service_name(ONE), ["255.255.255.255"], 1, {}),
        (service_name(ONE), ["127.0.0.1"], 1, {}),
        (service_name(ONE), ["fe80::1"], 1, {}),
        (service_name(ONE), ["example.org"], 1, {}),
        (service_name(ONE), ["10.0.0.1"], 0, {}),
        (service_name(ONE), ["10.0.0.1"], 65536, {}),
        (service_name(ONE), ["10.0.0.1"], None, {}),
        (service_name(ONE), ["10.0.0.1"], 1, {b"v": b"2"}),
        (service_name(ONE), ["10.0.0.1"], 1, {b"v": None}),
        (service_name(ONE), ["10.0.0.1"], 1, {b"id": None}),
        (service_name(ONE), ["10.0.0.1"], 1, {b"id": ONE.encode() + b"\n"}),
        (service_name(ONE), ["10.0.0.1"], 1, {b"id": b"\xff" * 64}),
    ],
)
def test_what_is_no_announcement_is_not_believed(
    service: str, addresses: list[str], port: int | None, changed: dict[bytes, bytes | None]
) -> None:
    assert read(service, addresses, port, {**texts(ONE), **changed}) is None


@given(
    service=st.text(max_size=80),
    addresses=st.lists(st.text(max_size=40) | st.ip_addresses().map(str), max_size=9),
    port=st.none() | st.integers(),
    values=st.dictionaries(st.sampled_from([b"id", b"v", b"name"]) | st.binary(max_size=9), st.none() | st.binary()),
    genuine=st.booleans(),
)
def test_whatever_is_announced_is_bounded(service, addresses, port, values, genuine) -> None:
    if genuine:
        service, values = service_name(ONE), {**values, b"id": ONE.encode(), b"v": b"1"}
    found = read(service, addresses, port, values)
    if found is not None:
        assert found.node_id == ONE
        assert 0 < len(found.addresses) <= records.MOST_ADDRESSES
        for uri in found.uris:
            PeerEntry(uri=uri, fingerprint=found.node_id)
        assert found.name is None or re.fullmatch(r"[A-Za-z0-9._-]{1,63}", found.name)


def test_strangers_do_not_crowd_out_peers() -> None:
    seen = Sightings()
    ids = [f"{number:064x}" for number in range(records.MOST_NODES + 9)]
    for node_id in ids:
        seen.add(Sighting(node_id, ("10.0.0.1",), 1), known=[])
    assert len(seen.all()) == records.MOST_NODES
    assert seen.add(Sighting(OTHER, ("10.0.0.1",), 1), known=[OTHER])
    assert len(seen.all()) == records.MOST_NODES
    assert seen.all()[-1].node_id == OTHER
    assert not seen.add(Sighting(ids[-1], ("10.0.0.1",), 1), known=[OTHER])
    seen.remove(service_name(OTHER))
    assert OTHER not in {one.node_id for one in seen.all()}


class Book(PeerBook):
    """Peers whose addresses are proved by a table: who answers where."""

    def __init__(self, folder: Path, entries: list[PeerEntry], answers: dict[str, str]) -> None:
        super().__init__(folder, entries, folder)
        self.answers, self.tried = answers, list[str]()

    def fetch_certificate(self, peer: Peer) -> bytes:
        self.tried.append(peer.address)
        if peer.address not in self.answers:
            raise Unavailable("nobody")
        if self.answers[peer.address] != peer.node_id:
            raise Unauthenticated("somebody else")
        return b"pem"


HOME, AWAY, FALSE = "grpc+tls://10.0.0.1:1", "grpc+tls://10.0.0.2:2", "grpc+tls://10.0.0.3:3"


def finder(book: Book, moved: list[str]) -> Finder:
    return Finder(TWO, book, moved.extend)


def pinned(tmp_path: Path, uri: str, answers: dict[str, str]) -> Book:
    return Book(tmp_path, [PeerEntry(uri=uri, fingerprint=ONE)], answers)


def test_a_peer_that_moved_is_found_once_it_proves_its_key(tmp_path: Path) -> None:
    moved: list[str] = []
    book = pinned(tmp_path, HOME, {AWAY: ONE})
    book.note(HOME, state="down")
    look = finder(book, moved)
    look.seen(Sighting(ONE, ("10.0.0.3", "10.0.0.2"), 2))
    look.look()
    (peer,) = book.all()
    assert (peer.uri, peer.address, peer.state) == (HOME, AWAY, "new")
    assert moved == [HOME]


def test_a_false_announcement_moves_nobody(tmp_path: Path) -> None:
    moved: list[str] = []
    book = pinned(tmp_path, HOME, {HOME: ONE, FALSE: OTHER})
    look = finder(book, moved)
    look.seen(Sighting(ONE, ("10.0.0.3",), 3))
    look.look()
    assert book.tried == []  # it is where it was: nobody asks elsewhere
    book.note(HOME, state="down")
    look.look()
    assert book.tried == [FALSE]
    assert book.all()[0].address == HOME
    assert moved == []


def test_a_found_address_that_fails_gives_way_to_the_configured_one(tmp_path: Path) -> None:
    book = pinned(tmp_path, HOME, {AWAY: ONE})
    book.note(HOME, state="down")
    look = finder(book, [])
    look.seen(Sighting(ONE, ("10.0.0.2",), 2))
    look.look()
    book.note(HOME, state="down")
    book.answers.clear()
    look.look()
    assert book.all()[0].address == HOME


def test_strangers_are_listed_and_left_alone(tmp_path: Path) -> None:
    book = pinned(tmp_path, HOME, {AWAY: OTHER})
    look = finder(book, [])
    look.seen(Sighting(OTHER, ("10.0.0.2",), 2))
    look.seen(Sighting(TWO, ("10.0.0.2",), 2))
    look.look()
    assert [(one.sighting.node_id, one.peer, one.self) for one in look.all()] == [
        (TWO, False, True),
        (OTHER, False, False),
    ]
    assert book.tried == []
    assert [peer.node_id for peer in book.all()] == [ONE]


def test_a_plain_peer_is_not_moved_since_it_proves_nothing(tmp_path: Path) -> None:
    book = pinned(tmp_path, "grpc://10.0.0.1:1", {AWAY: ONE})
    book.note("grpc://10.0.0.1:1", state="down")
    look = finder(book, [])
    look.seen(Sighting(ONE, ("10.0.0.2",), 2))
    look.look()
    assert book.tried == []


def test_a_peer_known_by_its_key_alone_is_dialled_once_it_is_found(tmp_path: Path) -> None:
    book = Book(tmp_path, [PeerEntry(uri=f"key:{ONE}")], {AWAY: ONE})
    assert book.dialled() == []
    look = finder(book, [])
    look.seen(Sighting(ONE, ("10.0.0.2",), 2))
    look.look()
    assert [peer.address for peer in book.dialled()] == [AWAY]


class Ears:
    """Hears what ``Mdns`` reports."""

    def __init__(self) -> None:
        self.heard: list[Sighting] = []
        self.left: list[str] = []
        self.changed = threading.Condition()

    def seen(self, sighting: Sighting) -> None:
        with self.changed:
            self.heard.append(sighting)
            self.changed.notify_all()

    def gone(self, service: str) -> None:
        with self.changed:
            self.left.append(service)
            self.changed.notify_all()


def test_an_announcement_is_heard_and_taken_back() -> None:
    ears = Ears()
    listening = Mdns(None, ["127.0.0.1"], ears.seen, ears.gone)
    try:
        said = Announcement(ONE, "alpha", ("127.0.0.1",), 4711)
        Mdns(said, ["127.0.0.1"], Ears().seen, Ears().gone).close()
        with ears.changed:
            assert ears.changed.wait_for(lambda: service_name(ONE) in ears.left, PATIENCE_S)
        heard = {(one.port, one.name) for one in ears.heard if one.node_id == ONE}  # others may be on the air
        assert heard <= {(4711, "alpha")}
    finally:
        listening.close()


def test_a_command_looks_around_without_a_running_node(make_node) -> None:
    config = "\ndiscovery:\n  interfaces: [127.0.0.1]\n"
    node = make_node("alpha", start=False, config=config)
    announced = Mdns(Announcement(THREE, "beta", ("127.0.0.1",), 4712), ["127.0.0.1"], Ears().seen, Ears().gone)

    seen: dict[str, dict[str, object]] = {}

    def heard() -> bool:
        seen.update({one["node_id"]: one for one in node.call("peers", "discover", "--wait", "2")["nodes"]})
        return THREE in seen

    try:
        wait_until("an announcement being heard", heard, PATIENCE_S)
    finally:
        announced.close()
    assert seen[THREE] == {
        "node_id": THREE,
        "name": "beta",
        "uris": ["grpc+tls://127.0.0.1:4712"],
        "peer": False,
        "self": False,
    }


def active(node: DemoNode, model: str) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == model), None)


def test_nodes_that_know_each_others_keys_find_each_other_and_find_again(make_node, weights_file) -> None:
    discovery = "\ndiscovery:\n  mdns: true\n  interfaces: [127.0.0.1]\n"
    alpha, beta = (make_node(name, tls="on", start=False, config=discovery) for name in ("alpha", "beta"))
    stranger = make_node("stranger", tls="on", start=False, config=discovery)
    for node in (alpha, beta, stranger):
        node.start()
    alpha.call("peers", "add", f"key:{beta.node_id}")
    beta.call("peers", "add", f"key:{alpha.node_id}")
    first = alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")["version"]
    wait_until("the first version arriving", lambda: active(beta, "m") == first, PATIENCE_S)
    beta.stop()
    beta.start()  # at another port
    second = alpha.call("model", "import", str(weights_file("b.safetensors", 1, 0.001)), "--name", "m")["version"]
    wait_until("the second version arriving", lambda: active(beta, "m") == second, PATIENCE_S)
    listed = {node["node_id"]: node for node in alpha.call("peers", "discover")["nodes"]}
    assert (listed[alpha.node_id]["self"], listed[alpha.node_id]["peer"]) == (True, False)
    assert (listed[stranger.node_id]["self"], listed[stranger.node_id]["peer"]) == (False, False)
    assert listed[beta.node_id]["peer"]
    assert [peer["node_id"] for peer in alpha.call("peers", "list")["peers"]] == [beta.node_id]
    assert active(stranger, "m") is None
