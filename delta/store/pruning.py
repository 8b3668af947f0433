"""What happens before old versions leave the store: each is archived as a backward delta, if that pays.

Newest first, so that a version may lean on one that leaves in the same round. Everything here can be repeated: a
round that was cut off finds its entries again. Changes no books and removes no versions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from aios_node.delta.disk import Observer, Step, remove_folder, sync_files
from aios_node.delta.store.archive import Archive
from aios_node.delta.store.backward import Encode
from aios_node.delta.store.folders import VersionFolders
from aios_node.delta.store.heads import Heads, Member
from aios_node.engine.errors import AiosError, Busy, Unavailable

WORTH: Final = 0.5
"""Where nothing of the successor is of use: the most that a package may take of the version's own size."""
MOST_WAITING: Final = 16
"""Versions that may stay because they cannot be archived now; more of them leave without, so that no disk fills."""


@dataclass(frozen=True)
class Pruning:
    """One round: the picture of the store, and the (model, version) pairs that shall leave."""

    heads: Heads
    members: tuple[tuple[str, str], ...]
    folders: VersionFolders
    archive: Archive
    damaged: frozenset[str]
    observer: Observer

    def leaving(self) -> tuple[str, ...]:
        """Versions that no model will have any more, newest first."""
        gone = self.heads.without(self.members)
        return tuple(dict.fromkeys(version for _, version in reversed(self.members) if version in gone))


def archive_before_pruning(pruning: Pruning, encode: Encode) -> frozenset[str]:
    """Archive what is about to leave; returns the versions that should stay a while, since that cannot be done now.

    A version that cannot be archived at all (damaged, no room, no gain) simply leaves.
    """
    if not pruning.archive.max_bytes or not pruning.members:
        return frozenset()
    leaving = [version for version in pruning.leaving() if version not in pruning.damaged]
    stays = pruning.heads.registered() - set(pruning.leaving()) - pruning.damaged
    later: set[str] = set()
    for version in leaving:
        try:
            _archive(pruning, version, stays | later, leaving, encode)
        except (Busy, Unavailable):
            if len(leaving) <= MOST_WAITING:
                later.add(version)
        except (AiosError, OSError):
            continue
    return frozenset(later)


def _archive(pruning: Pruning, version: str, stays: Collection[str], leaving: Collection[str], encode: Encode) -> None:
    """Make sure that a version has an entry whose chain ends in one that stays, if that pays."""
    archive = pruning.archive
    if archive.chain(version, stays):
        return  # a round before this one was cut off
    safe = {other for other in leaving if other != version and archive.chain(other, stays)}
    successor = nearest_successor(pruning.heads, version, {*stays, *safe})
    if successor is None:
        return
    work = pruning.folders.new_workspace()
    try:
        pruning.observer(Step.ARCHIVE)
        package = work / "back"
        info = encode(pruning.folders.path(successor), pruning.folders.path(version), package)
        if info.mode == "delta" or info.bytes <= info.full_bytes * WORTH:
            sync_files(work)
            archive.put(version, successor, package, _members(pruning.heads, version))
    finally:
        remove_folder(work)


def nearest_successor(heads: Heads, version: str, among: Collection[str]) -> str | None:
    """The nearest descendant of a version among some, else the active version of a model that has it, if among them."""
    lines = {other: heads.ancestors(other) for other in sorted(among)}
    descendants = [(line.index(version), other) for other, line in lines.items() if version in line]
    if descendants:
        return min(descendants)[1]
    active = [state.pointers.active for state in heads.models.values() if version in state.versions]
    return next((other for other in active if other in among), None)


def _members(heads: Heads, version: str) -> list[tuple[str, Member]]:
    return [
        (model, member)
        for model, state in sorted(heads.models.items())
        for member in state.members
        if member.version == version
    ]
