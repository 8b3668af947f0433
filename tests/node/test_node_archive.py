"""A peer that was away for many versions, and a node that no longer stores what the peer has."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios_node.delta.chunks import TransferKey
from aios_node.delta.codec.body import Coding
from aios_node.delta.offers import PackageInfo
from aios_node.delta.store.store import VersionStore
from aios_node.node.demo.processes import DemoNode, wait_until
from aios_node.node.sync.diskcache import DiskCache
from aios_node.node.sync.outgoing import Lease, OutgoingPackages

PATIENCE_S = 60.0


class InPlace:
    """Workers that do the job here and now, and count it."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def run(self, job, *args, progress=None):
        self.jobs.append(job.__name__)
        return job(*args, progress or (lambda share, text: None))


def weights(number: int) -> dict[str, np.ndarray]:
    tensors = {f"layer.{i}": np.random.default_rng(i).standard_normal((64, 256)).astype(np.float32) for i in range(4)}
    tensors["layer.2"][number % 64, :8] = number
    return tensors


def grow(store: VersionStore, count: int) -> list[str]:
    versions: list[str] = []
    for number in range(count):
        parents = versions[-1:]
        versions.append(store.commit("m", weights(number), {}, parents=parents, created_at="t", activate=True))
    return versions


def build(packages: OutgoingPackages, model: str, version: str, base: str | None) -> PackageInfo:
    lease: Lease = packages.prepare(TransferKey(model, version, base), Coding().codecs)
    lease.release()
    return lease.info


@pytest.fixture
def store(tmp_path: Path):
    with VersionStore.open(tmp_path / "store") as opened:
        yield opened


def packages_of(store: VersionStore, folder: Path, max_bytes: int = 1 << 30) -> tuple[OutgoingPackages, InPlace]:
    workers = InPlace()
    return OutgoingPackages(folder, store, workers, max_bytes=max_bytes), workers  # type: ignore[arg-type]


def test_a_pruned_base_costs_what_a_stored_one_costs(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 20)
    packages, _ = packages_of(store, tmp_path / "before")
    direct = build(packages, "m", versions[-1], versions[0])
    store.gc(keep_last=2)
    packages, workers = packages_of(store, tmp_path / "after")
    squashed = build(packages, "m", versions[-1], versions[0])
    assert squashed == direct
    assert squashed.mode == "delta"
    assert build(packages, "m", versions[-1], versions[0]) == direct
    assert workers.jobs == ["rebuild_version", "build_package"]


def test_a_base_that_is_no_ancestor_is_not_used(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 3)
    secret = store.commit("secret", weights(50), {}, created_at="t")
    packages, workers = packages_of(store, tmp_path / "out")
    assert build(packages, "m", versions[-1], secret).mode == "full"
    assert build(packages, "m", versions[-1], "0" * 64).mode == "full"
    assert workers.jobs == ["build_package"]  # whatever bases are named, there is one full package


def test_a_base_larger_than_the_cache_is_not_rebuilt(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 6)
    store.gc(keep_last=2)
    packages, workers = packages_of(store, tmp_path / "out", max_bytes=100_000)
    assert build(packages, "m", versions[-1], versions[0]).mode == "full"
    assert workers.jobs == ["build_package"]


def test_a_damaged_archive_means_a_full_copy(store: VersionStore, tmp_path: Path) -> None:
    versions = grow(store, 6)
    store.gc(keep_last=2)
    path = store.archive.path(versions[1])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2))
    packages, _ = packages_of(store, tmp_path / "out")
    assert build(packages, "m", versions[-1], versions[0]).mode == "full"


def test_a_delta_is_never_larger_than_a_full_copy(store: VersionStore, tmp_path: Path) -> None:
    zeros = {"w": np.zeros((256, 256), np.float32)}
    noise = {"w": np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)}
    first = store.commit("m", noise, {}, created_at="t", activate=True)
    second = store.commit("m", zeros, {}, parents=[first], created_at="t", activate=True)
    third = store.commit("m", noise | {"v": zeros["w"]}, {}, parents=[second], created_at="t", activate=True)
    packages, _ = packages_of(store, tmp_path / "out")
    for version, base in ((second, first), (third, second), (third, first)):
        assert build(packages, "m", version, base).bytes <= build(packages, "m", version, None).bytes


def test_the_cache_holds_its_bound_and_what_is_being_read(tmp_path: Path) -> None:
    def make(work: Path) -> None:
        (work / "data").write_bytes(bytes(1000))

    cache = DiskCache(tmp_path / "c", max_bytes=2500)
    held = cache.hold("a", make, lambda path: True)
    for name in "bcd":
        cache.hold(name, make, lambda path: True).release()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"a", "d"}
    held.release()
    cache.hold("e", make, lambda path: True).release()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"d", "e"}
    (tmp_path / "c" / "new-half").mkdir()
    (tmp_path / "c" / "old.pkg").write_bytes(b"from another program version")
    DiskCache(tmp_path / "c", max_bytes=2500)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"d", "e"}


def test_what_is_not_whole_is_made_again(tmp_path: Path) -> None:
    made: list[Path] = []
    cache = DiskCache(tmp_path / "c", max_bytes=2500)
    cache.hold("a", made.append, lambda path: True).release()
    cache.hold("a", made.append, lambda path: True).release()
    cache.hold("a", made.append, lambda path: False).release()
    assert len(made) == 2


def active(node: DemoNode) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == "m"), None)


def test_a_late_peer_pays_for_one_direct_delta(make_node, tmp_path: Path) -> None:
    alpha, beta = make_node("alpha", start=False), make_node("beta", start=False)
    for node in (alpha, beta):
        node.config.write_text(re.sub(r"keep_versions: \d+", "keep_versions: 2", node.config.read_text()))
        node.start()
    versions = [imported(alpha, tmp_path, 0)]
    beta.call("peers", "add", alpha.uri)
    wait_until("the first version arriving", lambda: active(beta) == versions[0], PATIENCE_S)
    beta.stop()
    versions.extend(imported(alpha, tmp_path, number) for number in range(1, 8))
    wait_until("old versions being archived", lambda: len(archived(alpha)) >= 5, PATIENCE_S)
    assert versions[0] in archived(alpha)
    beta.start()
    wait_until("the newest version arriving", lambda: active(beta) == versions[-1], PATIENCE_S)
    with beta.owner() as client:
        transfers = [one for one in next(iter(client.call("transfers")))["transfers"] if one["hash_ok"]]
    (late,) = [one for one in transfers if one["direction"] == "received"]
    assert (late["mode"], late["from"], late["to"]) == ("delta", versions[0], versions[-1])
    assert late["bytes"] < late["full_bytes"] / 20
    assert alpha.call("model", "activate", "m", versions[0][:12])["active"] == versions[0]
    assert active(alpha) == versions[0]


def imported(node: DemoNode, folder: Path, number: int) -> str:
    save_file(weights(number), folder / f"{number}.safetensors")
    version: str = node.call("model", "import", str(folder / f"{number}.safetensors"), "--name", "m")["version"]
    return version


def archived(node: DemoNode) -> list[str]:
    return [one["id"] for one in node.call("model", "show", "m")["archived"]]
