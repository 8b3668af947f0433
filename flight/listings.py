"""What there is to fetch: FlightInfos with their tickets, and what a ticket leads back to."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import AiosError, BadRequest, UnknownModel, UnknownVersion
from aios_node.flight import shards
from aios_node.flight.calls import Call
from aios_node.flight.descriptors import MemoryTarget, SearchTarget, Target, WeightsTarget
from aios_node.flight.limits import Limits, require_size
from aios_node.flight.ports import ModelVersion, Ports, SearchRequest, SearchResult, ShardFile, TableInfo
from aios_node.flight.queries import parse_search, result_schema, search_fields
from aios_node.flight.tickets import TicketSigner

Fetchable = WeightsTarget | MemoryTarget | SearchTarget


class Catalog:
    """Describes weights, tables and searches, and redeems the tickets it gave out."""

    def __init__(self, ports: Ports, limits: Limits, tickets: TicketSigner) -> None:
        self._weights = ports.weights
        self._memory = ports.memory
        self._limits = limits
        self._tickets = tickets

    def flights(self, prefix: str, readable: Callable[[str], bool]) -> list[Any]:
        """FlightInfos of all models (active version) and tables whose path begins with ``prefix``."""
        infos = []
        for model in self._weights.models():
            path = f"weights/{model}"
            if path.startswith(prefix) and readable(path):
                try:
                    version = self._weights.resolve(model, None)
                except (UnknownModel, UnknownVersion):  # gone since it was listed
                    continue
                infos.append(self._weights_info(version, False, _path(path)))
        for table in self._memory.tables():
            path = f"memory/{table.name}"
            if path.startswith(prefix) and readable(path):
                infos.append(self._table_info(table, _path(path)))
        return infos

    def info(self, target: Target, descriptor: Any) -> Any:
        """The FlightInfo of what a descriptor asks for. Raises what the ports raise for unknown names."""
        if isinstance(target, WeightsTarget):
            version = self._weights.resolve(target.model, target.version)
            return self._weights_info(version, target.raw, descriptor)
        if isinstance(target, MemoryTarget):
            return self._table_info(self._memory.table(target.table), descriptor)
        if isinstance(target, SearchTarget):
            table = self._memory.table(target.request.table)
            endpoint = self._endpoint({"search": search_fields(target.request)})
            return fl.FlightInfo(
                result_schema(target.request), descriptor, [endpoint], app_metadata=_version(table.version)
            )
        raise BadRequest("this can only be exchanged: use do_exchange")

    def schema(self, target: Target) -> Any:
        """The schema that fetching the target yields."""
        if isinstance(target, WeightsTarget):
            self._weights.resolve(target.model, target.version)
            return shards.RAW_SCHEMA if target.raw else shards.ROW_SCHEMA
        if isinstance(target, MemoryTarget):
            return self._memory.table(target.table).schema
        if isinstance(target, SearchTarget):
            self._memory.table(target.request.table)
            return result_schema(target.request)
        raise BadRequest("this can only be exchanged: use do_exchange")

    def _weights_info(self, version: ModelVersion, raw: bool, descriptor: Any) -> Any:
        endpoints = [self._shard_endpoint(version, shard, raw) for shard in version.shards]
        return fl.FlightInfo(
            shards.RAW_SCHEMA if raw else shards.ROW_SCHEMA,
            descriptor,
            endpoints,
            total_records=sum(map(shards.raw_batches, version.shards)) if raw else version.tensors,
            total_bytes=version.bytes,
            app_metadata=_version(version.version),
        )

    def _shard_endpoint(self, version: ModelVersion, shard: ShardFile, raw: bool) -> Any:
        content = {"model": version.model, "version": version.version, "file": shard.file, "raw": raw}
        meta = {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256}
        return self._endpoint({"shard": content}, meta)

    def _table_info(self, table: TableInfo, descriptor: Any) -> Any:
        return fl.FlightInfo(
            table.schema,
            descriptor,
            [self._endpoint({"table": table.name})],
            total_records=table.rows,
            total_bytes=table.bytes,
            app_metadata=_version(table.version),
        )

    def _endpoint(self, content: dict[str, Any], meta: dict[str, Any] | None = None) -> Any:
        ticket, expires = self._tickets.sign(content, self._limits.ticket_ttl)
        when = pa.scalar(dt.datetime.fromtimestamp(expires, dt.UTC), pa.timestamp("ns", tz="UTC"))
        # No locations: the client fetches over the connection it asked on.
        return fl.FlightEndpoint(
            ticket, [], expiration_time=when, app_metadata=json.dumps(meta) if meta is not None else ""
        )

    def redeem(self, ticket: bytes) -> tuple[Fetchable, str]:
        """What a ticket leads to, and for weights the shard file. Raises ``BadRequest`` or ``TooLarge``."""
        require_size(len(ticket), 2 * self._limits.command_bytes, "the ticket (bytes)")
        content = self._tickets.open(ticket)
        if "shard" in content:
            shard = content["shard"]
            return WeightsTarget(shard["model"], shard["version"], shard["raw"]), shard["file"]
        if "table" in content:
            return MemoryTarget(content["table"]), ""
        return SearchTarget(parse_search(content["search"], self._limits)), ""

    def shard(self, target: WeightsTarget, file: str, call: Call) -> Any:
        """The data of one shard, leased until the call ends. Raises ``UnknownVersion`` when it is gone."""
        if target.version is None:
            raise AiosError("a ticket without a version was signed")
        version = call.keep(self._weights.lease(target.model, target.version))
        for shard in version.shards:
            if shard.file == file:
                return shards.raw_table(shard) if target.raw else shards.row_table(shard)
        raise UnknownVersion(f"the version {version.version[:12]} of {target.model} has no shard {file!r} now")

    def hits(self, request: SearchRequest, result: SearchResult) -> Any:
        """The hits in the columns that were asked for."""
        fields = result_schema(request)
        return result.hits.select(fields.names).cast(fields)


def _path(path: str) -> Any:
    return fl.FlightDescriptor.for_path(*path.split("/"))


def _version(version: str | int) -> str:
    return json.dumps({"version": version})
