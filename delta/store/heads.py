"""What a node has: models, their versions, which is active. An immutable picture, taken after every change.

Readers hold one picture and see no half-made change; a change makes a new picture. Pure: no files, no
database (``headsdb`` reads pictures from one), no opinion on which version is better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType

from aios_node.delta.merge.lineage import merge_bases
from aios_node.delta.names import check_model, is_prefix, short
from aios_node.delta.offers import Source
from aios_node.engine.errors import UnknownModel, UnknownVersion, choices


@dataclass(frozen=True)
class Facts:
    """What a version says of itself, the same on every node, plus ancestors that the sender told us of.

    ``bytes`` is the size of all tensors, uncompressed; ``quant`` is ``none|int8|int4|int2|mixed``.
    """

    id: str
    parents: tuple[str, ...] = ()
    quant: str = "none"
    bytes: int = 0
    derived_from: Source | None = None
    ancestors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A version as part of a model: when it was made and the envelope that proves by whom, if any."""

    version: str
    created_at: str
    envelope: bytes | None = None


@dataclass(frozen=True)
class Pointers:
    """Where a model stands. ``previous`` is where ``rollback`` goes."""

    model: str
    active: str | None = None
    previous: str | None = None


@dataclass(frozen=True)
class ModelState:
    """One model: its versions in the order in which they were committed here."""

    pointers: Pointers
    members: tuple[Member, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(member.version for member in self.members)


@dataclass(frozen=True)
class VersionInfo:
    """One version of a model as people and peers ask for it."""

    id: str
    parents: tuple[str, ...]
    quant: str
    bytes: int
    created_at: str
    derived_from: Source | None


@dataclass(frozen=True)
class Heads:
    """The picture. ``facts`` also remembers versions whose files are gone, so that lineage stays known."""

    models: Mapping[str, ModelState] = field(default_factory=lambda: MappingProxyType({}))
    facts: Mapping[str, Facts] = field(default_factory=lambda: MappingProxyType({}))

    def model(self, name: str) -> ModelState:
        """Raises BadRequest for an impossible name, UnknownModel (naming what exists) for an unknown one."""
        state = self.models.get(check_model(name))
        if state is None:
            raise UnknownModel(f"no model {name}: {choices(name, self.models)}")
        return state

    def member(self, name: str, version: str) -> Member:
        """The entry of one version (full id) in one model. Raises UnknownVersion."""
        for member in self.model(name).members:
            if member.version == version:
                return member
        raise UnknownVersion(f"{name} has no version {short(version)}: {self._versions_of(name)}")

    def registered(self) -> frozenset[str]:
        """Every version that at least one model has."""
        return frozenset(version for state in self.models.values() for version in state.versions)

    def info(self, name: str) -> tuple[VersionInfo, ...]:
        """All versions of a model, newest first."""
        return tuple(
            VersionInfo(
                id=member.version,
                parents=(facts := self.facts[member.version]).parents,
                quant=facts.quant,
                bytes=facts.bytes,
                created_at=member.created_at,
                derived_from=facts.derived_from,
            )
            for member in reversed(self.model(name).members)
        )

    def resolve(self, name: str, prefix: str) -> str:
        """The one version of a model that begins with 4 or more digits. Raises UnknownVersion."""
        versions = self.model(name).versions
        if not is_prefix(prefix):
            raise UnknownVersion(f"not a version of {name}: {prefix[:80]!r}: give 4 or more hexadecimal digits")
        found = [version for version in versions if version.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(_apart(found))
            raise UnknownVersion(f"several versions of {name} begin with {prefix}: {shown}")
        raise UnknownVersion(f"{name} has no version {short(prefix)}: {self._versions_of(name)}")

    def ancestors(self, version: str) -> tuple[str, ...]:
        """Every known ancestor once, nearest first: breadth first, told ancestors in the order they were told in."""
        seen: dict[str, None] = {version: None}
        level: Iterable[str] = seen
        while level:
            found = dict.fromkeys(above for below in level for above in self._above(below))
            level = [above for above in found if above not in seen]
            seen |= dict.fromkeys(level)
        return tuple(seen)[1:]

    def heads(self, name: str) -> tuple[str, ...]:
        """Versions of a model that no other of its versions descends from, newest first."""
        versions = self.model(name).versions
        old: set[str] = set()
        level = set(versions)
        while level:
            level = {above for below in level for above in self._above(below)} - old
            old |= level
        return tuple(version for version in reversed(versions) if version not in old)

    def bases(self, name: str) -> frozenset[str]:
        """Where the heads of a model meet: all of them, and each with the active version."""
        heads, active = self.heads(name), self.models[name].pointers.active
        lineage = self.lineage(name)
        crowds = [heads, *((active, head) for head in heads if active and head != active)] if len(heads) > 1 else []
        return frozenset(base for crowd in crowds for base in merge_bases(lineage, crowd))

    def lineage(self, name: str) -> dict[str, tuple[str, ...]]:
        """Parents of every version of a model and of all their known ancestors."""
        versions = self.model(name).versions
        known = dict.fromkeys([*versions, *(above for version in versions for above in self.ancestors(version))])
        return {version: self._above(version) for version in known}

    def derived(self, name: str) -> tuple[str, ...]:
        """Models whose active version was derived from the named model, in order of their names."""
        return tuple(model for model in sorted(self.models) if self._source(model) == name)

    def without(self, members: Collection[tuple[str, str]]) -> frozenset[str]:
        """Versions that no model would have any more without these (model, version) pairs."""
        left = {
            version
            for name, state in self.models.items()
            for version in state.versions
            if (name, version) not in members
        }
        return frozenset(version for _, version in members) - left

    def admits(self, facts: Facts) -> bool:
        """Whether lineage stays free of cycles with these facts. Parents cannot lie, told ancestors can."""
        return _acyclic({**_edges(self.facts, told=True), facts.id: (*facts.parents, *facts.ancestors)})

    @cached_property
    def _graph(self) -> Mapping[str, tuple[str, ...]]:
        edges = _edges(self.facts, told=True)
        return edges if _acyclic(edges) else _edges(self.facts, told=False)

    def _above(self, version: str) -> tuple[str, ...]:
        return self._graph.get(version, ())

    def _source(self, name: str) -> str | None:
        active = self.models[name].pointers.active
        source = self.facts[active].derived_from if active else None
        return source.model if source else None

    def _versions_of(self, name: str) -> str:
        newest = [short(version) for version in reversed(self.models[name].versions)]
        return "it has " + ", ".join(newest[:8]) + (", ..." if len(newest) > 8 else "") if newest else "it has none"


def expendable(heads: Heads, *, keep_last: int, keep: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """The (model, version) pairs that garbage collection may drop.

    Never the active or previous version of any model, a head, the ancestor that diverged heads are merged by, the
    newest ``keep_last`` of a model, or what is listed in ``keep``.
    """
    kept = set(keep)
    for name, state in heads.models.items():
        kept |= {state.pointers.active or "", state.pointers.previous or "", *heads.heads(name), *heads.bases(name)}
    return tuple(
        (name, version)
        for name, state in sorted(heads.models.items())
        for version in state.versions[: max(0, len(state.versions) - max(0, keep_last))]
        if version not in kept
    )


def _edges(facts: Mapping[str, Facts], *, told: bool) -> dict[str, tuple[str, ...]]:
    """From each version to its parents and, if asked for, to the ancestors that others told us of."""
    return {
        version: tuple(dict.fromkeys((*known.parents, *known.ancestors))) if told else known.parents
        for version, known in facts.items()
    }


def _acyclic(edges: Mapping[str, tuple[str, ...]]) -> bool:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError:
        return False
    return True


def _apart(versions: list[str]) -> list[str]:
    """Versions cut to the shortest length that tells them apart, but at least as people know them."""
    length = len(short(versions[0]))
    while len({version[:length] for version in versions}) < len(versions):
        length += 1
    return sorted(version[:length] for version in versions)
