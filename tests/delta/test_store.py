"""What the store promises to those who use it: whole versions, one active per model, instant ways back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.delta.chunks import TransferKey
from aios_node.delta.offers import Source
from aios_node.delta.store.events import Event
from aios_node.delta.store.folderlock import FolderLock
from aios_node.delta.store.heads import Pointers
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import (
    AiosError,
    BadRequest,
    FolderLocked,
    HashMismatch,
    UnknownModel,
    UnknownVersion,
)
from aios_node.engine.weights.folder import read_folder, verify_folder, write_folder

FILES = {"config.json": b'{"kind":"test"}', "tokenizer.json": b"{}"}
NOW = "2026-11-20T12:00:00Z"


@dataclass(frozen=True)
class Info:
    bytes: int
    sha256: str


def weights(seed: int) -> dict[str, Any]:
    values = np.random.default_rng(seed).standard_normal((16, 8)).astype(np.float32)
    return {"layer.weight": values, "layer.bias": np.arange(8, dtype=np.float32)}


def put(store: VersionStore, seed: int, model: str = "m", **options: Any) -> str:
    return store.commit(model, weights(seed), FILES, created_at=NOW, **options)


def chain(store: VersionStore, count: int, **options: Any) -> list[str]:
    versions: list[str] = []
    for seed in range(count):
        versions.append(put(store, seed, parents=versions[-1:], **options))
    return versions


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VersionStore]:
    with VersionStore.open(tmp_path / "s") as opened:
        yield opened


def test_a_commit_is_a_folder_named_by_its_hash(store: VersionStore) -> None:
    version = put(store, 1, recipe={"quant": "none"})
    assert store.path(version).name == version == store.manifest(version).version
    assert verify_folder(store.path(version)).manifest.recipe == {"quant": "none"}
    with read_folder(store.path(version)).weights() as opened:
        np.testing.assert_array_equal(opened["layer.weight"], weights(1)["layer.weight"])
    assert (store.path(version) / "tokenizer.json").read_bytes() == b"{}"
    assert [info.id for info in store.versions("m")] == [version]
    assert store.versions("m")[0].created_at == NOW
    assert store.versions("m")[0].bytes == 16 * 8 * 4 + 8 * 4
    assert store.versions("m")[0].quant == "none"
    assert store.pointers("m") == Pointers("m")


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        versions = chain(store, 3, envelope=lambda version: version.encode(), activate=True)
        before = store.picture
    with VersionStore.open(tmp_path / "s") as store:
        assert store.picture == before
        assert store.envelope("m", versions[0]) == versions[0].encode()
        assert store.heads("m") == (versions[2],)
        assert store.ancestors(versions[2]) == (versions[1], versions[0])
        assert store.lineage("m") == {
            versions[0]: (),
            versions[1]: (versions[0],),
            versions[2]: (versions[1],),
        }


def test_activation_and_rollback_swap_two_pointers(store: VersionStore) -> None:
    one, two, three = chain(store, 3)
    assert store.activate("m", one) == Pointers("m", one, None)
    with pytest.raises(BadRequest, match="no previous"):
        store.rollback("m")
    assert store.activate("m", three) == Pointers("m", three, one)
    assert store.activate("m", three) == Pointers("m", three, one)
    assert store.rollback("m") == Pointers("m", one, three)
    assert store.rollback("m") == Pointers("m", three, one)
    assert store.activate("m", two) == Pointers("m", two, three)
    assert (store.active("m"), store.previous("m")) == (two, three)


def test_only_versions_of_the_model_can_be_activated(store: VersionStore) -> None:
    (one,) = chain(store, 1)
    other = put(store, 9, "other")
    for version in (other, "f" * 64, one[:12], "../x"):
        with pytest.raises(UnknownVersion):
            store.activate("m", version)
    with pytest.raises(UnknownModel, match="did you mean m"):
        store.activate("mm", one)
    assert store.active("m") is None


def test_committing_again_changes_nothing_and_may_add_a_model(store: VersionStore) -> None:
    events: list[Event] = []
    version = put(store, 1, envelope=b"first")
    store.subscribe(events.append)
    assert put(store, 1, envelope=b"second") == version
    assert events == []
    assert store.envelope("m", version) == b"first"
    assert put(store, 1, "alias", envelope=b"third", activate=True) == version
    assert [(event.kind, event.model) for event in events] == [("committed", "alias"), ("activated", "alias")]
    assert store.envelope("alias", version) == b"third"
    assert store.models() == ("alias", "m")
    assert put(store, 1, activate=True) == version
    assert store.active("m") == version
    assert len(names(store.path(version).parent)) == 1


def test_shards_that_stayed_the_same_are_linked_not_copied(store: VersionStore) -> None:
    base = {"a.embeddings": np.zeros((1 << 23) + 1, dtype=np.float32), "b.head": np.zeros(4, dtype=np.float32)}
    one = store.commit("m", base, {}, created_at=NOW)
    two = store.commit("m", base | {"b.head": np.ones(4, np.float32)}, {}, created_at=NOW, parents=[one])
    first, second = ({shard.tensors: shard for shard in store.shards(version)} for version in (one, two))
    assert first[("a.embeddings",)] == second[("a.embeddings",)]
    shared = [(store.path(version) / first[("a.embeddings",)].file).stat() for version in (one, two)]
    assert shared[0].st_ino == shared[1].st_ino
    store.activate("m", two)
    collected = store.gc(keep_last=0)
    assert collected.versions == (one,)
    assert collected.bytes < 1 << 20
    store.verify(two)


def test_the_expected_id_must_come_out(store: VersionStore) -> None:
    with pytest.raises(HashMismatch, match="nothing was changed"):
        put(store, 1, expected="0" * 64)
    assert store.models() == ()
    version = put(store, 1)
    assert put(store, 1, "again", expected=version) == version


def test_derived_models_follow_the_active_version(store: VersionStore) -> None:
    source = put(store, 1, "minilm")
    version = put(store, 2, "minilm.int8", derived_from=Source("minilm", source))
    assert store.derived("minilm") == ()
    store.activate("minilm.int8", version)
    assert store.derived("minilm") == ("minilm.int8",)
    assert store.versions("minilm.int8")[0].derived_from == Source("minilm", source)


def test_prefixes(store: VersionStore) -> None:
    version = put(store, 1)
    assert store.resolve("m", version[:4]) == version
    assert store.resolve("m", version) == version
    with pytest.raises(UnknownVersion, match="4 or more"):
        store.resolve("m", version[:3])


@pytest.mark.parametrize("model", ["", "../m", ".m", "a/b", "m" * 97, "m\n", "é", "-m"])
def test_names_that_no_model_may_have(store: VersionStore, model: str) -> None:
    for attempt in (
        lambda: put(store, 1, model),
        lambda: store.active(model),
        lambda: store.rollback(model),
        lambda: store.derived(model),
    ):
        with pytest.raises(BadRequest, match="not a model name"):
            attempt()
    assert store.models() == ()


@pytest.mark.parametrize("version", ["", "../../etc/passwd", "0" * 63, "A" * 64])
def test_versions_never_become_paths(store: VersionStore, version: str) -> None:
    with pytest.raises(BadRequest, match="not a version id"):
        store.path(version)
    with pytest.raises(AiosError):
        put(store, 1, parents=[version])
    with pytest.raises(AiosError):
        put(store, 1, ancestors=[version])
    assert store.models() == ()


def test_unknown_versions_are_named(store: VersionStore) -> None:
    put(store, 1)
    for question in (store.path, store.pin, store.manifest, store.shards, store.verify):
        with pytest.raises(UnknownVersion, match="ffffffffffff"):
            question("f" * 64)
    assert not store.has("f" * 64)


def test_a_folder_built_elsewhere_is_adopted(store: VersionStore) -> None:
    with store.workspace() as folder:
        write_folder(folder, weights(3), FILES)
        version = store.adopt("m", folder, created_at=NOW, activate=True)
    assert not folder.exists()
    assert store.active("m") == version
    store.verify(version)


def test_only_workspaces_are_adopted(store: VersionStore, tmp_path: Path) -> None:
    with store.workspace() as folder:
        write_folder(folder, weights(3), FILES)
        for outside in (tmp_path, folder / "..", folder.parent, tmp_path / "none", folder / "x"):
            with pytest.raises(BadRequest, match="not a workspace"):
                store.adopt("m", outside, created_at=NOW)
    assert not folder.exists()
    assert store.models() == ()


def test_a_workspace_that_is_not_used_is_removed(store: VersionStore) -> None:
    with store.workspace() as one, store.workspace() as other:
        assert one != other
        (one / "half").write_bytes(b"x")
    assert names(one.parent) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "file", "manifest", "path", "shard path", "nothing"])
def test_a_folder_that_is_not_what_it_claims_is_refused(store: VersionStore, tmp_path: Path, damage: str) -> None:
    (tmp_path / "secret").write_bytes(b"{}")
    with store.workspace() as folder:
        write_folder(folder, weights(3), FILES)
        spoil(folder, damage)
        with pytest.raises(AiosError):
            store.adopt("m", folder, created_at=NOW)
    assert store.models() == ()
    assert names(tmp_path / "s" / "work") == names(tmp_path / "s" / "versions") == []


def spoil(folder: Path, damage: str) -> None:
    """Damage a version folder in one way."""
    (shard,) = folder.glob("*.parquet")
    manifest, shards = folder / "manifest.json", folder / "shards.json"
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-20])
        case "flipped":
            content = bytearray(shard.read_bytes())
            content[content.find(weights(3)["layer.bias"].tobytes()) + 1] ^= 1
            shard.write_bytes(content)
        case "missing":
            shard.unlink()
        case "file":
            (folder / "tokenizer.json").write_bytes(b"[]")
        case "manifest":
            manifest.write_bytes(manifest.read_bytes()[:-1])
        case "path":
            manifest.write_text(manifest.read_text().replace("tokenizer.json", "../secret"))
        case "shard path":
            shards.write_text(shards.read_text().replace(shard.name, "../../../secret"))
        case "nothing":
            for entry in folder.iterdir():
                entry.unlink()


def test_a_failing_envelope_commits_nothing(store: VersionStore) -> None:
    def unsignable(version: str) -> bytes:
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        put(store, 1, envelope=unsignable)
    assert store.models() == ()


def test_told_ancestors_connect_a_squashed_update(store: VersionStore) -> None:
    old = put(store, 1)
    between = "b" * 64
    new = put(store, 2, parents=[between], ancestors=[old])
    assert store.heads("m") == (new,)
    assert store.ancestors(new) == (between, old)


def test_told_ancestors_that_contradict_the_hashes_are_not_believed(store: VersionStore) -> None:
    one = put(store, 1)
    two = put(store, 2, parents=[one])
    three = put(store, 3, parents=[two])
    store.gc(keep_last=1)
    assert put(store, 1, "other", ancestors=[three]) == one
    assert store.heads("m") == (three,)


def test_collection_keeps_what_is_needed(store: VersionStore) -> None:
    versions = chain(store, 7)
    store.activate("m", versions[0])
    store.activate("m", versions[1])
    store.staging.open(TransferKey("m", "f" * 64, versions[2]), Info(10, "0" * 64)).close()
    pin = store.pin(versions[3])
    assert store.gc(keep_last=2).versions == tuple(sorted([versions[4]]))
    left = {info.id for info in store.versions("m")}
    assert left == set(versions) - {versions[4]}
    assert names(store.path(versions[0]).parent) == sorted(left)

    pin.release()
    pin.release()
    store.staging.discard(TransferKey("m", "f" * 64, versions[2]))
    assert set(store.gc(keep_last=0).versions) == {versions[2], versions[3], versions[5]}
    assert store.gc(keep_last=0).members == ()
    assert store.heads("m") == (versions[6],)
    assert set(store.ancestors(versions[6])) == set(versions[:6])


def test_a_pin_counts_its_readers(store: VersionStore) -> None:
    one, two = chain(store, 2)
    with store.pin(one) as path, store.pin(one):
        assert path == store.path(one)
        assert store.gc(keep_last=0).versions == ()
    first, second = store.pin(one), store.pin(one)
    first.release()
    first.release()
    assert store.gc(keep_last=0).versions == ()
    second.release()
    assert store.gc(keep_last=0).versions == (one,)
    assert store.heads("m") == (two,)


def test_collected_versions_can_come_back(store: VersionStore) -> None:
    one, two = chain(store, 2)
    collected = store.gc(keep_last=0)
    assert collected.members == (("m", one),)
    assert collected.bytes > 500
    with pytest.raises(UnknownVersion):
        store.path(one)
    assert put(store, 0) == one
    store.verify(one)
    assert [info.id for info in store.versions("m")] == [one, two]
    assert store.heads("m") == (two,)


def test_shared_weights_stay_until_the_last_model_drops_them(store: VersionStore) -> None:
    one, _ = chain(store, 2)
    put(store, 0, "keeper")
    assert store.gc(keep_last=0).versions == ()
    store.verify(one)
    put(store, 5, "keeper", parents=[one])
    collected = store.gc(keep_last=0)
    assert collected.members == (("keeper", one), ("m", one))
    assert collected.versions == (one,)


def test_subscribers_hear_of_every_change_once_it_is_done(store: VersionStore) -> None:
    events: list[tuple[Event, str | None]] = []
    end = store.subscribe(lambda event: events.append((event, store.active("m"))))
    one, two = chain(store, 2)
    store.activate("m", one)
    store.activate("m", one)
    put(store, 7, parents=[two], activate=True)
    store.rollback("m")
    store.gc(keep_last=0)
    end()
    end()
    put(store, 8)
    seen = [(event.kind, event.version) for event, _ in events]
    three = store.previous("m")
    assert seen == [
        ("committed", one),
        ("committed", two),
        ("activated", one),
        ("committed", three),
        ("activated", three),
        ("activated", one),
        ("collected", two),
    ]
    assert [event.number for event, _ in events] == list(range(1, 8))
    assert [active for event, active in events if event.kind == "activated"] == [one, three, one]
    assert store.changes == 8


def test_a_failing_subscriber_does_not_undo_a_commit(store: VersionStore, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("the engine is gone")

    store.subscribe(fail)
    version = put(store, 1)
    assert store.has(version)
    assert "the engine is gone" in caplog.text


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s"), pytest.raises(FolderLocked, match=f"process {os.getpid()}"):
        VersionStore.open(tmp_path / "s")
    VersionStore.open(tmp_path / "s").close()


def test_opening_and_closing_leaks_nothing(tmp_path: Path) -> None:
    with VersionStore.open(tmp_path / "s") as store:
        chain(store, 2)
    before = open_descriptors(), threading.active_count()
    for _ in range(10):
        with VersionStore.open(tmp_path / "s") as store:
            store.verify(store.versions("m")[0].id)
        with FolderLock.acquire(tmp_path / "s"), pytest.raises(FolderLocked):
            VersionStore.open(tmp_path / "s")
    assert (open_descriptors(), threading.active_count()) == before


def test_readers_see_whole_changes_while_others_commit(store: VersionStore) -> None:
    """Six readers check every picture they get, while two threads commit to the same model."""
    put(store, 0, activate=True)
    stop = threading.Event()
    failures: list[BaseException] = []
    pictures = 0

    def read() -> None:
        nonlocal pictures
        while not stop.is_set():
            heads = store.picture
            state = heads.models["m"]
            assert state.pointers.active in state.versions
            assert set(state.versions) <= heads.facts.keys()
            with contextlib.suppress(UnknownVersion), store.pin(state.pointers.active or "") as path:
                assert read_folder(path).manifest.version == path.name
                pictures += 1

    def write(first: int) -> None:
        for seed in range(first, first + 5):
            put(store, seed, activate=True)
            store.rollback("m")
            store.gc(keep_last=1)

    def guarded(job: Any, *arguments: Any) -> None:
        try:
            job(*arguments)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(6)]
    writers = [threading.Thread(target=guarded, args=(write, first)) for first in (10, 20)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert pictures > 0
    assert len(store.picture.facts) == 11


def test_the_same_commit_from_many_threads_is_one_version(store: VersionStore) -> None:
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(put(store, 4))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert [info.id for info in store.versions("m")] == results[:1]
    assert store.changes == 1
