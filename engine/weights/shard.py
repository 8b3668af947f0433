"""What every opened file of weights offers, and the one way into a Parquet file that may be hostile.

The footer is read here, with every size compared to the file's before anything is allocated by it.
Knows nothing about tensors' bytes (see mapped and rows).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aios_node.engine.errors import Corrupt, DataError, TooLarge
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.disk import disk_errors
from aios_node.engine.weights.layout import INDEX_KEY, RowHeader, format_of
from aios_node.engine.weights.manifest import MAX_TENSORS
from aios_node.engine.weights.names import check_sha256

MAX_FOOTER_BYTES = 256 * 2**20
_MAGIC = b"PAR1"
_TRAILER = 8


class Shard(ABC):
    """An opened file of weights. Safe to share between threads."""

    path: Path
    headers: Mapping[str, RowHeader]
    """Every tensor in it, by name, in the file's order."""
    hashes: Mapping[str, str]
    """What the file says its tensors hash to; empty where it says nothing. Not recomputed here."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """The tensor; read-only, a view of the file where that is possible."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Views that were handed out stay valid; the last one releases it."""


@dataclass(frozen=True)
class Chunk:
    """Where a column chunk lies: bytes [start, end) of the file, values it holds, bytes once decompressed."""

    start: int
    end: int
    values: int
    raw_bytes: int
    plain: bool  # neither compressed nor with a dictionary


class Footer:
    """A mapped Parquet file with its footer; all chunks are known to lie inside the file, without overlap."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.mapped = mapped
        self.end = _data_end(mapped)
        with parquet_errors():
            self.parquet = pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)), pre_buffer=False)
        self.metadata = self.parquet.metadata
        self.format = format_of(self.parquet.schema_arrow.names, self.metadata.metadata or {})
        self._leaves = _leaves(self.metadata.schema)
        self.chunks = [self._row_group(number) for number in range(self._row_groups())]
        self._check_overlap()
        self.index = _index(self.metadata.metadata or {})

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.mapped)

    def rows(self, number: int) -> int:
        """Rows in a row group."""
        rows: int = self.metadata.row_group(number).num_rows
        return rows

    @contextlib.contextmanager
    def pages(self, chunk: Chunk) -> Iterator[memoryview]:
        """The bytes of a chunk, released at the end."""
        with memoryview(self.mapped) as whole, whole[chunk.start : chunk.end] as part:
            yield part

    def close(self) -> None:
        """Release the map, unless views of it are still in use: then the last one does."""
        self.parquet.close()
        release(self.mapped)

    def _row_groups(self) -> int:
        count: int = self.metadata.num_row_groups
        rows = self.metadata.num_rows if count > MAX_TENSORS else sum(self.rows(number) for number in range(count))
        if max(rows, count) > MAX_TENSORS:
            raise TooLarge(f"{rows} rows in {count} row groups; at most {MAX_TENSORS} are read")
        return count

    def _row_group(self, number: int) -> dict[str, Chunk]:
        group = self.metadata.row_group(number)
        if group.num_rows < 0:
            raise Corrupt(f"row group {number} claims {group.num_rows} rows")
        if not group.num_rows:
            return {}
        return {name: self._chunk(group.column(leaf)) for name, leaf in self._leaves.items()}

    def _chunk(self, column: Any) -> Chunk:
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset)
        end = start + column.total_compressed_size
        if column.file_path or not len(_MAGIC) <= start <= end <= self.end:
            raise Corrupt(f"column {column.path_in_schema!r:.80} claims bytes {start} to {end}, beyond the data")
        if column.num_values < 0 or column.total_uncompressed_size < 0:
            raise Corrupt(f"column {column.path_in_schema!r:.80} claims a negative size")
        plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
        return Chunk(start, end, column.num_values, column.total_uncompressed_size, plain)

    def _check_overlap(self) -> None:
        """A file cannot mean more than it holds: no byte belongs to two chunks."""
        spans = sorted((chunk.start, chunk.end) for group in self.chunks for chunk in group.values())
        for (_, end), (start, _) in itertools.pairwise(spans):
            if start < end:
                raise Corrupt("two columns claim the same bytes")


def read_footer(path: Path) -> Footer:
    """Map a Parquet file and read its footer. Raises NotFound, StorageError, Corrupt, TooLarge."""
    with disk_errors(path, "open"), path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise Corrupt(f"{path} is empty") from None
    with naming(path):
        return Footer(path, mapped)


@contextlib.contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Put the place in front of what was found wrong there."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{where}: {error.message}") from None


def release(mapped: mmap.mmap) -> None:
    """Unmap a file now, or when the last view of it goes."""
    with contextlib.suppress(BufferError):
        mapped.close()


@contextlib.contextmanager
def parquet_errors() -> Iterator[None]:
    """Whatever Arrow says about a damaged file, as Corrupt."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise Corrupt(f"not a readable Parquet file: {str(error)[:200]}") from None


def unique(headers: Iterable[RowHeader]) -> dict[str, RowHeader]:
    """Headers by name. Raises Corrupt for a name that comes twice."""
    found: dict[str, RowHeader] = {}
    for header in headers:
        if header.name in found:
            raise Corrupt(f"tensor {header.name!r} is in the file twice")
        found[header.name] = header
    return found


def _data_end(mapped: mmap.mmap) -> int:
    """Where the footer begins."""
    if len(mapped) < len(_MAGIC) + _TRAILER or mapped[:4] != _MAGIC or mapped[-4:] != _MAGIC:
        raise Corrupt("not a Parquet file, or one that was cut off")
    length = int.from_bytes(mapped[-_TRAILER:-4], "little")
    if length > min(MAX_FOOTER_BYTES, len(mapped) - len(_MAGIC) - _TRAILER):
        raise Corrupt(f"the footer claims {length} bytes, more than there can be")
    return len(mapped) - _TRAILER - length


def _leaves(schema: Any) -> dict[str, int]:
    """Top-level column name -> number of its one leaf."""
    leaves: dict[str, int] = {}
    for number in range(len(schema)):
        name = schema.column(number).path.split(".")[0]
        if name in leaves:
            raise Corrupt(f"column {name!r:.80} comes twice or holds several values")
        leaves[name] = number
    return leaves


def _index(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]] | None:
    """The writer's index, tensor -> row group, bytes, sha256; None in files of others."""
    if INDEX_KEY not in metadata:
        return None
    try:
        index: dict[str, dict[str, Any]] = json.loads(metadata[INDEX_KEY])
        for entry in index.values():
            check_sha256(entry["sha256"], "a hash in the index")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Corrupt(f"the metadata {INDEX_KEY.decode()} is not an index of tensors") from None
    return index
