"""Searches over several nodes: the asking node embeds, everyone ranks, what is missing is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aios_node.engine.errors import AiosError, BadRequest, Unavailable, UnknownTable
from aios_node.flight.client import Client
from aios_node.flight.ports import SearchRequest
from aios_node.memory.store import MemoryStore
from aios_node.node.config.model import PeerEntry
from aios_node.node.demo.processes import DemoNode
from aios_node.node.network_search import NetworkSearch
from aios_node.node.peers import Peer, PeerBook


class TwoWords:
    """An embedder of a space with two directions: cats and dogs."""

    space = "pets"
    dimension = 2

    def encode(self, texts):
        return np.array([[1.0, 0.1] if "cat" in text else [0.1, 1.0] for text in texts], np.float32)


Answer = Callable[[SearchRequest], pa.Table]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore.open(tmp_path / "memory", embedder=TwoWords()) as memory:
        memory.add("notes", text="a cat here", id="here")
        yield memory


def search_over(tmp_path: Path, memory: MemoryStore, **answers: Answer) -> NetworkSearch:
    """A node ``me`` with these peers."""
    entries = [PeerEntry(uri=f"grpc://{name}:1") for name in answers]
    peers = PeerBook(tmp_path / "keys", entries, tmp_path)
    for name in answers:
        peers.note(f"grpc://{name}:1", name=name)

    def ask(peer: Peer, request: SearchRequest, timeout_s: float) -> pa.Table:
        return answers[peer.name or ""](request)

    return NetworkSearch("me", memory, TwoWords(), peers, ask, 0.5)  # type: ignore[arg-type]


def other_store(tmp_path: Path, name: str, text: str) -> Answer:
    store = MemoryStore.open(tmp_path / name, embedder=None)
    vector = [1.0, 0.0] if "cat" in text else [0.0, 1.0]
    store.add("notes", text=text, id=name, embedding=vector, space="pets")

    def answer(request: SearchRequest) -> pa.Table:
        assert request.scope == "local"
        assert request.text is None, "the asking node embeds"
        assert request.space == "pets"
        return store.search(vector=request.vector, table=request.table, k=request.k, columns=request.columns)

    return answer


def fails(error: AiosError) -> Answer:
    def answer(request: SearchRequest) -> pa.Table:
        raise error

    return answer


def test_everyone_is_asked_and_named(tmp_path: Path, memory: MemoryStore) -> None:
    search = search_over(
        tmp_path,
        memory,
        edge=other_store(tmp_path, "edge", "a cat there"),
        cloud=other_store(tmp_path, "cloud", "a dog"),
    )
    result = search.search([SearchRequest("notes", text="cats", scope="network")])[0]
    assert result.complete
    assert result.hits.column("node").to_pylist() == ["me", "edge", "cloud"]
    local = search.search([SearchRequest("notes", text="cats")])[0]
    assert local.hits.column("node").to_pylist() == ["me"]
    search.close()


def test_who_does_not_answer_is_missing(tmp_path: Path, memory: MemoryStore) -> None:
    released = threading.Event()

    def slow(request: SearchRequest) -> pa.Table:
        released.wait(30)
        raise Unavailable("too late")

    search = search_over(
        tmp_path, memory, edge=slow, cloud=fails(Unavailable("down")), tiny=fails(UnknownTable("no notes"))
    )
    result = search.search([SearchRequest("notes", text="cats", scope="network")])[0]
    released.set()
    assert not result.complete
    assert result.missing == ("cloud", "edge")
    assert result.hits.num_rows == 1
    search.close()


def test_a_table_that_nobody_has(tmp_path: Path, memory: MemoryStore) -> None:
    search = search_over(tmp_path, memory, edge=fails(UnknownTable("no such table")))
    with pytest.raises(UnknownTable, match="nothing"):
        search.search([SearchRequest("nothing", text="cats", scope="network")])
    with pytest.raises(BadRequest, match="not both"):
        search.search([SearchRequest("notes", text="cats", vector=(1.0, 0.0))])
    search.close()


def test_extra_columns_come_from_everyone(tmp_path: Path, memory: MemoryStore) -> None:
    search = search_over(tmp_path, memory, edge=other_store(tmp_path, "edge", "a cat there"))
    request = SearchRequest("notes", text="cats", scope="network", columns=("id", "importance"))
    hits = search.search([request])[0].hits
    assert hits.num_rows == 2
    assert "importance" in hits.column_names
    search.close()


@pytest.mark.parametrize("tls", ["on", "off"])
def test_two_real_nodes_answer_as_one(make_node, tls: str) -> None:
    alpha, beta = make_node("alpha", tls=tls), make_node("beta", tls=tls)
    for node, other in ((alpha, beta), (beta, alpha)):
        pinned = ["--fingerprint", other.node_id] if other.peer_uri else []
        node.call("peers", "add", other.peer_uri or other.uri, *pinned)
    alpha.call("sync")
    for node, vector in ((alpha, [1.0, 0.0]), (beta, [0.9, 0.1])):
        with open_client(node, tls) as client:
            client.put("notes", pa.table({"id": [node.name], "text": [node.name], "embedding": [vector]}))
    with open_client(alpha, tls) as client:
        hits = client.search("notes", vector=[1.0, 0.0], scope="network", columns=["id", "node", "score"])
    assert hits.column("id").to_pylist() == ["alpha", "beta"]
    assert hits.column("node").to_pylist() == ["alpha", "beta"]
    assert hits.schema.metadata[b"aios.complete"] == b"true"


def open_client(node: DemoNode, tls: str) -> Client:
    return node.owner() if tls == "on" else Client(node.uri)
