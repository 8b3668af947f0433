"""Memory tables as Flight serves them; searches may ask the peers as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from aios_node.engine.errors import Unauthorized
from aios_node.flight.ports import Principal, PutResult, SearchRequest, SearchResult, TableInfo
from aios_node.memory.store import MemoryStore

if TYPE_CHECKING:
    from aios_node.node.network_search import NetworkSearch


class StoredMemory:
    """MemoryPort over the memory store."""

    def __init__(self, memory: MemoryStore, network: NetworkSearch) -> None:
        self._memory = memory
        self._network = network

    def tables(self) -> Sequence[TableInfo]:
        """All tables."""
        return [self.table(name) for name in self._memory.tables()]

    def table(self, name: str) -> TableInfo:
        """One table. Raises UnknownTable."""
        stats = self._memory.stats(name)
        return TableInfo(name, self._memory.schema(name), stats.rows, stats.bytes, stats.version)

    def scan(self, name: str) -> pa.RecordBatchReader:
        """All rows as of now."""
        return self._memory.scan(name)

    def search(self, requests: Sequence[SearchRequest], principal: Principal) -> Sequence[SearchResult]:
        """Answer searches in order. Peers are answered from here only: they ask the others themselves."""
        if principal.kind == "peer" and any(request.scope == "network" for request in requests):
            raise Unauthorized("a peer searches this node only: use scope local")
        return self._network.search(requests)

    def put(self, name: str, rows: pa.Table, principal: Principal) -> PutResult:
        """Write rows, all or none; durable on return."""
        count = self._memory.add_table(rows, table=name)
        return PutResult(count, self._memory.version(name))
