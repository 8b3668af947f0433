"""What every opened file of weights offers, and the one way into a Parquet file that may be hostile.

Knows nothing about where a file keeps its tensors (see mapped and rows).
"""

from __future__ import annotations

import contextlib
import json
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aios_node.engine.errors import Corrupt, DataError
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.disk import disk_errors
from aios_node.engine.weights.footer import data_end
from aios_node.engine.weights.layout import INDEX_KEY, RowHeader, format_of


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


class ParquetMap:
    """A mapped Parquet file of weights: its bytes, Arrow's reader over them, and this project's index if any.

    Arrow's reader decodes columns safely; its descriptions of row groups are never asked for (see thrift).
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.mapped = mapped
        self.end = data_end(mapped)
        with parquet_errors():
            self.arrow = pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)), pre_buffer=False)
            metadata: dict[bytes, bytes] = self.arrow.metadata.metadata or {}
            self.columns: list[str] = self.arrow.schema_arrow.names
        self.format = format_of(self.columns, metadata)
        self.index = _index(metadata)

    @contextlib.contextmanager
    def part(self, start: int, end: int) -> Iterator[memoryview]:
        """Some bytes of the file, released at the end."""
        with memoryview(self.mapped) as whole, whole[start:end] as part:
            yield part

    def close(self) -> None:
        """Unmap the file, unless views of it are still in use: then the last one does."""
        self.arrow.close()
        release(self.mapped)


def map_file(path: Path) -> mmap.mmap:
    """A read-only map of a whole file. Raises NotFound, StorageError, Corrupt for an empty one."""
    with disk_errors(path, "open"), path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise Corrupt(f"{path} is empty") from None


def release(mapped: mmap.mmap) -> None:
    """Unmap a file now, or when the last view of it goes."""
    with contextlib.suppress(BufferError):
        mapped.close()


@contextlib.contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Put the place in front of what was found wrong there."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{where}: {error.message}") from None


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


def _index(metadata: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    """The writer's index of tensors; None in files of others."""
    if INDEX_KEY not in metadata:
        return None
    try:
        index = json.loads(metadata[INDEX_KEY])
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise Corrupt(f"the metadata {INDEX_KEY.decode()} is not an index of tensors")
    return index
