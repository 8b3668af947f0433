"""Prunes, archives, rebuilds and restores until it is killed. Run as a program by ``test_archive_faults.py``.

It serves commands as ``crash_child.py`` does, with a fork for each. What version number n is follows from n alone, so
that whoever asks knows every id that may exist.
"""

from __future__ import annotations

import sys
from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from crash_child import JOBS, Assassin, Emit, names_in, serve

from aios_node.delta.disk import unobserved
from aios_node.delta.store.backward import rebuild
from aios_node.delta.store.store import VersionStore
from aios_node.engine.weights.folder import verify_folder

KEEP = 2
FILES = {"config.json": b"{}"}


def opened(command: dict[str, Any]) -> VersionStore:
    observer = Assassin(command["step"], command["nth"]) if command.get("step") else unobserved
    return VersionStore.open(command["store"], observer=observer)


def commit(store: VersionStore, number: int, parents: list[str]) -> str:
    """Version ``number`` of a chain; what is here already stays as it is."""
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    values[number % 64, :3] = number
    return store.commit("m", {"w": values}, FILES, parents=parents, created_at=f"t{number}", activate=True)


def grow(command: dict[str, Any], emit: Emit) -> None:
    """Commit and prune; a version is told when it is durable, and the number when the pruning after it is done."""
    with opened(command) as store:
        parents = command["parents"]  # told by whoever asks: the one before may have been archived meanwhile
        for number in range(command["first"], command["last"]):
            parents = [commit(store, number, parents)]
            emit({"version": parents[0]})
            store.gc(keep_last=KEEP)
            emit({"pruned": number})


def restore(command: dict[str, Any], emit: Emit) -> None:
    """Bring archived versions back, oldest first, and prune them away again."""
    with opened(command) as store:
        emit({"begun": True})
        for version in list(store.archived("m"))[::-1][:4]:
            store.restore("m", version)
            emit({"restored": version})
        store.gc(keep_last=KEEP)


def examine(command: dict[str, Any], emit: Emit) -> None:
    """After any crash: every version that was acknowledged is stored whole or can be rebuilt, and nothing is half."""
    with opened(command) as store, TemporaryDirectory() as scratch:
        stored = store.picture.registered()
        assert store.damaged() == {}
        for number, version in enumerate(command["versions"]):
            if version in stored:
                store.verify(version)
            else:
                out = Path(scratch, str(number))
                with store.route(version) as route:
                    rebuild(route, out)
                assert verify_folder(out).version == version
        assert names_in(Path(command["store"], "work")) == []
        assert names_in(Path(command["store"], "versions")) == sorted(stored)
        files = names_in(Path(command["store"], "archive"))
        assert files == sorted(f"{v}.{end}" for v in store.archive.entries for end in ("back", "json"))
        emit({"stored": len(stored), "archived": len(store.archived("m"))})


def warm_up() -> None:
    """Load what coding and rebuilding need before any fork, so that children begin at once."""
    with TemporaryDirectory() as folder:
        grow({"store": folder, "first": 0, "last": 4, "parents": []}, lambda _message: None)
        restore({"store": folder}, lambda _message: None)


JOBS |= {job.__name__: job for job in (grow, restore, examine)}

if __name__ == "__main__":
    warm_up()
    for request in sys.stdin:
        serve(loads(request))
