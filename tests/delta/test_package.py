"""Packages: whole versions as one stream, full or as a delta, checked before anyone sees content."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Weights, hashes, quantized, random_bits, versions

from aios_node.delta.codec.body import Coding
from aios_node.delta.limits import Limits
from aios_node.delta.package.format import Settings
from aios_node.delta.package.package import build_package, open_package
from aios_node.engine.errors import Corrupt, DataError, HashMismatch, NoBase, TooLarge
from aios_node.engine.weights.folder import VersionFolder, read_folder, write_folder

RNG = np.random.default_rng(5)
FILES = {"config.json": b'{"a":1}', "tokenizer.json": b"tokens " * 500}
OLD: Weights = {
    "w": random_bits(RNG, "float32", (40, 30)),
    "v": random_bits(RNG, "float16", (20,)),
    "q": quantized(RNG, "int4", (8, 32), group=16),
    "gone": random_bits(RNG, "int64", (5,)),
}


def touched(weights: Weights) -> Weights:
    changed = weights["w"].copy()  # type: ignore[union-attr]
    changed.view(np.uint32)[0, :5] += 1
    kept = {name: tensor for name, tensor in weights.items() if name != "gone"}
    return kept | {"w": changed, "added": random_bits(RNG, "uint8", (7,))}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> VersionFolder:
    return write_folder(tmp_path_factory.mktemp("old") / "v", OLD, FILES)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, old: VersionFolder) -> VersionFolder:
    files = FILES | {"config.json": b'{"a":2}'}
    return write_folder(tmp_path_factory.mktemp("new") / "v", touched(OLD), files, parents=[old.version])


def content(folder: VersionFolder) -> dict[str, str]:
    with folder.weights() as weights:
        return hashes(weights)


def packed(base: VersionFolder | None, target: VersionFolder, envelope: bytes | None = b"sealed") -> bytes:
    out = io.BytesIO()
    info = build_package(out, base=base, target=target, envelope=envelope)
    data = out.getvalue()
    assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert info.full_bytes == target.manifest.nbytes + sum(e.bytes for e in target.manifest.files.values())
    return data


def test_a_delta_carries_the_version(tmp_path: Path, old: VersionFolder, new: VersionFolder) -> None:
    data = packed(old, new)
    with open_package(io.BytesIO(data), find_base={old.version: old}.get) as package:
        assert (package.mode, package.base, package.envelope) == ("delta", old.version, b"sealed")
        assert package.manifest == new.manifest
        assert hashes(package.weights) == content(new)
        assert package.files == {name: new.read_file(name) for name in new.files}
        made = write_folder(tmp_path / "v", package.weights, package.files, parents=package.manifest.parents)
    assert made.version == new.version


def test_a_full_package_stands_for_itself(tmp_path: Path, new: VersionFolder) -> None:
    data = packed(None, new, envelope=None)
    with open_package(io.BytesIO(data)) as package:
        assert (package.mode, package.base, package.envelope) == ("full", None, None)
        assert list(package.weights) == sorted(package.weights)
        assert hashes(package.weights) == content(new)
        assert set(package.files) == {"config.json", "tokenizer.json"}


def test_the_same_input_gives_the_same_bytes(old: VersionFolder, new: VersionFolder) -> None:
    again = read_folder(new.path)
    assert packed(old, new) == packed(old, again)
    assert packed(None, new) == packed(None, again)
    assert packed(old, new) != packed(old, new, envelope=b"other")


def test_sizes_of_what_changed_are_told(old: VersionFolder, new: VersionFolder) -> None:
    info = build_package(io.BytesIO(), base=old, target=new)
    entries = new.manifest.entries
    assert info.mode == "delta"
    assert info.changed_bytes == entries["w"].nbytes + entries["added"].nbytes
    full = build_package(io.BytesIO(), base=None, target=new)
    assert full.changed_bytes == new.manifest.nbytes
    assert info.bytes < full.bytes / 3


def test_files_that_the_base_has_are_not_sent_again(old: VersionFolder, new: VersionFolder) -> None:
    data = packed(old, new)
    settings = Settings.from_bytes(data[12 : 12 + int.from_bytes(data[8:12], "little")])
    assert settings.files == ("config.json",)
    assert b"tokens" not in data


def test_a_base_of_no_use_makes_a_full_package(tmp_path: Path, new: VersionFolder) -> None:
    foreign = write_folder(tmp_path / "v", {"w": random_bits(RNG, "float32", (40, 30))}, FILES)
    info = build_package(io.BytesIO(), base=foreign, target=new)
    assert (info.mode, info.base) == ("full", None)
    assert packed(foreign, new) == packed(None, new)


def test_a_delta_without_its_base_says_so(old: VersionFolder, new: VersionFolder) -> None:
    data = packed(old, new)
    for find in (None, lambda version: None, lambda version: new):
        with pytest.raises(NoBase, match="in full"):
            open_package(io.BytesIO(data), find_base=find)


def test_a_base_that_rotted_is_found_and_named(tmp_path: Path, old: VersionFolder, new: VersionFolder) -> None:
    data = packed(old, new)
    rotten = dict(OLD)
    rotten["w"] = random_bits(RNG, "float32", (40, 30))
    rotten["v"] = random_bits(RNG, "float16", (20,))
    other = write_folder(tmp_path / "v", rotten, FILES)
    claimed = VersionFolder(other.path, other.manifest, other.shards)

    class Rotten:
        manifest, version = old.manifest, old.version
        read_file, weights = old.read_file, claimed.weights

    with open_package(io.BytesIO(data), find_base=lambda version: Rotten()) as package:  # type: ignore[arg-type, return-value]
        for name in ("w", "v"):
            with pytest.raises(NoBase):
                package.weights[name]
        assert package.weights["added"].shape == (7,)


def test_a_tensor_that_is_not_the_promised_one_is_refused(new: VersionFolder) -> None:
    data = bytearray(packed(None, new))
    with open_package(io.BytesIO(data)) as package:
        place = package.weights._places["v"]
    data[place + 10] ^= 1  # inside of a raw block
    with open_package(io.BytesIO(data)) as package:
        with pytest.raises(HashMismatch, match="'v'"):
            package.weights["v"]
        assert package.weights["w"].shape == (40, 30)


def test_limits_hold(old: VersionFolder, new: VersionFolder) -> None:
    data = packed(None, new)
    for limits in (Limits(header_bytes=9), Limits(tensor_bytes=9), Limits(files_bytes=9), Limits(tensors=1)):
        with pytest.raises((TooLarge, Corrupt)):
            open_package(io.BytesIO(data), limits=limits)


def read_all(data: bytes, old: VersionFolder) -> dict[str, str]:
    with open_package(io.BytesIO(data), find_base={old.version: old}.get) as package:
        return hashes(package.weights)


@given(st.data())
def test_damage_gives_the_version_or_a_documented_error(
    old: VersionFolder, new: VersionFolder, draw: st.DataObject
) -> None:
    good = packed(draw.draw(st.sampled_from([old, None])), new, envelope=None)
    data = bytearray(good)
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, len(data) - 1))
        match draw.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                data[place] ^= 1 << draw.draw(st.integers(0, 7))
            case "insert":
                data[place:place] = draw.draw(st.binary(min_size=1, max_size=5))
            case _:
                del data[place + 1 :]
    with contextlib.suppress(DataError):
        assert read_all(bytes(data), old) == content(new)


def test_every_cut_and_every_addition_is_refused(old: VersionFolder, new: VersionFolder) -> None:
    for data in (packed(old, new), packed(None, new)):
        for length in range(0, len(data), 29):
            with pytest.raises(DataError):
                read_all(data[:length], old)
        with pytest.raises(Corrupt, match="bytes where its tensors end"):
            read_all(data + b"x", old)


def settings(version: str, /, **changes: object) -> bytes:
    known = {"mode": "full", "base": None, "version": version, "files": (), "coding": Coding()}
    return Settings(**(known | changes)).to_bytes()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ("../evil",)},
        {"files": (".hidden",)},
        {"files": ("manifest.json",)},
        {"mode": "delta"},
        {"base": "a" * 64},
        {"mode": "sparse"},
        {"version": "abc"},
    ],
)
def test_settings_are_read_strictly(changes: dict[str, object]) -> None:
    with pytest.raises(Corrupt):
        Settings.from_bytes(settings("a" * 64, **changes))


def sections(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of the sections before the body, without their lengths."""
    place = 8
    while True:
        length = int.from_bytes(data[place : place + 4], "little")
        yield place + 4, place + 4 + length
        place += 4 + length


