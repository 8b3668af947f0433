"""A session over real version folders, packages and durable staging: everything but the network."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from sync_peers import Exchange, Fault, Node
from tensors import Weights

from aios_node.delta.chunks import TransferKey
from aios_node.delta.codec.body import Coding
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    FindStaged,
    PreparePackage,
    ReadChunk,
    ReleasePackage,
    StageChunk,
)
from aios_node.delta.offers import Offer, PackageInfo, Resume
from aios_node.delta.package.package import build_package, open_package
from aios_node.delta.staging.staging import Staging
from aios_node.engine.errors import HashMismatch
from aios_node.engine.weights.folder import VersionFolder, read_folder, write_folder

RNG = np.random.default_rng(3)
OLD: Weights = {f"layer.{index}": RNG.normal(size=(128, 96)).astype(np.float32) for index in range(8)}
NEW = OLD | {name: OLD[name] + np.float32(1e-4) for name in ("layer.2", "layer.5")}  # type: ignore[operator]
OTHER: Weights = {"w": RNG.normal(size=(100, 100)).astype(np.float32)}


@dataclass
class FileNode(Node):
    """A node on a disk: versions are folders, packages are files, staging is the real one."""

    root: Path = field(default_factory=Path)
    folders: dict[str, VersionFolder] = field(default_factory=dict)
    sources: dict[int, tuple[BinaryIO, TransferKey]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir()
        self.disk = Staging(self.root / "staging")

    def commit(self, model: str, weights: Any, *parents: str) -> str:
        folder = write_folder(self.root / f"v{len(self.folders)}", weights, {"config.json": b"{}"}, parents=parents)
        self.folders[folder.version] = folder
        self.versions[model, folder.version] = b""
        self.parents[folder.version] = parents
        return folder.version

    def offers(self) -> list[Offer]:
        return [Offer(model, version, self.parents[version]) for model, version in self.versions]

    def _findstaged(self, effect: FindStaged) -> Resume | None:
        transfer = self.disk.resume(effect.key)
        if transfer is None:
            return None
        with transfer:
            return Resume(transfer.sha256, transfer.missing())

    def _stagechunk(self, effect: StageChunk) -> None:
        with self.disk.open(effect.key, effect.package) as transfer:
            self.came_again += not transfer.write(effect.index, effect.data)

    def _committransfer(self, effect: CommitTransfer) -> None:
        with (
            self.disk.open(effect.key, effect.package) as transfer,
            transfer.assemble().open("rb") as file,
            open_package(file, find_base=self.folders.get) as package,
        ):
            made = self.commit(effect.key.model, package.weights, *package.manifest.parents)
        if made != effect.key.version:
            raise HashMismatch("another version came out")

    def _discardstaged(self, effect: DiscardStaged) -> None:
        self.disk.discard(effect.key)

    def _preparepackage(self, effect: PreparePackage) -> PackageInfo:
        file = (self.root / f"package-{effect.transfer}").open("w+b")
        self.sources[effect.transfer] = file, effect.key
        base = self.folders.get(effect.key.base or "")
        coding = Coding(codecs=effect.codecs)
        return build_package(file, base=base, target=self.folders[effect.key.version], coding=coding)

    def _readchunk(self, effect: ReadChunk) -> bytes:
        file, _ = self.sources[effect.transfer]
        file.seek(effect.offset)
        return file.read(effect.length)

    def _releasepackage(self, effect: ReleasePackage) -> None:
        self.sources.pop(effect.transfer)[0].close()


def pair(tmp_path: Path) -> tuple[FileNode, FileNode, str]:
    one, other = FileNode(root=tmp_path / "one"), FileNode(root=tmp_path / "other")
    old = one.commit("m", OLD)
    other.commit("m", OLD)
    new = one.commit("m", NEW, old)
    other.commit("n", OTHER)
    return one, other, new


@pytest.mark.parametrize("seed", range(6))
def test_versions_arrive_whole_after_cuts_at_any_point(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed).randrange
    one, other, new = pair(tmp_path)
    for _ in range(3):
        Exchange(one, other, faults={choose(25): Fault.CUT}).run(choose)
    Exchange(one, other).run(choose)
    assert set(one.versions) == set(other.versions)
    assert one.came_again == other.came_again == 0
    assert read_folder(other.folders[new].path).manifest == one.folders[new].manifest
    with other.folders[new].weights() as weights:
        assert np.array_equal(weights["layer.2"], NEW["layer.2"])  # type: ignore[arg-type]
    assert not one.sources
    assert not other.sources
    assert other.disk.list() == ()


def test_a_damaged_base_is_healed_by_a_full_copy(tmp_path: Path) -> None:
    one, other, new = pair(tmp_path)
    folder = other.folders[one.parents[new][0]]
    shard = folder.path / folder.shards[0].file
    data = bytearray(shard.read_bytes())
    with folder.weights() as weights:
        place = data.find(np.asarray(weights["layer.2"]).tobytes())
    assert place > 0
    data[place] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    _, right = Exchange(one, other).run()
    assert [(r.mode, r.error) for r in right.results if r.model == "m"] == [("delta", "no_base"), ("full", None)]
    assert other.folders[new].manifest == one.folders[new].manifest
