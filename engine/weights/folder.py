"""A version folder: one version of a model on disk.

    manifest.json                     what the version is; its sha256 is the version's id
    weights-00001-of-00003.parquet    shards, in the order of tensor names
    shards.json                       the shards' sizes and hashes: a local matter, no part of the version
    config.json, tokenizer.json, ...  small files that belong to the version

Knows nothing about lineage, publishers or which version is active (see delta.store).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_node.engine.errors import BadWeights, Corrupt, HashMismatch
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.disk import disk_errors, file_sha256, read_file, sync_folder, write_file
from aios_node.engine.weights.loader import LazyWeightDict, open_files
from aios_node.engine.weights.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    build_manifest,
    file_entry,
    tensor_hash,
)
from aios_node.engine.weights.names import canonical_json, check_sha256
from aios_node.engine.weights.parquet import ShardInfo, write_shard

MANIFEST = "manifest.json"
SHARDS = "shards.json"
SHARD_BYTES = 32 * 2**20
"""A shard holds tensors of at most this many bytes together, or a single larger one."""

_SHARD_NAME = re.compile(r"weights-\d{5}-of-\d{5}\.parquet")
_MAX_SHARDS = 99_999


@dataclass(frozen=True)
class VersionFolder:
    """A version folder as its manifest and shard list describe it. Sizes were compared, hashes were not."""

    path: Path
    manifest: Manifest
    shards: tuple[ShardInfo, ...]

    @property
    def version(self) -> str:
        """The version's id."""
        return self.manifest.version

    @property
    def files(self) -> dict[str, Path]:
        """The small files, by name."""
        return {name: self.path / name for name in self.manifest.files}

    def read_file(self, name: str) -> bytes:
        """The content of a small file. Raises HashMismatch when it is not the version's."""
        entry = self.manifest.files[name]
        data = read_file(self.path / name, entry.bytes)
        if file_entry(data) != entry:
            raise HashMismatch(f"{self.path / name} does not have the hash that the manifest states")
        return data

    def weights(self) -> LazyWeightDict:
        """The tensors, mapped. Raises Corrupt when the shards hold others than the manifest lists."""
        weights = open_files(self.path / shard.file for shard in self.shards)
        try:
            _check_entries(self.manifest, weights)
        except BaseException:
            weights.close()
            raise
        return weights