def test_a_package_that_promises_another_version_is_refused(new: VersionFolder) -> None:
    data = packed(None, new)
    wrong = data.replace(new.version.encode(), b"0" * 64, 1)
    with pytest.raises(HashMismatch, match="promises"):
        open_package(io.BytesIO(wrong))


def test_files_are_exactly_those_that_the_manifest_calls_for(new: VersionFolder) -> None:
    data = packed(None, new)
    start, end = next(sections(data))
    for files in ((), ("config.json",), ("config.json", "extra.json", "tokenizer.json")):
        header = settings(new.version, files=files)
        forged = data[:8] + len(header).to_bytes(4, "little") + header + data[end:]
        with pytest.raises(Corrupt, match="exactly the files"):
            open_package(io.BytesIO(forged))
    assert start == 12


@given(versions())
def test_any_two_versions(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Weights, Weights]) -> None:
    folder = tmp_path_factory.mktemp("pair")
    old, new = (write_folder(folder / name, weights, {}) for name, weights in zip("ab", pair, strict=True))
    assert read_all(packed(old, new), old) == content(new) == hashes(pair[1])


def test_progress_ends_with_all_bytes(old: VersionFolder, new: VersionFolder) -> None:
    seen: list[tuple[int, int]] = []
    build_package(io.BytesIO(), base=old, target=new, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (new.manifest.nbytes, new.manifest.nbytes)
    assert seen == sorted(seen)
    assert len(seen) == 3  # what is the same, and two tensors that are not
