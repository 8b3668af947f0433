"""How versions relate: pure functions over a mapping from version to its parents.

Unknown parents simply have no ancestors; a cycle (which honest hashes cannot make) ends the walk, not the program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

Parents = Mapping[str, Sequence[str]]
Relation = Literal["same", "ahead", "behind", "diverged"]


def ancestors(version: str, parents: Parents) -> Iterator[str]:
    """Every ancestor once, nearest first: breadth first, each generation in order of the ids."""
    seen = {version}
    generation = [version]
    while generation:
        above = {parent for child in generation for parent in parents.get(child, ())}
        generation = sorted(above - seen)
        seen.update(generation)
        yield from generation


def relation(one: str, other: str, parents: Parents) -> Relation:
    """Where ``one`` stands towards ``other``: ``ahead`` means that it descends from it."""
    if one == other:
        return "same"
    if other in ancestors(one, parents):
        return "ahead"
    return "behind" if one in ancestors(other, parents) else "diverged"


def heads(versions: Collection[str], parents: Parents) -> tuple[str, ...]:
    """Those versions from which none of the others descends, sorted."""
    older = {ancestor for version in versions for ancestor in ancestors(version, parents)}
    return tuple(sorted(set(versions) - older))


def meeting_points(one: str, other: str, parents: Parents) -> tuple[str, ...]:
    """The newest common ancestors of two versions (one in most histories), sorted. A version counts as its own."""
    common = {one, *ancestors(one, parents)} & {other, *ancestors(other, parents)}
    return heads(common, parents)


def nearest(lineage: Iterable[str], held: Collection[str]) -> str | None:
    """The first of a lineage (newest first) that is held: the best base for a delta."""
    return next((version for version in lineage if version in held), None)
