"""What a peer far behind pays: one direct delta, made from a base that the sender keeps as backward deltas only.

MiniLM in bfloat16 and 64 versions after it. Each moves a share of the weights of some tensors by a few units in the
last place, up or down by chance: in one history 1 % of the weights of four tensors, in the other 1 % of every matrix.
The sender prunes after every version, as a node does, and keeps eight. All packages are built by the node's own cache,
and every base that is rebuilt is compared with the version's hash.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.delta.chunks import TransferKey
from aios_node.delta.codec.body import Coding
from aios_node.delta.offers import PackageInfo
from aios_node.delta.store.store import VersionStore
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.folder import write_folder
from aios_node.node import jobs
from aios_node.node.sync.outgoing import OutgoingPackages

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = 64
KEPT = 8
BEHIND = (1, 8, 16, 32, 64)
DENSITY = 0.01
FEW = tuple(f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 2, 4, 5))

Weights = dict[str, NDArray[Any]]


class Here:
    """In place of worker processes."""

    def run(self, job: Callable[..., Any], *args: Any) -> Any:
        return job(*args, _quiet)


@dataclass
class Sender:
    """A store that grew, and what growing cost."""

    store: VersionStore
    versions: list[str]
    successive: list[int]  # bytes of the delta from each version to the next
    archiving: list[float]  # CPU seconds per round of pruning


def run() -> dict[str, object]:
    """Exact bytes for peers 1 to 64 versions behind; disk that the archive takes; CPU seconds."""
    source = import_folder(ROOT / ".cache" / "minilm")
    weights: Weights = {name: np.asarray(value).astype(ml_dtypes.bfloat16) for name, value in source.weights.items()}
    matrices = tuple(name for name, value in weights.items() if value.ndim == 2)
    figures: dict[str, object] = {"versions": VERSIONS, "kept whole": KEPT}
    for name, changed in (("four tensors", FEW), ("every matrix", matrices)):
        folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
        try:
            figures[name] = measure(folder, weights, changed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return figures


def measure(folder: Path, weights: Weights, changed: tuple[str, ...]) -> dict[str, object]:
    """One history: grow it, then serve peers at several distances from its end."""
    first = write_folder(folder / "first", weights, {})
    with VersionStore.open(folder / "sender") as store:
        sender = grow(store, folder, weights, changed)
        newest = sender.versions[-1]
        direct = build(folder, first.path, store.path(newest)).bytes
        full = build(folder, None, store.path(newest)).bytes
        late = {behind: late_peer(folder / str(behind), sender, behind) for behind in BEHIND}
        archived = store.archive.bytes
        one = sum(file.stat().st_size for file in store.path(newest).iterdir())
    farthest, seconds = late[VERSIONS]
    return {
        "64 behind over one direct delta": {"value": round(farthest.bytes / direct, 4), "target": "<= 1.1"},
        "64 behind over a full copy": {"value": round(farthest.bytes / full, 4), "target": "<= 1"},
        "one direct delta, bytes": direct,
        "full copy on the wire, bytes": full,
        "64 deltas one by one, bytes": sum(sender.successive),
        "64 deltas one by one over the squashed one": round(sum(sender.successive) / farthest.bytes, 2),
        "archive, bytes": archived,
        "archive over the same versions whole": round(archived / (one * (VERSIONS + 1 - KEPT)), 5),
        "CPU seconds to archive one version, median": round(statistics.median(sender.archiving), 3),
        "CPU seconds to rebuild a base 64 behind and build the package": round(seconds, 2),
        "bytes by distance": {
            "columns": ["versions behind", "mode", "bytes", "over a full copy"],
            "rows": [[n, info.mode, info.bytes, info.bytes / full] for n, (info, _) in late.items()],
        },
    }


def grow(store: VersionStore, folder: Path, weights: Weights, changed: tuple[str, ...]) -> Sender:
    """Commit version after version and prune after each, as a node does."""
    choice = np.random.default_rng(7)
    now = {name: value.copy() for name, value in weights.items()}
    sender = Sender(store, [commit(store, now, [])], [], [])
    for _ in range(VERSIONS):
        for name in changed:
            move(now[name], choice)
        sender.versions.append(commit(store, now, sender.versions[-1:]))
        old, new = (store.path(version) for version in sender.versions[-2:])
        sender.successive.append(build(folder, old, new).bytes)
        started = time.process_time()
        if store.gc(keep_last=KEPT).versions:
            sender.archiving.append(time.process_time() - started)
    return sender


def move(values: NDArray[Any], choice: np.random.Generator) -> None:
    """Change a share of the weights by one to three units in the last place, in their binary form."""
    places = choice.choice(values.size, int(values.size * DENSITY), replace=False)
    bits = values.view(np.uint16).reshape(-1)
    bits[places] += choice.choice(np.array([1, 2, 3, -1, -2, -3]), places.size).astype(np.uint16)
    bits[places[~np.isfinite(values.reshape(-1)[places].astype(np.float32))]] = 0


def commit(store: VersionStore, weights: Weights, parents: list[str]) -> str:
    """The next version, active at once."""
    return store.commit("m", weights, {}, parents=parents, created_at="t", activate=True)


def build(folder: Path, base: Path | None, target: Path) -> PackageInfo:
    """One package between stored versions."""
    job = jobs.PackageJob(base, target, None, Coding().codecs, folder / "package")
    return jobs.build_package(job, _quiet)


def late_peer(folder: Path, sender: Sender, behind: int) -> tuple[PackageInfo, float]:
    """What a peer gets, and the CPU seconds until its package is there. The cache begins empty."""
    workers: Any = Here()
    packages = OutgoingPackages(folder, sender.store, workers, max_bytes=1 << 30)
    newest, base = sender.versions[-1], sender.versions[-1 - behind]
    started = time.process_time()
    lease = packages.prepare(TransferKey("m", newest, base), Coding().codecs)
    lease.release()
    return lease.info, time.process_time() - started


def _quiet(_share: float, _text: str) -> None:
    """Progress of jobs, for nobody."""
