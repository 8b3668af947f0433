"""Zero-copy tensors out of the Parquet files that this project writes.

Such a file holds every value uncompressed in one page of its own, so a tensor's bytes are the last ones
of its column chunk, preceded by their length in four bytes. They are handed out as views of the map:
nothing is read until somebody looks at the numbers.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.engine.errors import Corrupt
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.layout import PAYLOADS, SCHEMA_V2, RowHeader
from aios_node.engine.weights.pages import check_pages
from aios_node.engine.weights.shard import Chunk, Footer, Shard, naming, parquet_errors, release, unique

_LENGTH = 4
_MAX_SMALL_BYTES = 64 * 1024
"""A column chunk that describes one tensor; names and shapes are far smaller."""


class MappedShard(Shard):
    """A file of this project's layout."""

    def __init__(self, path: Path, mapped: mmap.mmap, headers: Mapping[str, RowHeader]) -> None:
        self.path = path
        self.headers = headers
        self.hashes: Mapping[str, str] = {}
        self._mapped: mmap.mmap | None = mapped
        self._ends: dict[str, dict[str, int]] = {}

    @classmethod
    def open(cls, footer: Footer) -> MappedShard:
        """Read and check all that describes the tensors. Raises Corrupt, BadWeights, TooLarge."""
        _check_chunks(footer)
        headers = _headers(footer)
        shard = cls(footer.path, footer.mapped, headers)
        shard.hashes = _hashes(footer.index or {}, headers)
        for chunks, header in zip(footer.chunks, headers.values(), strict=True):
            _check_payloads(footer, chunks, header)
            shard._ends[header.name] = {column: chunks[column].end for column in header.payload_sizes}
        footer.parquet.close()
        return shard

    def tensor(self, name: str) -> Tensor:
        """The tensor as read-only views of the file (small scales are copied where they lie unaligned)."""
        header, ends = self.headers[name], self._ends[name]
        if self._mapped is None:
            raise ValueError(f"{self.path} was closed")
        with naming(f"{self.path}: tensor {name!r}"):
            return header.assemble(
                {
                    column: np.frombuffer(self._mapped, np.uint8, size, ends[column] - size)
                    for column, size in header.payload_sizes.items()
                }
            )

    def close(self) -> None:
        """Let go of the file; views that were handed out stay valid."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            release(mapped)


def _check_chunks(footer: Footer) -> None:
    """One tensor per row group, everything plain, and nothing but payloads large."""
    for number, chunks in enumerate(footer.chunks):
        if footer.rows(number) != 1:
            raise Corrupt(f"row group {number} holds {footer.rows(number)} rows; one tensor each is expected")
        for name, chunk in chunks.items():
            size = chunk.end - chunk.start
            if not chunk.plain:
                raise Corrupt(f"column {name!r:.80} of row group {number} is compressed; plain pages are expected")
            if name not in PAYLOADS and size > _MAX_SMALL_BYTES:
                raise Corrupt(f"column {name!r:.80} of row group {number} takes {size} bytes to describe one tensor")
            if name == "shape":  # the only list: a few bytes could claim billions of values
                with footer.pages(chunk) as pages:
                    check_pages(pages, chunk.values, size)


def _headers(footer: Footer) -> dict[str, RowHeader]:
    """One header per row group, in order."""
    small = [name for name in SCHEMA_V2.names if name not in PAYLOADS]
    with parquet_errors():
        rows = footer.parquet.read(columns=small, use_threads=False).to_pylist()
    return unique(RowHeader.parse(row) for row in rows)


def _check_payloads(footer: Footer, chunks: Mapping[str, Chunk], header: RowHeader) -> None:
    """The bytes that the header needs are there, and the file says as many."""
    for column, size in header.payload_sizes.items():
        chunk = chunks.get(column)
        if chunk is None or chunk.end - chunk.start < size + _LENGTH:
            raise Corrupt(f"tensor {header.name!r} needs {size} bytes of {column}; the file holds fewer")
        before = chunk.end - size - _LENGTH
        length = int.from_bytes(footer.mapped[before : before + _LENGTH], "little")
        if length != size:
            raise Corrupt(f"tensor {header.name!r} needs {size} bytes of {column}; the file says {length}")


def _hashes(index: Mapping[str, Mapping[str, Any]], headers: Mapping[str, RowHeader]) -> dict[str, str]:
    for number, (name, header) in enumerate(headers.items()):
        entry = index.get(name, {})
        if (entry.get("row_group"), entry.get("bytes")) != (number, header.nbytes):
            raise Corrupt(f"the index contradicts the columns about tensor {name!r}")
    if len(index) != len(headers):
        raise Corrupt(f"the index names {len(index)} tensors; the file holds {len(headers)}")
    return {name: str(index[name]["sha256"]) for name in headers}
