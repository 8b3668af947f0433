"""Diverged versions and their common ancestor -> merged version folder, the same on every node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.delta.names import short
from aios_node.engine.errors import BadRequest

if TYPE_CHECKING:
    from aios_node.delta.merge.sides import Side
    from aios_node.delta.merge.strategy import Strategy
    from aios_node.delta.merge.weights import Merged
    from aios_node.engine.weights.folder import VersionFolder

Progress = Callable[[float, str], None]
WRITING = 0.7
"""The share of the work that is done when only writing is left."""


@dataclass(frozen=True)
class MergeJob:
    """Folders of the common ancestor and the heads; empty ones for the result and for what does not fit in memory."""

    base: Path
    heads: tuple[Path, ...]
    folder: Path
    scratch: Path
    strategy: str
    options: Mapping[str, Any]


def merge_versions(job: MergeJob, progress: Progress) -> dict[str, Any]:
    """Write the merged version; returns its recipe. Nothing of this node enters: no clock, no name, no order."""
    from aios_node.delta.merge.registry import make_strategy
    from aios_node.delta.merge.samples import since
    from aios_node.delta.merge.spool import Spool
    from aios_node.delta.merge.weights import merge
    from aios_node.engine.weights.folder import read_folder, write_folder

    strategy = make_strategy(job.strategy, job.options)
    base = read_folder(job.base)
    heads = sorted((read_folder(path) for path in job.heads), key=lambda head: head.version)
    # Where heads may be faulty, one that claims to be derived must not stop the others.
    _check_plain([base] if strategy.robust else [base, *heads])
    files = _files(base, heads, majority=strategy.robust)
    samples = since(base.manifest.recipe, [head.manifest.recipe for head in heads])
    with ExitStack() as stack:
        spool = stack.enter_context(Spool(job.scratch))
        sides = [_side(stack, head, count) for head, count in zip(heads, samples, strict=True)]
        merged = merge(
            _side(stack, base, 0),
            sides,
            strategy,
            spool,
            lambda done, count: progress(WRITING * done / count, "merging"),
        )
        recipe = _recipe(strategy, base, sides, merged)
        progress(WRITING, "writing")
        parents = [head.version for head in heads]
        write_folder(job.folder, merged.weights, files, parents=parents, recipe=recipe, reuse=base)
    return recipe


def _side(stack: ExitStack, folder: VersionFolder, samples: int) -> Side:
    from aios_node.delta.merge.sides import Side

    hashes = {entry.name: entry.sha256 for entry in folder.manifest.tensors}
    return Side(folder.version, stack.enter_context(folder.weights()), hashes, samples)


def _check_plain(folders: Sequence[VersionFolder]) -> None:
    """Derived models are not merged: they are made anew from their merged source."""
    for folder in folders:
        source = folder.manifest.derived_from
        if source is not None:
            raise BadRequest(
                f"{short(folder.version)} was derived from {source['model']}: merge {source['model']}; "
                "the node then makes its precisions anew"
            )


def _files(base: VersionFolder, heads: Sequence[VersionFolder], *, majority: bool) -> dict[str, bytes]:
    """The small files of the result, three-way or by majority."""
    from aios_node.delta.merge.files import merge_files

    folders = {head.version: head for head in heads}
    chosen = merge_files(
        _hashes(base), {version: _hashes(head) for version, head in folders.items()}, majority=majority
    )
    return {name: (base if head is None else folders[head]).read_file(name) for name, head in chosen.items()}


def _hashes(folder: VersionFolder) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in folder.manifest.files.items()}


def _recipe(strategy: Strategy, base: VersionFolder, sides: Sequence[Side], merged: Merged) -> dict[str, Any]:
    """How the version was made, in full: every option, what each head learned, and who was left out."""
    from aios_node.delta.merge.registry import options_of
    from aios_node.delta.merge.samples import MOST, total_samples

    samples = {side.version: side.samples for side in sides}
    taken = sum(count for version, count in samples.items() if version not in merged.left_out)
    return {
        "method": "merge",
        "strategy": strategy.name,
        "options": options_of(strategy),
        "base": base.version,
        "samples": samples,
        "total_samples": min(MOST, total_samples(base.manifest.recipe) + taken),
        "left_out": list(merged.left_out),
    }
