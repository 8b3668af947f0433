"""Exchanges that answer row for row: texts for vectors, queries for hits.

They answer batch by batch on the calling thread: a client that writes much before it reads is
stopped by TCP, so it should read as it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from aios_node.engine.errors import BadRequest, choices
from aios_node.flight.batches import read_batches, read_schema, write_batch
from aios_node.flight.calls import Call
from aios_node.flight.limits import Limits, require_size
from aios_node.flight.ports import ComputePort, MemoryPort, Principal, SearchRequest, SearchResult
from aios_node.flight.queries import check_vector, result_schema

ENCODE_SCHEMA = pa.schema([pa.field("embedding", pa.list_(pa.float32()))])
"""Answers of an encode exchange, row for row; ``app_metadata`` names ``{model, version}`` per batch."""


def encode(compute: ComputePort, model: str, reader: Any, writer: Any, call: Call, limits: Limits) -> None:
    """Answer each batch of texts with one batch of vectors."""
    schema = read_schema(reader, call)
    _require_text(schema, "text")
    writer.begin(ENCODE_SCHEMA)
    for batch in read_batches(reader, call, limits):
        require_size(batch.num_rows, limits.batch_rows, "a batch of texts (rows)")
        texts = _texts(batch, "text")
        vectors, version = compute.encode(model, texts)
        meta = json.dumps({"model": model, "version": version}).encode()
        write_batch(writer, call, _vectors_batch(vectors), meta)


def _vectors_batch(vectors: Any) -> Any:
    count, dimension = vectors.shape
    values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * dimension)
    return pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(offsets, values)], schema=ENCODE_SCHEMA)


def search(
    memory: MemoryPort,
    common: SearchRequest,
    principal: Principal,
    reader: Any,
    writer: Any,
    call: Call,
    limits: Limits,
) -> None:
    """Answer each batch of queries (column ``vector`` or ``text``) with one batch of hits.

    ``query`` is the row number over the whole stream.
    """
    schema = read_schema(reader, call)
    kind = _query_column(schema)
    fields = result_schema(common)
    writer.begin(pa.schema([pa.field("query", pa.int64()), *fields]))
    first = 0
    for batch in read_batches(reader, call, limits):
        require_size(batch.num_rows, limits.batch_rows, "a batch of queries (rows)")
        require_size(batch.num_rows * common.k, limits.hits, "a batch of queries (rows times k)")
        requests = [replace(common, **{kind: value}) for value in _queries(batch, kind, limits)]
        results = memory.search(requests, principal) if requests else []
        meta = json.dumps(_completeness(results)).encode()
        write_batch(writer, call, _hits_batch(results, first, fields), meta)
        first += batch.num_rows


def _query_column(schema: Any) -> str:
    kinds = [name for name in ("vector", "text") if name in schema.names]
    if len(kinds) != 1:
        raise BadRequest("searches come as rows with one column: 'vector' (list of float) or 'text'")
    if kinds[0] == "text":
        _require_text(schema, "text")
        return "text"
    kind = _field(schema, "vector").type
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise BadRequest(f"the column 'vector' must be a list of float, not {kind}")
    return "vector"


def _queries(batch: Any, kind: str, limits: Limits) -> Iterator[Any]:
    if kind == "text":
        yield from _texts(batch, "text")
        return
    for vector in batch.column("vector").to_pylist():
        yield check_vector(vector, limits, "every vector")


def _hits_batch(results: Sequence[SearchResult], first: int, fields: Any) -> Any:
    tables = []
    for row, result in enumerate(results):
        hits = result.hits.select(fields.names).cast(fields)
        query = pa.array(np.full(hits.num_rows, first + row, dtype=np.int64))
        tables.append(hits.add_column(0, pa.field("query", pa.int64()), query))
    schema = pa.schema([pa.field("query", pa.int64()), *fields])
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _completeness(results: Sequence[SearchResult]) -> dict[str, Any]:
    missing = sorted({name for result in results for name in result.missing})
    return {"complete": all(result.complete for result in results), "missing": missing}


def _field(schema: Any, name: str) -> Any:
    if schema.names.count(name) != 1:
        raise BadRequest(f"the stream needs one column {name!r}: {choices(name, schema.names)}")
    return schema.field(name)


def _require_text(schema: Any, name: str) -> None:
    kind = _field(schema, name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise BadRequest(f"the column {name!r} must be text, not {kind}")


def _texts(batch: Any, name: str) -> list[str]:
    column = batch.column(name)
    if column.null_count:
        raise BadRequest("every row needs a text, but one is null")
    found: list[str] = column.to_pylist()
    return found
