"""Pruning, and the way back: backward deltas are made and applied in worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aios_node.delta.offers import PackageInfo
from aios_node.engine.errors import UnknownVersion
from aios_node.node import jobs

if TYPE_CHECKING:
    from aios_node.delta.store.backward import Route
    from aios_node.delta.store.store import Collected
    from aios_node.node.core import NodeCore


def prune(core: NodeCore) -> Collected:
    """Remove old versions beyond ``store.keep_versions``; each is archived before, as far as there is room."""
    from aios_node.delta.codec.body import Coding

    codecs = Coding().codecs

    def encode(successor: Path, target: Path, out: Path) -> PackageInfo:
        return core.workers.run(jobs.build_package, jobs.PackageJob(successor, target, None, codecs, out))

    return core.store.gc(keep_last=core.config.store.keep_versions, encode=encode)


def stored_version(core: NodeCore, model: str, text: str) -> str:
    """The full id of a version by its prefix; one that is only archived is rebuilt and stored again.

    Raises UnknownModel, UnknownVersion.
    """
    try:
        return core.version(model, text)
    except UnknownVersion:
        found = [version for version in core.store.archived(model) if len(text) >= 4 and version.startswith(text)]
        if len(found) != 1:
            raise
    core.store.restore(model, found[0], follow=lambda route, folder: _rebuild(core, route, folder))
    return found[0]


def _rebuild(core: NodeCore, route: Route, folder: Path) -> None:
    core.workers.run(jobs.rebuild_version, jobs.RebuildJob(route, folder))
