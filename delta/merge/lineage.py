"""Where diverged versions meet: their best common ancestors in the graph of versions.

Knows a mapping from versions to their parents. Knows nothing about what is stored where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aios_node.delta.names import short
from aios_node.engine.errors import BadRequest

Parents = Mapping[str, Sequence[str]]


def ancestors(parents: Parents, version: str) -> set[str]:
    """The version and all its known ancestors."""
    seen = {version}
    level = [version]
    while level:
        level = [above for below in level for above in parents.get(below, ()) if above not in seen]
        seen.update(level)
    return seen


def merge_bases(parents: Parents, heads: Iterable[str]) -> tuple[str, ...]:
    """Common ancestors of all heads that no other common ancestor descends from, sorted."""
    common = set.intersection(*(ancestors(parents, head) for head in heads))
    # An ancestor of a common one is common too, so whatever has a common descendant has one that is its child.
    older = {above for version in common for above in parents.get(version, ())}
    return tuple(sorted(common - older))


def merge_base(parents: Parents, heads: Sequence[str]) -> str:
    """The common ancestor that a merge of these heads is relative to: of several, the one with the smallest id.

    Several there are where histories crossed: two nodes merged the same versions with others in between. Each of them
    is as good as the other, the choice only has to be the same everywhere. Raises BadRequest where there is nothing to
    merge, where one head descends from another, and where there is no common ancestor: networks that began apart
    have nothing in common that a mean could keep.
    """
    if len(set(heads)) < 2:
        raise BadRequest("merging needs at least two different versions")
    for head in sorted(heads):
        below = next((other for other in sorted(heads) if other != head and head in ancestors(parents, other)), None)
        if below is not None:
            raise BadRequest(
                f"{short(below)} descends from {short(head)}: there is nothing to merge, activate {short(below)}"
            )
    bases = merge_bases(parents, heads)
    if not bases:
        shown = ", ".join(short(head) for head in sorted(heads))
        raise BadRequest(
            f"{shown} have no common ancestor that is known here: activate one of them, or name those that do (--head)"
        )
    return bases[0]
