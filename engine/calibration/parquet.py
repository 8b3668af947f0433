"""Texts from a column of a Parquet file, in bounded batches.

Arrow ends the whole process on some damaged files, so footer and pages of the column are read and compared
with the file before Arrow decodes them (see weights.footer and weights.pages).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aios_node.engine.calibration.arrow import array_texts, text_columns
from aios_node.engine.calibration.columns import text_column
from aios_node.engine.errors import TooLarge
from aios_node.engine.weights.footer import Chunk, data_end, read_row_groups
from aios_node.engine.weights.pages import check_pages
from aios_node.engine.weights.shard import map_file, naming, parquet_errors, release

MAX_ROWS = 2**26
MAX_CHUNK_BYTES = 2**29
"""A row group's texts once decompressed; this is what reading takes in memory at most."""

_ROWS_AT_ONCE = 1024


def parquet_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The texts of one column, top to bottom; empty rows do not count.

    Raises Corrupt, TooLarge, BadRequest (no column of texts, or several without a usual name), NotFound.
    """
    mapped = map_file(path)
    try:
        with naming(path):
            yield from _mapped_texts(path, mapped, column)
    finally:
        release(mapped)


def _mapped_texts(path: Path, mapped: mmap.mmap, column: str | None) -> Iterator[str]:
    data_end(mapped)
    with parquet_errors(), pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)), pre_buffer=False) as file:
        name = text_column(str(path), text_columns(file.schema_arrow), column)
    groups = read_row_groups(mapped, max_rows=MAX_ROWS, only=name)
    for group in groups:
        for chunk in group.chunks.values():
            _check(mapped, chunk, group.rows, name)
    # As a dictionary, a text that many rows repeat takes its place in memory once.
    with parquet_errors():
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)), pre_buffer=False, read_dictionary=[name])
    with file:
        for number, group in enumerate(groups):
            if group.rows and name in group.chunks:
                yield from _group_texts(file, number, name)


def _group_texts(file: pq.ParquetFile, number: int, name: str) -> Iterator[str]:
    with parquet_errors():
        batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[number], columns=[name], use_threads=False)
    while True:
        with parquet_errors():
            batch = next(batches, None)
        if batch is None:
            return
        yield from array_texts(batch.column(0))


def _check(mapped: mmap.mmap, chunk: Chunk, rows: int, name: str) -> None:
    if chunk.raw_bytes > MAX_CHUNK_BYTES:
        raise TooLarge(f"column {name[:80]!a} has {chunk.raw_bytes} bytes in one row group; at most {MAX_CHUNK_BYTES}")
    # A dictionary counts its values as well.
    with naming(f"column {name[:80]!a}"), memoryview(mapped) as whole, whole[chunk.start : chunk.end] as pages:
        check_pages(pages, 2 * rows, MAX_CHUNK_BYTES)
