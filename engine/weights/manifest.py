"""A version's manifest: what a set of weights means, hashed independently of any file.

The version id is the sha256 of the manifest's canonical JSON. Each tensor is hashed by its meaning
(dtype, shape, layout, codes, scales, zero points), never by a file's bytes: two writers may lay out the
same weights differently. Who published a version, and when, stands in an envelope beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from aios_node.engine.errors import Corrupt, TooLarge
from aios_node.engine.quant.blocks import (
    BITS,
    QuantizedTensor,
    Tensor,
    element_count,
    numpy_dtype,
    packed_size,
    scale_grid,
)

FORMAT = 1
MAX_MANIFEST_BYTES = 64 << 20
MAX_TENSORS = 200_000
MAX_NAME = 512
MAX_FILES = 64
MAX_PARENTS = 64

_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RESERVED_FILES = {"manifest.json", "shards.json", "envelope.json"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: name, layout, sha256 of its meaning, bytes of its parts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quant_type: str
    quant_axis: int
    group_size: int
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class FileEntry:
    """A small file (tokenizer, config) that belongs to the version."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All that identifies a version. Tensors are sorted by name, parents by id."""

    tensors: tuple[TensorEntry, ...]
    parents: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    derived_from: Mapping[str, str] | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8."""
        tensors = sorted(self.tensors, key=lambda entry: entry.name)
        return canonical_json(
            {
                "format": FORMAT,
                "tensors": [_entry_to_json(entry) for entry in tensors],
                "parents": sorted(self.parents),
                "recipe": self.recipe,
                "derived_from": self.derived_from,
                "files": {name: {"sha256": f.sha256, "bytes": f.bytes} for name, f in self.files.items()},
            }
        )

    @cached_property
    def version(self) -> str:
        """The version id: 64 hex characters."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def by_name(self) -> dict[str, TensorEntry]:
        """Entries by tensor name."""
        return {entry.name: entry for entry in self.tensors}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors)

    @property
    def quant(self) -> str:
        """The precision people see: the lowest that any matrix has, ``none`` when nothing is quantised."""
        used = [entry.quant_type for entry in self.tensors if entry.quant_type != "none"]
        return min(used, key=lambda kind: BITS[kind], default="none")

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read and check a manifest. Raises Corrupt or TooLarge; accepts canonical bytes only."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise TooLarge(f"a manifest of {len(data)} bytes: at most {MAX_MANIFEST_BYTES} are accepted")
        try:
            manifest = _from_json(json.loads(data))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise Corrupt("the manifest is not what format 1 prescribes") from None
        if manifest.to_bytes() != data:
            raise Corrupt("the manifest is not in canonical form: its hash would not be stable")
        return manifest


def describe(name: str, tensor: Tensor) -> TensorEntry:
    """The manifest entry of a tensor; hashes all its bytes."""
    digest = tensor_hash(tensor)
    if isinstance(tensor, QuantizedTensor):
        layout = (tensor.quant_type, tensor.axis, tensor.group_size)
        return TensorEntry(name, tensor.dtype, tensor.shape, *layout, digest, tensor.nbytes)
    return TensorEntry(name, tensor.dtype.name, tensor.shape, "none", -1, 0, digest, tensor.nbytes)


def tensor_hash(tensor: Tensor) -> str:
    """sha256 (hex) of a tensor's meaning.

    Over: a canonical JSON header (dtype, shape, quant type, axis, group size) and a newline, then the
    values in C order, little endian; for quantised tensors the packed codes, scales and zero points.
    """
    if isinstance(tensor, QuantizedTensor):
        header: list[Any] = [tensor.dtype, list(tensor.shape), tensor.quant_type, tensor.axis, tensor.group_size]
        parts: list[np.ndarray[Any, Any]] = [tensor.codes, tensor.scales, tensor.zero_points]
    else:
        header = [tensor.dtype.name, list(tensor.shape), "none", -1, 0]
        parts = [tensor]
    digest = hashlib.sha256(canonical_json(header) + b"\n")
    for part in parts:
        digest.update(little_endian_bytes(part))
    return digest.hexdigest()