def write_folder(
    path: Path,
    weights: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    *,
    parents: Iterable[str] = (),
    recipe: Mapping[str, Any] | None = None,
    derived_from: Mapping[str, str] | None = None,
    reuse: VersionFolder | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> VersionFolder:
    """Write a version folder; ``path`` must be empty or absent. All files are durable on return.

    Shards whose tensors are all the same in ``reuse`` become hard links to its files (copies where the
    file system has no links). Raises BadWeights, TooLarge, StorageFull, StorageError; what was written
    until then stays for the caller to remove.
    """
    manifest = build_manifest(weights, files, parents=parents, recipe=recipe, derived_from=derived_from)
    with disk_errors(path, "write"):
        path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_file(path / name, data)
    old = read_folder(reuse) if isinstance(reuse, Path) else reuse
    groups = _groups(manifest, shard_bytes)
    shards = tuple(
        _write_or_link(path / f"weights-{number:05}-of-{len(groups):05}.parquet", names, weights, manifest, old)
        for number, names in enumerate(groups, 1)
    )
    write_file(path / SHARDS, canonical_json([{**shard.__dict__, "tensors": list(shard.tensors)} for shard in shards]))
    write_file(path / MANIFEST, manifest.to_bytes())
    with disk_errors(path, "write"):
        sync_folder(path)
    return VersionFolder(path, manifest, shards)


def read_folder(path: Path) -> VersionFolder:
    """Read what describes a version folder. Raises NotFound, Corrupt (sizes, names), TooLarge."""
    manifest = Manifest.from_bytes(read_file(path / MANIFEST, MAX_MANIFEST_BYTES))
    shards = _parse_shards(read_file(path / SHARDS, MAX_MANIFEST_BYTES))
    expected = {shard.file: shard.bytes for shard in shards} | {
        name: entry.bytes for name, entry in manifest.files.items()
    }
    for name, size in expected.items():
        with disk_errors(path / name, "read"):
            found = (path / name).stat().st_size
        if found != size:
            raise Corrupt(f"{path / name} has {found} bytes instead of {size}: it was cut off or replaced")
    listed = [name for shard in shards for name in shard.tensors]
    if sorted(listed) != [entry.name for entry in manifest.tensors]:
        raise Corrupt(f"the shards of {path} do not hold exactly the tensors of its manifest")
    return VersionFolder(path, manifest, shards)


def verify_folder(path: Path) -> VersionFolder:
    """Recompute every hash of a version folder: files, shards and the meaning of every tensor.

    Raises HashMismatch naming the file or tensor, and whatever ``read_folder`` raises.
    """
    folder = read_folder(path)
    for name in folder.files:
        folder.read_file(name)
    for shard in folder.shards:
        if file_sha256(path / shard.file) != shard.sha256:
            raise HashMismatch(f"{path / shard.file} does not have the hash that {SHARDS} states")
    with folder.weights() as weights:
        for entry in folder.manifest.tensors:
            if tensor_hash(weights[entry.name]) != entry.sha256:
                raise HashMismatch(f"tensor {entry.name!r} in {path} does not have the hash that the manifest states")
    return folder


def _groups(manifest: Manifest, shard_bytes: int) -> list[tuple[str, ...]]:
    """Names per shard, filled in order: the same shapes always give the same shards."""
    groups: list[list[str]] = []
    room = 0
    for entry in manifest.tensors:
        if not groups or entry.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(entry.name)
        room -= entry.nbytes
    if len(groups) > _MAX_SHARDS:
        raise BadWeights(f"{len(groups)} shards are more than {_MAX_SHARDS}; use a larger shard size")
    return [tuple(group) for group in groups]


def _write_or_link(
    path: Path,
    names: tuple[str, ...],
    weights: Mapping[str, Tensor],
    manifest: Manifest,
    old: VersionFolder | None,
) -> ShardInfo:
    known = {name: manifest.entries[name].sha256 for name in names}
    if (shard := _same_shard(names, manifest, old)) and old:
        with disk_errors(path, "write"):
            _link(old.path / shard.file, path)
        return ShardInfo(path.name, shard.bytes, shard.sha256, names)
    return write_shard(path, {name: weights[name] for name in names}, known)


def _same_shard(names: tuple[str, ...], manifest: Manifest, old: VersionFolder | None) -> ShardInfo | None:
    """The old folder's shard that holds exactly these tensors, if its bytes are still what they were."""
    entries = [manifest.entries[name] for name in names]
    for shard in old.shards if old else ():
        if old and shard.tensors == names and [old.manifest.entries[name] for name in names] == entries:
            return shard if file_sha256(old.path / shard.file) == shard.sha256 else None
    return None


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        with source.open("rb") as read, target.open("xb") as write:
            shutil.copyfileobj(read, write, 2**20)
            write.flush()
            os.fsync(write.fileno())


def _parse_shards(data: bytes) -> tuple[ShardInfo, ...]:
    try:
        shards = tuple(ShardInfo(**{**raw, "tensors": tuple(raw["tensors"])}) for raw in json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Corrupt(f"{SHARDS} is not a list of shards") from None
    for shard in shards:
        if not isinstance(shard.file, str) or not _SHARD_NAME.fullmatch(shard.file):
            raise Corrupt(f"{SHARDS} names a file {str(shard.file)[:80]!a} that is no shard")
        check_sha256(shard.sha256, f"the hash of {shard.file}")
        if type(shard.bytes) is not int or not all(isinstance(name, str) for name in shard.tensors):
            raise Corrupt(f"{SHARDS} describes {shard.file} with values of the wrong type")
    if len({shard.file for shard in shards}) != len(shards):
        raise Corrupt(f"{SHARDS} names a file twice")
    return shards


def _check_entries(manifest: Manifest, weights: LazyWeightDict) -> None:
    """Shards tell the same as the manifest about every tensor: layout and stated hash."""
    headers, hashes = weights.headers, weights.hashes
    if set(headers) != set(manifest.entries):
        raise Corrupt("the shards hold other tensors than the manifest lists")
    for name, entry in manifest.entries.items():
        if {**headers[name].__dict__, "sha256": hashes.get(name)} != entry.__dict__:
            raise Corrupt(f"the shards and the manifest differ about tensor {name!r}")
