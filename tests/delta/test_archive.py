"""Pruned versions stay as backward deltas: small, rebuilt to the bit, bounded, and gone in the right order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.delta.disk import Step
from aios_node.delta.offers import PackageInfo
from aios_node.delta.store.backward import encode_backward, rebuild
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import Busy, Corrupt, HashMismatch, NoBase, UnknownVersion
from aios_node.engine.weights.folder import read_folder, verify_folder

FILES = {"config.json": b'{"kind":"test"}'}


def weights(number: int) -> dict[str, Any]:
    """A base that is the same for all, with a few values that belong to the version."""
    values = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    values[number % 64, :3] = number
    return {"a.weight": values, "b.weight": np.ones((32, 32), np.float32)}


def commit(store: VersionStore, number: int, parents: list[str], model: str = "m", **options: Any) -> str:
    return store.commit(
        model,
        weights(number),
        FILES,
        parents=parents,
        created_at=f"t{number}",
        envelope=f"by {number}".encode(),
        activate=True,
        **options,
    )


def grow(store: VersionStore, count: int, start: int = 0, parents: list[str] | None = None) -> list[str]:
    versions: list[str] = []
    for number in range(start, start + count):
        versions.append(commit(store, number, versions[-1:] or list(parents or [])))
    return versions


def rebuilt(store: VersionStore, version: str, folder: Path) -> dict[str, Any]:
    with store.route(version) as route:
        rebuild(route, folder)
    found = verify_folder(folder)
    assert found.version == version
    with found.weights() as opened:
        return {name: np.array(opened[name]) for name in opened}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def store(path: Path) -> Iterator[VersionStore]:
    with VersionStore.open(path) as opened:
        yield opened


def test_a_pruned_version_comes_back_to_the_bit(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 6)
    assert set(store.gc(keep_last=2).versions) == set(versions[:4])
    assert set(store.archived("m")) == set(versions[:4])
    for number, version in enumerate(versions[:4]):
        assert not store.has(version)
        found = rebuilt(store, version, tmp_path / str(number))
        for name, expected in weights(number).items():
            np.testing.assert_array_equal(found[name].view(np.uint32), expected.view(np.uint32))
        assert (tmp_path / str(number) / "config.json").read_bytes() == FILES["config.json"]


def test_an_archived_version_is_a_small_part_of_a_stored_one(store: VersionStore) -> None:
    versions = grow(store, 3)
    size = sum(file.stat().st_size for file in store.path(versions[0]).iterdir())
    store.gc(keep_last=2)
    assert store.archive.entries[versions[0]].size < size / 20


def test_versions_that_leave_together_lean_on_each_other(store: VersionStore) -> None:
    versions = grow(store, 5)
    store.gc(keep_last=2)
    assert [store.archive.entries[version].base for version in versions[:3]] == versions[1:4]


def test_a_chain_is_followed_when_its_root_is_pruned_later(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 4)
    store.gc(keep_last=2)
    more = grow(store, 4, start=10, parents=versions[-1:])
    store.gc(keep_last=2)
    chain = store.archive.chain(versions[0], store.picture.registered())
    assert [entry.version for entry in chain] == [*more[:2][::-1], *versions[::-1]]
    rebuilt(store, versions[0], tmp_path / "out")


def test_a_long_chain_is_rebuilt_in_stages_that_are_cleaned_up(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios_node.delta.store.backward.LAYERS", 3)
    versions = grow(store, 12)
    store.gc(keep_last=2)
    (tmp_path / "work").mkdir()
    rebuilt(store, versions[0], tmp_path / "work" / "new-1")
    assert names(tmp_path / "work") == ["new-1"]


def test_what_is_archived_survives_a_restart(path: Path, tmp_path: Path) -> None:
    with VersionStore.open(path) as store:
        versions = grow(store, 5)
        store.gc(keep_last=2)
    with VersionStore.open(path) as store:
        assert set(store.archived("m")) == set(versions[:3])
        rebuilt(store, versions[0], tmp_path / "out")


def test_a_restored_version_is_as_it_was(store: VersionStore) -> None:
    versions = grow(store, 5)
    store.gc(keep_last=2)
    store.restore("m", versions[0])
    assert store.has(versions[0])
    store.verify(versions[0])
    assert store.envelope("m", versions[0]) == b"by 0"
    assert store.versions("m")[0].created_at == "t0"
    store.activate("m", versions[0])
    assert versions[0] not in store.archived("m")
    assert set(store.heads("m")) == {versions[4]}


def test_restoring_what_is_not_there_says_so(store: VersionStore) -> None:
    (version,) = grow(store, 1)
    with pytest.raises(UnknownVersion, match="archive"):
        store.restore("m", version)
    with pytest.raises(UnknownVersion, match="archive"), store.route("0" * 64):
        pass


def test_a_version_that_comes_back_leaves_the_archive_at_the_next_round(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 5)
    store.gc(keep_last=2)
    assert commit(store, 1, versions[:1]) == versions[1]
    store.gc(keep_last=2)
    assert set(store.archive.entries) == {versions[0], versions[2], versions[3]}
    rebuilt(store, versions[0], tmp_path / "0")
    rebuilt(store, versions[2], tmp_path / "2")


def test_versions_of_two_models_remember_both_envelopes(store: VersionStore) -> None:
    both = commit(store, 0, [])
    assert commit(store, 0, [], model="other") == both
    for model in ("m", "other"):
        parents = [both]
        for number in (1, 2, 3):
            parents = [commit(store, number + (10 if model == "other" else 0), parents, model=model)]
    store.gc(keep_last=1)
    assert both in store.archived("m")
    assert both in store.archived("other")


def test_the_bound_holds_and_the_oldest_go_first(path: Path, tmp_path: Path) -> None:
    with VersionStore.open(path) as store:
        first = grow(store, 12)
        store.gc(keep_last=2)
        one = max(entry.size for entry in store.archive.entries.values())
    bound = one * 4
    with VersionStore.open(path, max_archive_bytes=bound) as store:
        assert store.archive.bytes <= bound
        kept = [version for version in first if version in store.archived("m")]
        assert kept
        assert kept == first[10 - len(kept) : 10]
        rebuilt(store, kept[0], tmp_path / "out")
        more = grow(store, 6, start=20, parents=first[-1:])
        store.gc(keep_last=2)
        assert store.archive.bytes <= bound
        assert set(store.archived("m")) & set(more)


def test_a_bound_of_nothing_archives_nothing(path: Path) -> None:
    with VersionStore.open(path, max_archive_bytes=0) as store:
        versions = grow(store, 5)
        assert set(store.gc(keep_last=2).versions) == set(versions[:3])
        assert store.archived("m") == {}
        assert names(path / "archive") == []


def test_what_cannot_be_archived_now_stays_until_later(store: VersionStore) -> None:
    versions = grow(store, 5)

    def busy(successor: Path, target: Path, out: Path) -> PackageInfo:
        raise Busy("later", retry_after_s=1.0)

    assert store.gc(keep_last=2, encode=busy).versions == ()
    assert all(store.has(version) for version in versions)
    assert set(store.gc(keep_last=2).versions) == set(versions[:3])


def test_not_too_many_wait_until_later(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios_node.delta.store.pruning.MOST_WAITING", 2)
    versions = grow(store, 5)

    def busy(successor: Path, target: Path, out: Path) -> PackageInfo:
        raise Busy("later", retry_after_s=1.0)

    assert set(store.gc(keep_last=2, encode=busy).versions) == set(versions[:3])
    assert store.archived("m") == {}


def test_what_cannot_be_archived_at_all_leaves_all_the_same(store: VersionStore) -> None:
    versions = grow(store, 5)

    def broken(successor: Path, target: Path, out: Path) -> PackageInfo:
        raise NoBase("no")

    assert set(store.gc(keep_last=2, encode=broken).versions) == set(versions[:3])
    assert store.archived("m") == {}


def test_a_version_without_any_likeness_is_not_archived(store: VersionStore) -> None:
    parents: list[str] = []
    for number in range(3):
        weights = {f"layer.{number}": np.full(9 + number, number, np.float32)}
        parents = [store.commit("m", weights, {}, created_at="t", parents=parents, activate=number == 2)]
    assert len(store.gc(keep_last=1).versions) == 2
    assert store.archived("m") == {}


def test_a_damaged_version_is_not_archived(path: Path) -> None:
    with VersionStore.open(path) as store:
        versions = grow(store, 4)
        (store.path(versions[0]) / "shards.json").write_bytes(b"[]")
    with VersionStore.open(path) as store:
        store.gc(keep_last=2)
        assert set(store.archived("m")) == {versions[1]}


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "book"])
def test_a_damaged_archive_is_noticed(path: Path, tmp_path: Path, damage: str) -> None:
    with VersionStore.open(path) as store:
        versions = grow(store, 4)
        store.gc(keep_last=2)
        package = store.archive.path(versions[0])
    data = package.read_bytes()
    if damage == "cut":
        package.write_bytes(data[:-1])
    elif damage == "flipped":
        package.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "missing":
        package.unlink()
    else:
        package.with_suffix(".json").write_text(json.dumps({"format": 1, "version": "x"}))
    with VersionStore.open(path) as store:
        if damage == "flipped":
            with pytest.raises((HashMismatch, Corrupt)):
                rebuilt(store, versions[0], tmp_path / "out")
        else:
            assert set(store.archived("m")) == {versions[1]}
            assert not package.exists()
        rebuilt(store, versions[1], tmp_path / "other")


def test_a_link_that_goes_while_it_is_followed_is_an_error_that_asks_for_a_full_copy(
    store: VersionStore, tmp_path: Path
) -> None:
    versions = grow(store, 5)
    store.gc(keep_last=2)
    with store.route(versions[0]) as route:
        route.links[-1].unlink()
        with pytest.raises(NoBase):
            rebuild(route, tmp_path / "out")


def test_the_root_of_a_route_stays_stored_while_it_is_followed(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 4)
    store.gc(keep_last=2)
    with store.route(versions[0]) as route:
        root = route.root.name
        grow(store, 4, start=10, parents=versions[-1:])
        store.gc(keep_last=2)
        assert store.has(root)
        rebuild(route, tmp_path / "out")
    assert read_folder(tmp_path / "out").version == versions[0]


def test_a_round_that_was_cut_off_finds_its_entries_again(path: Path) -> None:
    def cut(step: Step) -> None:
        if step is Step.UNREGISTER:
            raise KeyboardInterrupt

    with VersionStore.open(path, observer=cut) as store:
        versions = grow(store, 5)
        with pytest.raises(KeyboardInterrupt):
            store.gc(keep_last=2)
    calls: list[str] = []

    def counted(successor: Path, target: Path, out: Path) -> PackageInfo:
        calls.append(target.name)
        return encode_backward(successor, target, out)

    with VersionStore.open(path) as store:
        assert all(store.has(version) for version in versions)
        assert store.archived("m") == {}
        assert set(store.gc(keep_last=2, encode=counted).versions) == set(versions[:3])
        assert set(store.archived("m")) == set(versions[:3])
        assert calls == []


def test_files_that_belong_to_nothing_are_removed_at_start(path: Path) -> None:
    with VersionStore.open(path) as store:
        versions = grow(store, 4)
        store.gc(keep_last=2)
    (path / "archive" / ("0" * 64 + ".back")).write_bytes(b"orphan")
    (path / "archive" / "x.json.new").write_bytes(b"half")
    with VersionStore.open(path):
        assert names(path / "archive") == sorted(f"{v}.{end}" for v in versions[:2] for end in ("back", "json"))
