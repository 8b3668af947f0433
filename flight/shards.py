"""Weights on the wire: the raw bytes of a shard file, or one row per tensor. Copies nothing it can map.

Both forms are handed to Flight as Tables over memory-mapped files, so that C++ sends them without
touching Python: a generator slows down to a third while another thread holds the interpreter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from aios_node.engine.errors import AiosError, Corrupt
from aios_node.engine.weights.layout import SCHEMA_V2, row_of
from aios_node.engine.weights.parquet import open_shard
from aios_node.flight.batches import BATCH_BYTES
from aios_node.flight.ports import ShardFile

RAW_SCHEMA = pa.schema([pa.field("offset", pa.int64()), pa.field("data", pa.binary())])
"""A shard file's bytes: ``data`` belongs at ``offset``. Batches come in order and without gaps."""


ROW_SCHEMA = SCHEMA_V2
"""One row per tensor, as in Parquet V2; each batch holds one row."""


def row_table(shard: ShardFile) -> Any:
    """The tensors of a shard file as a Table of one-row batches; data are views of the mapped file.

    Raises ``Corrupt`` or ``BadWeights`` when the file is not what it should be.
    """
    try:
        opened = open_shard(shard.path)
        try:
            rows = [row_of(name, opened.tensor(name)) for name in opened.headers]
        finally:
            opened.close()  # views stay valid
    except AiosError as error:  # clients know files by their plain names
        raise type(error)(error.message.replace(str(shard.path), shard.file)) from None
    return pa.concat_tables(rows) if rows else ROW_SCHEMA.empty_table()


def raw_batches(shard: ShardFile) -> int:
    """How many batches, of one row each, the raw bytes of a shard make."""
    return -(-shard.bytes // BATCH_BYTES)


def raw_table(shard: ShardFile) -> Any:
    """The bytes of a shard file as a Table of one-row batches of 1 MiB, all views of the mapped file.

    The map outlives the file's name: a collected version still streams to its end.
    Raises ``Corrupt`` when the file is not as long as its record says.
    """
    contents = _map(shard)
    batches = []
    for start in range(0, shard.bytes, BATCH_BYTES):
        size = min(BATCH_BYTES, shard.bytes - start)
        offsets = pa.py_buffer(np.array([0, size], dtype="<i4"))
        data = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, contents.slice(start, size)])
        batches.append(pa.RecordBatch.from_arrays([pa.array([start], pa.int64()), data], schema=RAW_SCHEMA))
    return pa.Table.from_batches(batches, RAW_SCHEMA)


def _map(shard: ShardFile) -> Any:
    with pa.memory_map(str(shard.path)) as file:
        if file.size() != shard.bytes:
            raise Corrupt(
                f"the shard {shard.file} has {file.size()} bytes where {shard.bytes} were recorded: "
                "the version must be restored from a peer"
            )
        return file.read_buffer(shard.bytes)
