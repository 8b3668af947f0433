"""Parquet weights from other writers, and version 1: any page layout, compression or grouping of rows.

Tensors are read through Arrow, one row after the other: walking a file in its order reads it once, any other
order starts the row group again. Every page is walked before Arrow sees it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aios_node.engine.errors import Corrupt, TooLarge
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.footer import Chunk, RowGroup, read_row_groups
from aios_node.engine.weights.layout import MAX_TEXT_BYTES, PAYLOADS, SCHEMA_V2, RowHeader, check_types
from aios_node.engine.weights.pages import check_pages
from aios_node.engine.weights.shard import ParquetMap, Shard, naming, parquet_errors, unique

_FREE_BYTES = 64 * 2**20
_MAX_RATIO = 256
"""A column chunk may decompress to this many times its size, or to _FREE_BYTES; weights never come close."""

_AT_ONCE_BYTES = 8 * 2**20
"""Describing columns are read in batches that are no larger than this, whatever a dictionary repeats."""

_SMALL = frozenset(SCHEMA_V2.names) - frozenset(PAYLOADS)
_TEXTS = frozenset(field.name for field in SCHEMA_V2 if pa.types.is_string(field.type))

_VALUES_PER_ROW = 33  # a shape has at most 32 sides; an empty one counts as one value


class RowShard(Shard):
    """A file whose tensors are rows in row groups of any form."""

    def __init__(
        self, file: ParquetMap, headers: Mapping[str, RowHeader], places: Mapping[str, tuple[int, int]]
    ) -> None:
        self.path = file.path
        self.headers = headers
        self.hashes: Mapping[str, str] = {}
        self._file: ParquetMap | None = file
        self._places = places
        self._lock = threading.Lock()
        self._reading: Iterator[tuple[tuple[int, int], pa.RecordBatch]] = iter(())
        self._reached = (-1, -1)

    @classmethod
    def open(cls, file: ParquetMap) -> RowShard:
        """Read and check all that describes the tensors. Raises Corrupt, BadWeights, TooLarge."""
        check_types(file.arrow.schema_arrow)
        groups = read_row_groups(file.mapped)
        for group in groups:
            for name, chunk in group.chunks.items():
                _check_chunk(file, group.rows, name, chunk)
        return cls(file, *_headers(file, groups))

    def tensor(self, name: str) -> Tensor:
        """The tensor, copied out of its row."""
        header = self.headers[name]
        with self._lock, naming(f"{self.path}: tensor {name!r}"):
            row = self._row(self._places[name])
            return header.assemble({column: _value(row, column, size) for column, size in header.payload_sizes.items()})

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            file, self._file, self._reading = self._file, None, iter(())
        if file is not None:
            file.close()

    def _row(self, place: tuple[int, int]) -> pa.RecordBatch:
        """Read on to this row, or start again from its row group when it was passed."""
        if self._file is None:
            raise ValueError(f"{self.path} was closed")
        if self._reached[0] != place[0] or self._reached >= place:
            self._reading = _one_by_one(self._file, place[0])
        for reached, row in self._reading:
            self._reached = reached
            if reached == place:
                return row
        raise Corrupt("the file ends before this row")


def _one_by_one(file: ParquetMap, group: int) -> Iterator[tuple[tuple[int, int], pa.RecordBatch]]:
    """The payload columns of a row group, row by row: a dictionary page that repeats one large value in many
    rows never becomes more than one of them."""
    columns = [name for name in PAYLOADS if name in file.columns]
    with parquet_errors():
        batches = file.arrow.iter_batches(1, row_groups=[group], columns=columns, use_threads=False)
        for number, batch in enumerate(batches):
            yield (group, number), batch


def _check_chunk(file: ParquetMap, rows: int, name: str, chunk: Chunk) -> None:
    """Compare what the pages claim with what this chunk can hold."""
    limit = max(_FREE_BYTES, _MAX_RATIO * chunk.size)
    if chunk.raw_bytes > limit:
        raise TooLarge(f"column {name[:80]!a} claims {chunk.raw_bytes} bytes; at most {limit} are believed")
    values = 2 * rows * (_VALUES_PER_ROW if name == "shape" else 1)  # a dictionary counts its values as well
    with naming(f"column {name[:80]!a}"), file.part(chunk.start, chunk.end) as pages:
        check_pages(pages, values, limit)


def _headers(file: ParquetMap, groups: list[RowGroup]) -> tuple[dict[str, RowHeader], dict[str, tuple[int, int]]]:
    headers: list[RowHeader] = []
    places: dict[str, tuple[int, int]] = {}
    for number, group in enumerate(groups):
        for row, values in enumerate(_small_rows(file, number, group) if group.rows else ()):
            headers.append(RowHeader.parse(values))
            places[headers[-1].name] = (number, row)
    return unique(headers), places


def _small_rows(file: ParquetMap, number: int, group: RowGroup) -> Iterator[dict[str, Any]]:
    """The describing columns of a row group; texts are measured before they become Python objects."""
    columns = [name for name in file.columns if name in _SMALL]
    if missing := set(columns) - set(group.chunks):
        raise Corrupt(f"row group {number} lacks column {min(missing)!r}")
    # Any row may hold the largest value of a dictionary: as many at once as are harmless even then.
    at_once = max(1, _AT_ONCE_BYTES // max(1, *(group.chunks[name].raw_bytes for name in columns)))
    with parquet_errors():
        for batch in file.arrow.iter_batches(at_once, row_groups=[number], columns=columns, use_threads=False):
            for name in _TEXTS.intersection(columns):
                lengths = pc.call_function("binary_length", [batch[name]])
                longest = pc.call_function("max", [lengths]).as_py() or 0
                if longest > MAX_TEXT_BYTES:
                    raise Corrupt(f"column {name!r} holds a text of {longest} bytes; at most {MAX_TEXT_BYTES}")
            yield from batch.to_pylist()


def _value(row: pa.RecordBatch, column: str, size: int) -> NDArray[np.uint8]:
    """The bytes of one value."""
    value = row[column][0].as_buffer() if column in row.schema.names else None
    if value is None or value.size != size:
        raise Corrupt(f"{size} bytes of {column} are needed; the file holds {value.size if value else 'none'}")
    return np.frombuffer(value, np.uint8)