def little_endian_bytes(values: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order, little endian; no copy where it already lies so."""
    array = np.ascontiguousarray(values)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling only: sorted keys, no spaces, no NaN, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def check_file_name(name: str) -> str:
    """A plain file name that may lie in a version's folder. Raises Corrupt."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or ".." in name:
        raise Corrupt(
            f"file name {str(name)[:60]!r}: only plain names of letters, digits, '.', '_' and '-' are allowed"
        )
    if name in _RESERVED_FILES or name.endswith(".parquet"):
        raise Corrupt(f"file name {name!r} is reserved")
    return name


def check_tensor_name(name: str) -> str:
    """A tensor name: printable, at most 512 characters. Raises Corrupt."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Corrupt(f"tensor name {str(name)[:60]!r}: 1 to {MAX_NAME} printable characters are allowed")
    return name


def expected_bytes(dtype: str, shape: tuple[int, ...], quant_type: str, axis: int, group_size: int) -> int:
    """Bytes of a tensor's parts by its layout. Raises Corrupt for an impossible layout."""
    count = element_count(shape)
    if quant_type == "none":
        return count * numpy_dtype(dtype).itemsize
    channels, groups = scale_grid(shape, axis, group_size)
    return packed_size(count, BITS[quant_type]) + 8 * channels * groups


def _entry_to_json(entry: TensorEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "quant": [entry.quant_type, entry.quant_axis, entry.group_size],
        "sha256": entry.sha256,
        "bytes": entry.nbytes,
    }


def _from_json(value: dict[str, Any]) -> Manifest:
    if value["format"] != FORMAT or set(value) != {"format", "tensors", "parents", "recipe", "derived_from", "files"}:
        raise ValueError
    if max(
        len(value["tensors"]) // MAX_TENSORS, len(value["files"]) // MAX_FILES, len(value["parents"]) // MAX_PARENTS
    ):
        raise TooLarge("the manifest lists more tensors, files or parents than are accepted")
    tensors = tuple(_entry_from_json(entry) for entry in value["tensors"])
    _check_unique(entry.name for entry in tensors)
    return Manifest(
        tensors=tensors,
        parents=tuple(_hash(parent) for parent in value["parents"]),
        recipe=_mapping_or_none(value["recipe"]),
        derived_from=_origin(value["derived_from"]),
        files={check_file_name(name): _file_from_json(entry) for name, entry in value["files"].items()},
    )


def _entry_from_json(value: dict[str, Any]) -> TensorEntry:
    shape = tuple(_natural(size) for size in value["shape"])
    quant_type, axis, group_size = value["quant"]
    if quant_type != "none" and quant_type not in BITS:
        raise ValueError
    nbytes = _natural(value["bytes"])
    numpy_dtype(value["dtype"])
    if nbytes != expected_bytes(value["dtype"], shape, quant_type, axis, _natural(group_size)):
        raise Corrupt(f"tensor {str(value['name'])[:60]!r}: {nbytes} bytes do not fit its shape and type")
    name = check_tensor_name(value["name"])
    return TensorEntry(name, value["dtype"], shape, quant_type, axis, group_size, _hash(value["sha256"]), nbytes)


def _file_from_json(value: dict[str, Any]) -> FileEntry:
    return FileEntry(_hash(value["sha256"]), _natural(value["bytes"]))


def _origin(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if set(value) != {"model", "version"} or not isinstance(value["model"], str):
        raise ValueError
    return {"model": value["model"], "version": _hash(value["version"])}


def _mapping_or_none(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise ValueError
    return value


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _check_unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Corrupt(f"tensor {name[:60]!r} is listed twice")
        seen.add(name)
