"""Diverged heads of a model become one version again: asked for by a person, or by itself after a sync.

Decides which heads meet and whether their authors are trusted, and publishes the result; how numbers are merged is
told by delta.merge. Two nodes that hold the same heads make the same version, whoever is first.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from aios_node.delta.merge.lineage import merge_base
from aios_node.delta.names import short
from aios_node.delta.store.events import Event
from aios_node.engine.errors import AiosError, BadRequest, Busy, NoBase, Unauthenticated, UnknownVersion
from aios_node.node import jobs
from aios_node.node.archiving import stored_version

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore

log = structlog.get_logger("merge")

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Way:
    """How to merge: a strategy's name and its options."""

    strategy: str
    options: Mapping[str, Any]


def merge_heads(
    core: NodeCore, model: str, heads: Sequence[str], way: Way, progress: Progress, *, only_while: str | None = None
) -> dict[str, Any]:
    """Merge these versions (full ids) of a model and serve the result; returns model, version, base, heads, recipe.

    ``only_while``: give the result up (Busy) unless this version is still active, so that what was learned in the
    meantime is not pushed aside. Raises BadRequest for versions that have not diverged or cannot be merged, NoBase
    where the common ancestor is neither stored nor archived, Unauthenticated where a head's author is a stranger by
    now, and what merging raises.
    """
    _check_authors(core, model, heads)
    base = _base(core, model, heads)
    with ExitStack() as stack:
        folder, scratch = (stack.enter_context(core.store.workspace()) for _ in range(2))
        first, *others = (stack.enter_context(core.store.pin(version)) for version in (base, *sorted(heads)))
        job = jobs.MergeJob(first, tuple(others), folder, scratch, way.strategy, way.options)
        recipe = core.workers.run(jobs.merge_versions, job, progress=progress)
        if only_while is not None and core.store.active(model) != only_while:
            raise Busy(f"another version of {model} became active while it was merged: it is merged with that one next")
        version = core.publish(model, folder)
    log.info("merged", model=model, version=version[:12], strategy=way.strategy, heads=[head[:12] for head in heads])
    return {"model": model, "version": version, "base": base, "heads": sorted(heads), "recipe": recipe}


def meeting(core: NodeCore, model: str) -> tuple[str, ...]:
    """The heads that a node merges by itself: its active version, and those that came from others.

    A head of its own that is not active was rolled back from, and stays out; a node that went back to an older
    version merges nothing. So does one whose peers merged the same heads in another way: doing it again would
    never end.
    """
    picture = core.store.picture
    active = core.store.active(model)
    heads = picture.heads(model)
    if active is None or active not in heads:
        return ()
    others = [head for head in heads if head != active and core.publisher_of(model, head) != core.identity.node_id]
    parents = picture.facts[active].parents
    rivals = [head for head in others if len(parents) > 1 and picture.facts[head].parents == parents]
    if rivals:
        log.warning(
            "a peer merged the same versions in another way: give all nodes the same models.merge_strategy",
            model=model,
            version=rivals[0][:12],
        )
    return tuple(sorted({active, *others} - set(rivals))) if set(others) - set(rivals) else ()


class Merger:
    """One thread that merges what diverged, some quiet time after the last news of a model."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._wake = threading.Condition()
        self._due: dict[str, float] = {}
        self._failed: dict[str, tuple[str, ...]] = {}
        self._closed = False
        for model in core.store.models():
            self._put(model)  # what a stop interrupted is made up for
        self._unsubscribe = core.store.subscribe(self._changed)
        self._thread = threading.Thread(target=self._work, name="merge", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop after the model in work."""
        self._unsubscribe()
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def _changed(self, event: Event) -> None:
        if event.kind in {"committed", "activated"}:
            self._put(event.model)

    def _put(self, model: str) -> None:
        """Wait a little, and not as long as the others: who is first spares them partial merges of partial merges."""
        wait = self._core.config.models.merge_wait_s * random.uniform(0.5, 1.5)  # noqa: S311 - keeps no secret
        with self._wake:
            self._due[model] = time.monotonic() + wait
            self._wake.notify_all()

    def _next(self) -> str | None:
        """The model whose quiet time is over; None at the end."""
        with self._wake:
            while not self._closed:
                model = min(self._due, key=lambda name: self._due[name], default=None)
                pause = None if model is None else self._due[model] - time.monotonic()
                if model is not None and pause is not None and pause <= 0:
                    del self._due[model]
                    return model
                self._wake.wait(pause)
        return None

    def _work(self) -> None:
        while (model := self._next()) is not None:
            active = self._core.store.active(model)  # asked before the heads: what comes in between is a change
            heads = () if _derived(self._core, model) else meeting(self._core, model)
            if len(heads) < self._core.config.models.merge_heads or self._failed.get(model) == heads:
                continue
            try:
                merge_heads(self._core, model, heads, configured(self._core), _silent, only_while=active)
            except AiosError as error:
                if not error.retryable:
                    self._failed[model] = heads
                log.warning("diverged versions not merged", model=model, error=error.message)


def configured(core: NodeCore) -> Way:
    """How this node merges unless it is told otherwise."""
    section = core.config.models
    return Way("fedavg" if section.merge_strategy == "none" else section.merge_strategy, section.merge_options)


def _derived(core: NodeCore, model: str) -> bool:
    """Whether a model is made of another one: it is made anew when that was merged (see derive)."""
    active = core.store.active(model)
    return active is not None and core.store.picture.facts[active].derived_from is not None


def _check_authors(core: NodeCore, model: str, heads: Sequence[str]) -> None:
    """Trust may have been withdrawn since a head arrived: what it says must not live on under this node's name."""
    trusted = core.trusted_publishers()
    for head in heads if trusted is not None else ():
        author = core.publisher_of(model, head)
        if trusted is not None and author not in trusted:
            raise Unauthenticated(
                f"{model} {short(head)} is signed by {(author or 'nobody')[:12]}, a stranger: it is not merged; "
                "name its author in security.publishers, or name other heads (--head)"
            )


def _base(core: NodeCore, model: str, heads: Sequence[str]) -> str:
    base = merge_base(core.store.lineage(model), heads)
    if core.store.has(base):
        return base
    try:
        return stored_version(core, model, base)
    except UnknownVersion:
        raise NoBase(
            f"the common ancestor {short(base)} of these versions of {model} is not here: a node that has it can merge "
            "them; or activate one of them; store.keep_versions and store.history_mb say how long versions are kept"
        ) from None


def diverged(core: NodeCore, model: str) -> tuple[str, ...]:
    """All heads of a model. Raises BadRequest where there is only one."""
    heads = core.store.heads(model)
    if len(heads) < 2:
        raise BadRequest(f"{model} has not diverged: it has the one head {short(heads[0]) if heads else 'none'}")
    return heads


def _silent(_fraction: float, _text: str) -> None:
    """Nobody asked."""
