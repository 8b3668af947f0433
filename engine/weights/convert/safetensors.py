"""safetensors files, in and out: a JSON header with the place of every tensor, then their bytes.

Reads the format itself: a mapped view per tensor, bfloat16 and float8 included, every bound checked.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aios_node.engine.errors import BadWeights, Corrupt, TooLarge
from aios_node.engine.quant.blocks import Tensor, dense, dtype_name
from aios_node.engine.quant.dtypes import raw_bytes
from aios_node.engine.weights.convert.source import ModelSource, check_weights
from aios_node.engine.weights.disk import disk_errors, sync_file
from aios_node.engine.weights.layout import RowHeader
from aios_node.engine.weights.loader import LazyWeightDict
from aios_node.engine.weights.names import check_tensor_name
from aios_node.engine.weights.shard import Shard, map_file, naming, release
from aios_node.engine.weights.stored import expected_nbytes

MAX_HEADER_BYTES = 100_000_000
"""The limit that the format's own library has."""

# Names in the file, in the order in which its library lays tensors out (last first).
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_NAMES = {numpy: name for name, numpy in _DTYPES.items()}
_ORDER = {numpy: place for place, numpy in enumerate(_DTYPES.values())}
_PREFIX = 8


def import_file(path: Path) -> ModelSource:
    """Import one file; its tensors stay mapped. Raises NotFound, Corrupt, BadWeights, TooLarge."""
    weights = LazyWeightDict([SafetensorsFile.open(path)])
    try:
        with naming(path):
            check_weights(weights)
    except BaseException:
        weights.close()
        raise
    return ModelSource(weights, {}, "weights")


class SafetensorsFile(Shard):
    """A mapped safetensors file."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.hashes: Mapping[str, str] = {}
        self._mapped: mmap.mmap | None = mapped
        self._starts: dict[str, int] = {}
        self.headers = self._parse(mapped)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Map a file and check its header. Raises NotFound, StorageError, Corrupt, BadWeights, TooLarge."""
        mapped = map_file(path)
        with naming(path):
            return cls(path, mapped)

    def tensor(self, name: str) -> Tensor:
        """The tensor as a read-only view of the file (a copy where it lies unaligned)."""
        if self._mapped is None:
            raise ValueError(f"{self.path} was closed")
        header = self.headers[name]
        with naming(f"{self.path}: tensor {name!r}"):
            return header.assemble({"data": np.frombuffer(self._mapped, np.uint8, header.nbytes, self._starts[name])})

    def close(self) -> None:
        """Let go of the file; views that were handed out stay valid."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            release(mapped)

    def _parse(self, mapped: mmap.mmap) -> dict[str, RowHeader]:
        raw, start = _header(mapped)
        headers = []
        end = 0
        for name, entry in sorted(raw.items(), key=lambda item: _offsets(*item)):
            header = _tensor_header(name, entry)
            offsets = _offsets(name, entry)
            if offsets != (end, end + header.nbytes):
                raise Corrupt(f"tensor {name!r} claims bytes {offsets}; {end} to {end + header.nbytes} are expected")
            end += header.nbytes
            self._starts[name] = start + offsets[0]
            headers.append(header)
        if start + end != len(mapped):
            raise Corrupt(f"the tensors need {start + end} bytes; the file has {len(mapped)}")
        return {header.name: header for header in headers}


def export_file(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a new safetensors file, laid out as the format's own library does; durable on return.

    Tensors keep every bit; quantised ones are dequantised. Raises BadWeights for what the format cannot hold,
    StorageFull, StorageError; leaves no file then.
    """
    layout = {name: (dtype_name(weights[name]), tuple(weights[name].shape)) for name in weights}
    for name, (dtype, _) in layout.items():
        check_tensor_name(name)
        if dtype not in _NAMES or name == "__metadata__":
            raise BadWeights(f"tensor {name!r} of dtype {dtype} cannot be written to a safetensors file")
    names = sorted(layout, key=lambda name: (-_ORDER[layout[name][0]], name))
    with disk_errors(path, "write"), path.open("xb") as file:
        try:
            _write(file, names, layout, weights)
            sync_file(file)
        except BaseException:
            path.unlink()
            raise


def _write(
    file: BinaryIO, names: list[str], layout: Mapping[str, tuple[str, tuple[int, ...]]], weights: Mapping[str, Tensor]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        start, end = end, end + expected_nbytes(dtype, shape, "none", -1, 0)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _PREFIX)
    if len(text) > MAX_HEADER_BYTES:
        raise TooLarge(f"the header would have {len(text)} bytes; a safetensors file allows {MAX_HEADER_BYTES}")
    file.write(len(text).to_bytes(_PREFIX, "little") + text)
    for name in names:
        file.write(raw_bytes(dense(weights[name])).data)


def _header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header's entries without metadata, and where the tensors' bytes begin."""
    length = int.from_bytes(mapped[:_PREFIX], "little")
    if len(mapped) < _PREFIX or length > len(mapped) - _PREFIX:
        raise Corrupt("not a safetensors file, or one that was cut off")
    if length > MAX_HEADER_BYTES:
        raise TooLarge(f"the header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        raw = json.loads(mapped[_PREFIX : _PREFIX + length], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"the header is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(raw, dict):
        raise Corrupt("the header is not a JSON object")
    raw.pop("__metadata__", None)
    return raw, _PREFIX + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Corrupt("the header names a tensor or a member twice")
    return found


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(each) is int for each in offsets):
        raise Corrupt(f"tensor {name[:80]!a} has no proper data_offsets")
    return offsets[0], offsets[1]


def _tensor_header(name: str, entry: Mapping[str, Any]) -> RowHeader:
    check_tensor_name(name)
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise BadWeights(f"tensor {name!r} has dtype {str(dtype)[:40]!r}; supported are: {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise Corrupt(f"the shape of tensor {name!r} is not a list of numbers")
    nbytes = expected_nbytes(_DTYPES[dtype], tuple(shape), "none", -1, 0)
    return RowHeader(name, _DTYPES[dtype], tuple(shape), "none", -1, 0, nbytes)
