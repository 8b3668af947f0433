"""Writing and opening one Parquet file of weights.

Files are plain Parquet V2 (see layout) that any reader reads: a row group per tensor, uncompressed, one
page per column, no dictionary. Two things make them fast here: a tensor's bytes are the last ones of its
column chunk, and padding between row groups puts them at multiples of 64 in the file, so that a mapped
file *is* the tensors (see mapped).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from aios_node import __version__
from aios_node.engine.errors import TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.weights.disk import disk_errors, sync_file
from aios_node.engine.weights.layout import (
    FORMAT,
    FORMAT_KEY,
    INDEX_KEY,
    SCHEMA_V2,
    WRITER_KEY,
    RowHeader,
    header_of,
    row_of,
)
from aios_node.engine.weights.manifest import MAX_TENSORS, tensor_hash
from aios_node.engine.weights.mapped import MappedShard, has_places, index_entry
from aios_node.engine.weights.names import check_tensor_name
from aios_node.engine.weights.rows import RowShard
from aios_node.engine.weights.shard import ParquetMap, Shard, map_file, naming

ALIGNMENT = 64
"""Every tensor's bytes start at a multiple of this: enough for any dtype and any SIMD load."""

MAX_VALUE_BYTES = 2**31 - 2**16
"""Parquet counts the bytes of a page in 31 bits, and a value cannot be cut over pages."""


@dataclass(frozen=True)
class ShardInfo:
    """One written file: plain name, size, sha256 (hex) of its bytes, names of its tensors in order."""

    file: str
    bytes: int
    sha256: str
    tensors: tuple[str, ...]


def write_shard(path: Path, tensors: Mapping[str, Tensor], hashes: Mapping[str, str] | None = None) -> ShardInfo:
    """Write tensors, in the mapping's order, as a new Parquet V2 file whose content is durable on return.

    ``hashes`` are the tensors' hashes where they are known already. Raises TooLarge for a tensor of 2 GiB or
    more, BadWeights for names and dtypes that cannot be stored, StorageFull and StorageError; leaves no file then.
    """
    for name in tensors:
        check_tensor_name(name)
    if len(tensors) > MAX_TENSORS:
        raise TooLarge(f"{len(tensors)} tensors do not fit in one file; at most {MAX_TENSORS}")
    known = hashes or {}
    with disk_errors(path, "write"), path.open("xb") as file:
        try:
            sink = _HashingSink(file)
            index = _write_rows(sink, tensors, known)
            sync_file(file)
        except BaseException:
            path.unlink()
            raise
    return ShardInfo(path.name, sink.position, sink.sha256, tuple(index))


def open_shard(path: Path) -> Shard:
    """Open a Parquet file of weights, V2 or V1; its index is read and checked, no tensor is.

    Raises NotFound, Corrupt, BadWeights or TooLarge.
    """
    mapped = map_file(path)
    with naming(path):
        file = ParquetMap(path, mapped)
        try:
            # An index without places (another writer's idea of one) does not help: such files are read row by row.
            return MappedShard.open(file) if has_places(file.index) else RowShard.open(file)
        except BaseException:
            file.close()
            raise


def _write_rows(sink: _HashingSink, tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> dict[str, object]:
    index: dict[str, object] = {}
    stream = pa.PythonFile(sink, mode="w")
    writer = _writer(stream)
    try:
        for number, (name, tensor) in enumerate(tensors.items()):
            row, header = _row(name, tensor)
            places = _places(row, header)
            stream.write(bytes(-(sink.position + places["data"]) % ALIGNMENT))
            offsets = {column: sink.position + place for column, place in places.items()}
            writer.write_table(row)
            index[name] = index_entry(header, known.get(name) or tensor_hash(tensor), number, offsets)
        writer.add_key_value_metadata(
            {
                FORMAT_KEY: FORMAT,
                WRITER_KEY: f"aios-node {__version__} (pyarrow {pa.__version__})".encode(),
                INDEX_KEY: json.dumps(index, separators=(",", ":")).encode(),
            }
        )
        writer.close()
    finally:
        writer.is_open = False  # after a failed write, closing again would only fail again
    return index


def _row(name: str, tensor: Tensor) -> tuple[pa.Table, RowHeader]:
    parts = (tensor.codes, tensor.scales) if isinstance(tensor, QuantizedTensor) else (tensor,)
    if any(part.nbytes > MAX_VALUE_BYTES for part in parts):
        raise TooLarge(
            f"tensor {name!r} has {tensor.nbytes} bytes; Parquet holds {MAX_VALUE_BYTES} in one value: "
            "split it or quantise it"
        )
    with naming(f"tensor {name!r}"):
        return row_of(name, tensor), header_of(name, tensor)


def _places(row: pa.Table, header: RowHeader) -> dict[str, int]:
    """How far into its row group each payload of a row begins: found by writing it to nowhere."""
    stream = pa.MockOutputStream()
    found: list[pq.FileMetaData] = []
    with _writer(stream, found) as writer:
        start = stream.tell()
        writer.write_table(row)
    group = found[0].row_group(0)
    columns = {column: group.column(SCHEMA_V2.get_field_index(column)) for column in header.payload_sizes}
    return {
        name: column.data_page_offset + column.total_compressed_size - header.payload_sizes[name] - start
        for name, column in columns.items()
    }


def _writer(stream: pa.NativeFile, found: list[pq.FileMetaData] | None = None) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        stream,
        SCHEMA_V2,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        metadata_collector=found,
    )


class _HashingSink:
    """What Arrow writes to: counts and hashes the bytes on their way into the file."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.position = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.position += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
