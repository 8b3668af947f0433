"""The footer of a Parquet file: where its column chunks lie, with every claim compared to the file.

Reads the row groups itself (see thrift for why). Knows nothing about tensors.

Format: https://github.com/apache/parquet-format (FileMetaData in parquet.thrift).
"""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass
from typing import Any

from aios_node.engine.errors import Corrupt, TooLarge
from aios_node.engine.weights.manifest import MAX_TENSORS
from aios_node.engine.weights.thrift import Struct, read_struct, whole

MAX_FOOTER_BYTES = 256 * 2**20
MAX_WALKED_BYTES = 16 * 2**20
"""Footers of other writers are walked field by field; 16 MiB describe some 10,000 tensors."""

_MAGIC = b"PAR1"
_TRAILER = 8
_ROW_GROUPS = 4
_COLUMNS, _ROWS = 1, 3
_FILE, _DESCRIPTION = 1, 3
_PATH, _VALUES, _RAW_SIZE, _STORED_SIZE, _DATA_AT, _DICTIONARY_AT = 3, 5, 6, 7, 9, 11


@dataclass(frozen=True)
class Chunk:
    """Where a column chunk lies: bytes [start, end) of the file; bytes once decompressed."""

    start: int
    end: int
    raw_bytes: int

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class RowGroup:
    """Rows, and a chunk for each top-level column."""

    rows: int
    chunks: dict[str, Chunk]


def data_end(mapped: mmap.mmap) -> int:
    """Where the footer begins. Raises Corrupt when this is no whole Parquet file."""
    if len(mapped) < len(_MAGIC) + _TRAILER or mapped[:4] != _MAGIC or mapped[-4:] != _MAGIC:
        raise Corrupt("not a Parquet file, or one that was cut off")
    length = int.from_bytes(mapped[-_TRAILER:-4], "little")
    if length > min(MAX_FOOTER_BYTES, len(mapped) - len(_MAGIC) - _TRAILER):
        raise Corrupt(f"the footer claims {length} bytes, more than there can be")
    return len(mapped) - _TRAILER - length


def read_row_groups(mapped: mmap.mmap, *, max_rows: int | None = None, only: str | None = None) -> list[RowGroup]:
    """All row groups; their chunks lie before the footer and share no byte. Raises Corrupt, TooLarge.

    ``max_rows``: None for MAX_TENSORS. ``only``: the one column to look at, whatever the others are.
    """
    max_rows = MAX_TENSORS if max_rows is None else max_rows
    end = data_end(mapped)
    if len(mapped) - end > MAX_WALKED_BYTES:
        raise TooLarge(f"the footer has {len(mapped) - end} bytes; at most {MAX_WALKED_BYTES} are read")
    fields, _ = read_struct(mapped[end:-_TRAILER])
    groups = [_row_group(raw, end, only) for raw in _structs(fields.get(_ROW_GROUPS))]
    if sum(group.rows for group in groups) > max_rows:
        raise TooLarge(f"the file claims more than {max_rows} rows")
    spans = sorted((chunk.start, chunk.end) for group in groups for chunk in group.chunks.values())
    for (_, before), (start, _) in itertools.pairwise(spans):
        if start < before:
            raise Corrupt("two columns claim the same bytes")
    return groups


def _row_group(raw: Struct, end: int, only: str | None) -> RowGroup:
    rows = whole(raw, _ROWS)
    chunks: dict[str, Chunk] = {}
    for column in _structs(raw.get(_COLUMNS)) if rows else ():
        name, described = _described(column)
        if only not in (None, name):
            continue
        chunk = _chunk(name, described, end)
        if name in chunks:
            raise Corrupt(f"column {name[:80]!a} comes twice or holds several values")
        chunks[name] = chunk
    return RowGroup(rows, chunks)


def _described(column: Struct) -> tuple[str, Struct]:
    described = column.get(_DESCRIPTION)
    if _FILE in column or not isinstance(described, dict):
        raise Corrupt("a column lies in another file or is not described")
    path = described.get(_PATH)
    if not isinstance(path, list) or not path or not isinstance(path[0], bytes):
        raise Corrupt("a column has no name")
    return path[0].decode("utf-8", "replace"), described


def _chunk(name: str, described: Struct, end: int) -> Chunk:
    start = whole(described, _DATA_AT)
    if described.get(_DICTIONARY_AT) is not None:
        start = min(start, whole(described, _DICTIONARY_AT) or start)
    chunk = Chunk(start, start + whole(described, _STORED_SIZE), whole(described, _RAW_SIZE))
    if not len(_MAGIC) <= chunk.start <= chunk.end <= end:
        raise Corrupt(f"column {name[:80]!a} claims bytes {chunk.start} to {chunk.end}, beyond the data")
    return chunk


def _structs(value: Any) -> list[Struct]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Corrupt("the footer lacks its row groups or columns")
    return value
