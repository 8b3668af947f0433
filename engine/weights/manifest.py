"""What a version of a model *is*: hashes of every tensor's meaning, parents, recipe and small files.

The id of a version is the sha256 of its manifest. Bytes of Parquet files do not enter: two writers lay the
same weights out differently. Knows nothing about who published a version or when (see delta.envelope).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from aios_node.engine.errors import AiosError, Corrupt, TooLarge
from aios_node.engine.quant.blocks import Tensor, dtype_name
from aios_node.engine.quant.dtypes import dtype_of
from aios_node.engine.weights.names import canonical_json, check_file_name, check_sha256, check_tensor_name
from aios_node.engine.weights.network import is_beside_network
from aios_node.engine.weights.stored import expected_nbytes, quant_of, scale_codec_of, stored_parts

FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_TENSORS = 200_000
MAX_PARENTS = 64
MAX_FILES = 64
MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a manifest. ``nbytes`` counts the data (or codes), scales and zero points, as they are stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quant_type: str
    quant_axis: int
    group_size: int
    sha256: str
    nbytes: int
    scale_codec: str = "float32"

    def __post_init__(self) -> None:
        check_tensor_name(self.name)
        check_sha256(self.sha256, f"the hash of tensor {self.name!r}")
        layout = (self.dtype, self.shape, self.quant_type, self.quant_axis, self.group_size, self.scale_codec)
        expected = expected_nbytes(*layout)
        if self.nbytes != expected:
            raise Corrupt(f"tensor {self.name!r} claims {self.nbytes} bytes; its shape needs {expected}")

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorEntry:
        """The entry that describes this tensor; hashes it."""
        quant_type, axis, group_size = quant_of(tensor)
        layout = (dtype_name(tensor), tuple(tensor.shape), quant_type, axis, group_size)
        return cls(name, *layout, tensor_hash(tensor), int(tensor.nbytes), scale_codec_of(tensor))

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON members; ``scale_codec`` only where it is not float32."""
        members = {**self.__dict__, "shape": list(self.shape)}
        if self.scale_codec == "float32":
            del members["scale_codec"]  # entries from before there was a choice keep their bytes
        return members


def tensor_hash(tensor: Tensor) -> str:
    """sha256 (hex) of what a tensor means.

    Over a canonical JSON header (dtype, group_size, quant_axis, quant_type, shape; scale_codec where it is not
    float32), a newline, the bytes in C order (or the packed codes), then scales and zero points as they are stored
    (float32; double4: steps, scale codes, zero codes), all little endian.
    """
    quant_type, axis, group_size = quant_of(tensor)
    dtype = dtype_name(tensor)
    dtype_of(dtype)
    header: dict[str, Any] = {
        "dtype": dtype,
        "group_size": group_size,
        "quant_axis": axis,
        "quant_type": quant_type,
        "shape": list(tensor.shape),
    }
    if scale_codec_of(tensor) != "float32":
        header["scale_codec"] = scale_codec_of(tensor)
    digest = hashlib.sha256(canonical_json(header) + b"\n")
    for part in stored_parts(tensor):
        digest.update(part.data)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """A small file that belongs to a version: tokenizer.json, config.json, ..."""

    sha256: str
    bytes: int


