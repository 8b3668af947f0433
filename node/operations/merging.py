"""Merging the diverged heads of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from aios_node.node.archiving import stored_version
from aios_node.node.merging import Way, configured, diverged, merge_heads
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore

MAX_HEADS = 64
"""A version has no more parents than this."""


class MergeArgs(Args):
    """A model; which of its heads to merge (default: all), and how (default: as the configuration says)."""

    model: str
    strategy: str | None = None
    options: dict[str, float | int | str] = Field(default_factory=dict)
    heads: tuple[str, ...] = Field((), max_length=MAX_HEADS)


@operation(
    "model_merge",
    "{model, strategy?, options?, heads?} -> {model, version, base, heads, recipe}",
    "admin",
    "weights/{model}",
    long=True,
)
def model_merge(core: NodeCore, args: MergeArgs, progress: Progress) -> dict[str, Any]:
    """Merge diverged versions into one that descends from all of them, and serve it."""
    heads = [stored_version(core, args.model, head) for head in args.heads] or diverged(core, args.model)
    return merge_heads(core, args.model, heads, _way(core, args), progress)


def _way(core: NodeCore, args: MergeArgs) -> Way:
    usual = configured(core)
    if args.strategy in {None, usual.strategy}:
        return Way(usual.strategy, {**usual.options, **args.options})
    return Way(args.strategy or usual.strategy, args.options)
