"""Version folders: written whole, verified, shared where equal, and lazily read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from aios_node.engine.errors import Corrupt, DataError, HashMismatch, NotFound, StorageError
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.weights import folder as module
from aios_node.engine.weights.folder import VersionFolder, read_folder, verify_folder, write_folder
from aios_node.engine.weights.loader import LazyWeightDict, WeightLoader
from aios_node.engine.weights.manifest import build_manifest, tensor_hash
from aios_node.engine.weights.parquet import write_shard

SHARD = 2054
"""Bytes of the first three tensors, to the byte."""

FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b"[]"}


def weights() -> dict[str, Tensor]:
    random = np.random.default_rng(9)
    plain: dict[str, Tensor] = {
        f"layer.{number}.weight": random.normal(size=(16, 16)).astype(np.float32) for number in range(6)
    }
    return plain | {"bias": np.ones(3, np.float16), "step": np.array(7)}


def written(path: Path, **options: Any) -> VersionFolder:
    return write_folder(path / "v1", weights(), FILES, shard_bytes=SHARD, **options)


def test_a_version_comes_back(tmp_path: Path) -> None:
    folder = written(tmp_path, parents=["ab" * 32], recipe={"quant": "int8"})
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "config.json", "manifest.json", "shards.json", "tokenizer.json", "weights-00001-of-00004.parquet",
        "weights-00002-of-00004.parquet", "weights-00003-of-00004.parquet", "weights-00004-of-00004.parquet",
    ]  # fmt: skip
    again = read_folder(folder.path)
    assert (again.manifest, again.shards) == (folder.manifest, folder.shards)
    assert again.version == build_manifest(weights(), FILES, parents=["ab" * 32], recipe={"quant": "int8"}).version
    assert {name: again.read_file(name) for name in again.files} == FILES
    with again.weights() as found:
        assert list(found) == sorted(weights())
        assert found.nbytes == sum(tensor.nbytes for tensor in weights().values())
        assert all(tensor_hash(found[name]) == tensor_hash(tensor) for name, tensor in weights().items())
        assert found.hashes == {entry.name: entry.sha256 for entry in folder.manifest.tensors}
        assert found.raw("bias") == np.ones(3, np.float16).tobytes()
    assert verify_folder(folder.path).version == folder.version


def test_shards_are_grouped_by_the_names_order_and_size(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert [shard.tensors for shard in folder.shards] == [
        ("bias", "layer.0.weight", "layer.1.weight"),
        ("layer.2.weight", "layer.3.weight"),
        ("layer.4.weight", "layer.5.weight"),
        ("step",),
    ]
    large = write_folder(tmp_path / "v2", weights(), {}, shard_bytes=10)
    assert [len(shard.tensors) for shard in large.shards] == [1] * 8
    assert write_folder(tmp_path / "v3", {}, {}).shards == ()
    assert len(write_folder(tmp_path / "v4", weights(), FILES).shards) == 1


def test_equal_shards_are_shared_with_the_version_before(tmp_path: Path) -> None:
    old = written(tmp_path)
    changed = weights() | {"layer.3.weight": np.zeros((16, 16), np.float32)}
    new = write_folder(tmp_path / "v2", changed, FILES, shard_bytes=SHARD, reuse=old.path)
    same = [(old.path / a.file).samefile(new.path / b.file) for a, b in zip(old.shards, new.shards, strict=True)]
    assert same == [True, False, True, True]
    assert verify_folder(new.path).version != old.version
    assert verify_folder(old.path).version == old.version


def test_shards_are_copied_where_links_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written(tmp_path)

    def no_links(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    new = write_folder(tmp_path / "v2", weights(), FILES, shard_bytes=SHARD, reuse=old)
    assert not (old.path / old.shards[0].file).samefile(new.path / new.shards[0].file)
    assert verify_folder(new.path).version == old.version


def test_a_damaged_shard_is_not_shared(tmp_path: Path) -> None:
    old = written(tmp_path)
    file = old.path / old.shards[1].file
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    file.write_bytes(damaged)
    new = write_folder(tmp_path / "v2", weights(), FILES, shard_bytes=SHARD, reuse=old)
    assert verify_folder(new.path).version == old.version


def test_quantised_versions_come_back(tmp_path: Path) -> None:
    quantised = ArrowQuantizer(presets()["int4"]).quantize(weights())
    folder = write_folder(
        tmp_path / "v", quantised, FILES, recipe=presets()["int4"].to_json(),
        derived_from={"model": "m", "version": "ab" * 32},
    )  # fmt: skip
    assert verify_folder(folder.path).manifest.quant == "int4"
    with read_folder(folder.path).weights() as found:
        assert all(tensor_hash(found[name]) == tensor_hash(tensor) for name, tensor in quantised.items())


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(StorageError):
        written(tmp_path)
    assert verify_folder(folder.path) == folder


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: (p / "manifest.json").unlink(), NotFound, "manifest.json"),
        (lambda p: (p / "shards.json").unlink(), NotFound, "shards.json"),
        (lambda p: (p / "config.json").unlink(), NotFound, "config.json"),
        (lambda p: (p / "weights-00002-of-00004.parquet").unlink(), NotFound, "weights-00002"),
        (lambda p: (p / "config.json").write_bytes(b"{}"), Corrupt, "2 bytes instead of 8"),
        (lambda p: (p / "config.json").write_bytes(b'{"a": 2}'), HashMismatch, "config.json"),
        (lambda p: flip(p / "weights-00001-of-00004.parquet", 700), HashMismatch, "weights-00001"),
        (lambda p: (p / "manifest.json").write_bytes(b"{}"), Corrupt, "manifest"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(file="../v1/x.parquet")), Corrupt, "no shard"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(file="/etc/passwd")), Corrupt, "no shard"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(file=3)), Corrupt, "no shard"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(sha256="")), Corrupt, "sha256"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(bytes=5)), Corrupt, "instead of 5"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(bytes="5")), Corrupt, "wrong type"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(tensors=[1])), Corrupt, "wrong type"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(tensors=["bias"])), Corrupt, "exactly"),
        (lambda p: rewrite(p / "shards.json", lambda s: s[0].update(more=1)), Corrupt, "list of shards"),
        (lambda p: rewrite(p / "shards.json", lambda s: s.append(s[0])), Corrupt, "twice"),
        (lambda p: rewrite(p / "shards.json", lambda s: s.pop()), Corrupt, "exactly"),
        (lambda p: (p / "shards.json").write_bytes(b"[" * 100_000), Corrupt, "list of shards"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(
    tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    folder = written(tmp_path)
    damage(folder.path)
    with pytest.raises(error, match=message) as caught:
        verify_folder(folder.path)
    assert type(caught.value) is error


def test_shards_of_another_version_are_refused(tmp_path: Path) -> None:
    """Sizes, names and the shard list fit; the tensors are others."""
    folder = written(tmp_path)
    other = weights() | {"bias": np.zeros(3, np.float16)}
    swapped = write_folder(tmp_path / "v2", other, FILES, shard_bytes=SHARD)
    (folder.path / folder.shards[0].file).write_bytes((swapped.path / swapped.shards[0].file).read_bytes())
    with pytest.raises(Corrupt, match="differ about tensor 'bias'"):
        read_folder(folder.path).weights()


def test_a_tensor_that_changed_under_its_hash_is_found(tmp_path: Path) -> None:
    """Even when the shard list was changed along with the shard."""
    folder = written(tmp_path)
    shard = folder.path / folder.shards[0].file
    index = json.loads(pq.read_metadata(shard).metadata[b"aios.index"])
    flip(shard, index["bias"]["offsets"]["data"])
    rewrite(folder.path / "shards.json", lambda s: s[0].update(sha256=module.file_sha256(shard)))
    with pytest.raises(HashMismatch, match="tensor 'bias'"):
        verify_folder(folder.path)


def test_the_loader_opens_folders_files_and_says_when_there_are_none(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with WeightLoader(folder.path).open() as found:
        assert list(found) == sorted(weights())
    with WeightLoader(str(folder.path / folder.shards[0].file)).open() as found:
        assert list(found) == list(folder.shards[0].tensors)
        assert found.file_of("bias") == folder.shards[0].file
        assert "bias" in found
        assert 3 not in found
        with pytest.raises(KeyError):
            found["layer.5.weight"]
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound, match="neither a Parquet file nor a folder"):
            WeightLoader(missing).open()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.parquet", {"w": np.ones(2)})
    with pytest.raises(Corrupt, match=r"'w' is in two files: .*a\.parquet and .*b\.parquet"):
        WeightLoader(tmp_path).open()


def test_no_file_stays_open(tmp_path: Path) -> None:
    folder = written(tmp_path)

    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = open_files()
    for _ in range(20):
        with read_folder(folder.path).weights() as found:
            assert isinstance(found, LazyWeightDict)
            assert [found[name].nbytes for name in found]
        verify_folder(folder.path)
    flip(folder.path / folder.shards[3].file, 1)
    for _ in range(20):
        with pytest.raises(DataError):
            read_folder(folder.path).weights()
    assert open_files() <= before
