"""Searches over this node and its peers: the asking node embeds, everyone ranks, the asking node merges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import pyarrow as pa

from aios_node.engine.errors import AiosError, BadRequest, UnknownTable
from aios_node.flight.ports import SearchRequest, SearchResult
from aios_node.memory.federate import merge_hits
from aios_node.memory.retrieve import HITS
from aios_node.memory.store import MemoryStore
from aios_node.node.models import NodeEmbedder
from aios_node.node.peers import Peer, PeerBook

AskPeer = Callable[[Peer, SearchRequest, float], pa.Table]
MAX_PEERS_AT_ONCE = 16


class NetworkSearch:
    """Answers searches locally, or by this node and all its peers."""

    def __init__(
        self,
        name: str,
        memory: MemoryStore,
        embedder: NodeEmbedder,
        peers: PeerBook,
        ask: AskPeer,
        timeout_s: float,
    ) -> None:
        self._name = name
        self._memory = memory
        self._embedder = embedder
        self._peers = peers
        self._ask = ask
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(MAX_PEERS_AT_ONCE, "network-search")

    def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """One result per request, in order. Raises UnknownTable, BadRequest, SpaceMismatch."""
        return [self._one(request) for request in self._embedded(requests)]

    def close(self) -> None:
        """Stop asking peers."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _embedded(self, requests: Sequence[SearchRequest]) -> list[SearchRequest]:
        """Texts become vectors here, in one batch, so that every node compares with the same one."""
        if any(request.text is not None and request.vector is not None for request in requests):
            raise BadRequest("a search takes a text or a vector, not both")
        texts = [request.text for request in requests if request.vector is None and request.text is not None]
        if not texts:
            return list(requests)
        vectors = iter(self._embedder.encode(texts))
        space = self._embedder.space
        return [
            replace(request, text=None, vector=tuple(map(float, next(vectors))), space=request.space or space)
            if request.vector is None and request.text is not None
            else request
            for request in requests
        ]

    def _one(self, request: SearchRequest) -> SearchResult:
        if request.scope == "local":
            columns = (*HITS.names, *_extra(request))
            return SearchResult(self._named(self._local(replace(request, columns=columns))))
        request = replace(request, columns=(*HITS.names, *_extra(request)))
        asked = {
            peer.name or peer.uri: self._pool.submit(self._ask, peer, replace(request, scope="local"), self._timeout_s)
            for peer in self._peers.dialled()
        }
        answers: dict[str, pa.Table | None] = {}
        unknown: UnknownTable | None = None
        try:
            answers[self._name] = self._local(request)
        except UnknownTable as error:
            unknown = error  # fine, as long as somebody else has the table
        answers |= self._collect(asked)
        if unknown is not None and not any(hits is not None for hits in answers.values()):
            raise unknown
        merged = merge_hits(answers, request.k, space=request.space, extra=_extra(request))
        return SearchResult(merged.hits, merged.complete, merged.missing)

    def _collect(self, asked: dict[str, Future[pa.Table]]) -> dict[str, pa.Table | None]:
        """What the peers answered in time by name; None for those that did not answer."""
        wait(asked.values(), self._timeout_s)
        answers: dict[str, pa.Table | None] = {}
        for name, future in asked.items():
            if not future.done():
                future.cancel()
                answers[name] = None
                continue
            try:
                answers[name] = future.result()
            except UnknownTable:
                continue  # a peer without the table has nothing to add: that is an answer
            except AiosError:
                answers[name] = None
        return answers

    def _local(self, request: SearchRequest) -> pa.Table:
        return self._memory.search(
            table=request.table,
            vector=request.vector,
            image=request.image,
            audio=request.audio,
            k=request.k,
            filter=request.filter,
            alpha=request.alpha,
            beta=request.beta,
            modalities=request.modalities,
            namespace=request.namespace,
            columns=request.columns,
            space=request.space,
        )

    def _named(self, hits: pa.Table) -> pa.Table:
        """The hits under this node's name."""
        index = hits.schema.get_field_index("node")
        return hits.set_column(index, hits.schema.field(index), pa.array([self._name] * hits.num_rows, pa.string()))


def _extra(request: SearchRequest) -> tuple[str, ...]:
    """Columns asked for beyond those of every hit."""
    return tuple(name for name in request.columns or () if name not in HITS.names)
