"""Zero-copy tensors out of the Parquet files that this project writes.

Such a file holds every value uncompressed in one page of its own, preceded by its length in four bytes, and
its index says where. Tensors are handed out as views of the map: nothing is read until somebody looks at the
numbers, and the columns are not decoded at all.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.engine.errors import Corrupt
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.layout import RowHeader
from aios_node.engine.weights.names import check_sha256
from aios_node.engine.weights.shard import ParquetMap, Shard, naming, release, unique

LENGTH_BYTES = 4
"""Bytes of the length in front of every plain value."""


def index_entry(header: RowHeader, sha256: str, row_group: int, offsets: Mapping[str, int]) -> dict[str, Any]:
    """What the index says about one tensor: where it lies, what it is, and its hash."""
    codec = {} if header.scale_codec == "float32" else {"scale_codec": header.scale_codec}
    return {
        "row_group": row_group,
        "bytes": header.nbytes,
        "sha256": sha256,
        "dtype": header.dtype,
        "shape": list(header.shape),
        "quant_type": header.quant_type,
        "quant_axis": header.quant_axis,
        "group_size": header.group_size,
        **codec,
        "offsets": dict(offsets),
    }


def has_places(index: Mapping[str, Any] | None) -> bool:
    """Whether a file's index says where tensors lie; one without places is no help."""
    return index is not None and all(not isinstance(entry, dict) or "offsets" in entry for entry in index.values())


class MappedShard(Shard):
    """A file of this project's layout."""

    def __init__(
        self,
        path: Path,
        mapped: mmap.mmap,
        headers: Mapping[str, RowHeader],
        hashes: Mapping[str, str],
        offsets: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.path = path
        self.headers = headers
        self.hashes = hashes
        self._mapped: mmap.mmap | None = mapped
        self._offsets = offsets

    @classmethod
    def open(cls, file: ParquetMap) -> MappedShard:
        """Check all that the index says. Raises Corrupt, BadWeights, TooLarge."""
        index = file.index or {}
        headers = unique(_header(name, entry) for name, entry in index.items())
        hashes = {name: check_sha256(entry.get("sha256"), f"the hash of {name!r}") for name, entry in index.items()}
        offsets = {name: _offsets(header, index[name].get("offsets")) for name, header in headers.items()}
        _check_places(file, headers, offsets)
        file.arrow.close()
        return cls(file.path, file.mapped, headers, hashes, offsets)

    def tensor(self, name: str) -> Tensor:
        """The tensor as read-only views of the file (small scales are copied where they lie unaligned)."""
        header, offsets = self.headers[name], self._offsets[name]
        if self._mapped is None:
            raise ValueError(f"{self.path} was closed")
        with naming(f"{self.path}: tensor {name!r}"):
            return header.assemble(
                {
                    column: np.frombuffer(self._mapped, np.uint8, size, offsets[column])
                    for column, size in header.payload_sizes.items()
                }
            )

    def close(self) -> None:
        """Let go of the file; views that were handed out stay valid."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            release(mapped)


def _header(name: str, entry: Any) -> RowHeader:
    if not isinstance(entry, dict):
        raise Corrupt(f"the index says nothing about tensor {name[:80]!a}")
    header = RowHeader.of(name, entry)
    if entry.get("bytes") != header.nbytes:
        raise Corrupt(f"tensor {name!r} needs {header.nbytes} bytes; the index claims {str(entry.get('bytes'))[:40]}")
    return header


def _offsets(header: RowHeader, raw: Any) -> dict[str, int]:
    if not isinstance(raw, dict) or not all(type(raw.get(column)) is int for column in header.payload_sizes):
        raise Corrupt(f"the index does not say where tensor {header.name!r} lies")
    return {column: raw[column] for column in header.payload_sizes}


def _check_places(file: ParquetMap, headers: Mapping[str, RowHeader], offsets: Mapping[str, Mapping[str, int]]) -> None:
    """Every value lies between the file's start and its footer, after its length, and on nobody else's bytes."""
    spans = []
    for name, header in headers.items():
        for column, size in header.payload_sizes.items():
            start = offsets[name][column]
            if not LENGTH_BYTES <= start <= start + size <= file.end:
                raise Corrupt(f"tensor {name!r} claims bytes {start} to {start + size}, beyond the data")
            length = int.from_bytes(file.mapped[start - LENGTH_BYTES : start], "little")
            if length != size:
                raise Corrupt(f"tensor {name!r} needs {size} bytes of {column}; the file says {length}")
            spans.append((start - LENGTH_BYTES, start + size))
    for (_, end), (start, _) in itertools.pairwise(sorted(spans)):
        if start < end:
            raise Corrupt("two tensors claim the same bytes")