def file_entry(data: bytes) -> FileEntry:
    """The entry of a file with these bytes."""
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class Manifest:
    """All that makes two versions the same version. Tensors are sorted by name, parents by id.

    ``derived_from`` is ``{"model": name, "version": id}`` for a precision made from another model;
    ``recipe`` says how (see quant.recipe). Raises Corrupt, BadWeights or TooLarge when it cannot be.
    """

    tensors: tuple[TensorEntry, ...]
    parents: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    derived_from: Mapping[str, str] | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(sorted(self.tensors, key=lambda entry: entry.name)))
        object.__setattr__(self, "parents", tuple(sorted(self.parents)))
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        _check_names(self)
        _check_parents(self.parents)
        _check_derived_from(self.derived_from)
        _check_files(self.files)

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Tensors by name."""
        return MappingProxyType({entry.name: entry for entry in self.tensors})

    @cached_property
    def version(self) -> str:
        """The id of the version: sha256 (hex) of the manifest's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.tensors)

    @property
    def quant(self) -> str:
        """The coarsest quantisation among the network's tensors, or ``none``."""
        found = {entry.quant_type for entry in self.tensors if not is_beside_network(entry.name)}
        return next((name for name in ("int2", "int4", "int8") if name in found), "none")

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        data = canonical_json(
            {
                "format": FORMAT,
                "tensors": [entry.to_json() for entry in self.tensors],
                "parents": list(self.parents),
                "recipe": self.recipe,
                "derived_from": None if self.derived_from is None else dict(self.derived_from),
                "files": {name: entry.__dict__ for name, entry in self.files.items()},
            }
        )
        if len(data) > MAX_MANIFEST_BYTES:
            raise TooLarge(f"a manifest of {len(data)} bytes exceeds {MAX_MANIFEST_BYTES}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest. Raises Corrupt (or BadWeights, TooLarge) unless it is one in canonical form."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise TooLarge(f"a manifest of {len(data)} bytes exceeds {MAX_MANIFEST_BYTES}")
        try:
            manifest = _parse(json.loads(data))
            canonical = manifest.to_bytes()
        except AiosError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Corrupt(f"the manifest is not readable: {type(error).__name__}: {str(error)[:200]}") from None
        # Only one spelling has the right hash; this also refuses unknown keys, duplicates and disorder.
        if canonical != data:
            raise Corrupt("the manifest is not in canonical form")
        return manifest


def build_manifest(
    weights: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    *,
    parents: Iterable[str] = (),
    recipe: Mapping[str, Any] | None = None,
    derived_from: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of these weights and files. Hashes everything once."""
    return Manifest(
        tensors=tuple(TensorEntry.of(name, weights[name]) for name in sorted(weights)),
        parents=tuple(parents),
        recipe=recipe,
        derived_from=derived_from,
        files={name: file_entry(data) for name, data in files.items()},
    )


def _parse(raw: Any) -> Manifest:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise Corrupt(f"this is not a manifest of format {FORMAT}; a newer node may have written it")
    if len(raw["tensors"]) > MAX_TENSORS or len(raw["files"]) > MAX_FILES:
        raise TooLarge(f"a manifest may list {MAX_TENSORS} tensors and {MAX_FILES} files at most")
    recipe = raw["recipe"]
    if recipe is not None and not isinstance(recipe, dict):
        raise Corrupt("the manifest's recipe is not an object")
    return Manifest(
        tensors=tuple(_parse_entry(entry) for entry in raw["tensors"]),
        parents=tuple(check_sha256(parent, "a parent") for parent in raw["parents"]),
        recipe=recipe,
        derived_from=raw["derived_from"],
        files={name: FileEntry(**entry) for name, entry in raw["files"].items()},
    )


def _parse_entry(raw: dict[str, Any]) -> TensorEntry:
    texts = (raw["dtype"], raw["quant_type"], raw.get("scale_codec", ""))
    numbers = (*raw["shape"], raw["quant_axis"], raw["group_size"], raw["nbytes"])
    if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
        raise Corrupt(f"tensor {str(raw['name'])[:80]!a} has members of the wrong type")
    return TensorEntry(**{**raw, "shape": tuple(raw["shape"])})


def _check_names(manifest: Manifest) -> None:
    if len(manifest.tensors) > MAX_TENSORS:
        raise TooLarge(f"{len(manifest.tensors)} tensors exceed {MAX_TENSORS}")
    for before, after in zip(manifest.tensors, manifest.tensors[1:], strict=False):
        if before.name == after.name:
            raise Corrupt(f"tensor {after.name!r} is listed twice")


def _check_parents(parents: tuple[str, ...]) -> None:
    if len(parents) > MAX_PARENTS:
        raise TooLarge(f"{len(parents)} parents exceed {MAX_PARENTS}")
    for parent in parents:
        check_sha256(parent, "a parent")
    if len(set(parents)) != len(parents):
        raise Corrupt("a parent is listed twice")


def _check_derived_from(derived_from: Mapping[str, str] | None) -> None:
    if derived_from is None:
        return
    if set(derived_from) != {"model", "version"} or not all(type(value) is str for value in derived_from.values()):
        raise Corrupt("derived_from must have exactly a model name and a version")
    check_sha256(derived_from["version"], "the version in derived_from")
    if not 0 < len(derived_from["model"]) <= 256 or not derived_from["model"].isprintable():
        raise Corrupt("the model name in derived_from is not usable")


def _check_files(files: Mapping[str, FileEntry]) -> None:
    if len(files) > MAX_FILES:
        raise TooLarge(f"{len(files)} files exceed {MAX_FILES}")
    if len({name.lower() for name in files}) != len(files):
        raise Corrupt("two file names differ in upper and lower case only")
    for name, entry in files.items():
        check_file_name(name)
        check_sha256(entry.sha256, f"the hash of file {name!r}")
        if type(entry.bytes) is not int or not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise TooLarge(f"file {name!r} claims {entry.bytes} bytes; at most {MAX_FILE_BYTES} are allowed")
