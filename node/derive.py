"""Keeps derived models (other precisions) in step with their source.

When a model gets a new active version, the models that this node made from it are made again by the
recipe in their manifest, scales frozen where that costs nothing. The arithmetic is the same everywhere,
so the result is too; still only the author rebuilds, to spare the others the work.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import structlog

from aios_node.delta.offers import Source
from aios_node.delta.store.events import Event
from aios_node.engine.errors import AiosError
from aios_node.node import jobs
from aios_node.node.merging import meeting

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore

log = structlog.get_logger("derive")


class Deriver:
    """One thread that rebuilds derived models, one after the other."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._unsubscribe = core.store.subscribe(self._changed)
        self._thread = threading.Thread(target=self._work, name="derive", daemon=True)
        self._thread.start()
        for model in core.store.models():
            self._queue.put(model)  # what a stop interrupted is made up for

    def close(self, timeout_s: float) -> None:
        """Stop after the model in work."""
        self._unsubscribe()
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _changed(self, event: Event) -> None:
        if event.kind == "activated":
            self._queue.put(event.model)

    def _work(self) -> None:
        while (source := self._queue.get()) is not None:
            for model in outdated(self._core, source):
                try:
                    follow(self._core, source, model)
                except AiosError as error:
                    log.error("derived model not rebuilt", model=model, source=source, error=error.message)


def outdated(core: NodeCore, source: str) -> list[str]:
    """Models that this node made from an older version of ``source``."""
    active = core.store.active(source)
    found = []
    for model in core.store.derived(source) if active else ():
        version = core.store.active(model)
        origin = core.store.picture.facts[version].derived_from if version else None
        mine = version is not None and core.publisher_of(model, version) == core.identity.node_id
        if mine and origin is not None and origin.version != active:
            found.append(model)
    return found


def follow(core: NodeCore, source: str, model: str) -> str:
    """Serve the derived version that belongs to the source's active one: an existing one, else a new one."""
    version = core.version(source, None)
    picture = core.store.picture
    for known in reversed(picture.model(model).versions):
        origin = picture.facts[known].derived_from
        if origin is not None and origin == Source(source, version) and core.store.has(known):
            core.store.activate(model, known)
            return known
    return rebuild(core, source, model)


def rebuild(core: NodeCore, source: str, model: str) -> str:
    """Make a derived model again from its source's active version; returns the new version.

    Where other nodes derived it too, it descends from all their versions and keeps the scales of the one with the
    smallest id: whoever has the same versions makes the same one.
    """
    version, active = core.version(source, None), core.version(model, None)
    parents = meeting(core, model) or (active,)
    previous = parents[0]
    recipe = core.store.manifest(previous).recipe or {}
    with core.store.workspace() as folder, core.store.pin(version) as base, core.store.pin(previous) as old:
        origin = Source(source, version)
        job = jobs.QuantizeJob(base, folder, recipe, origin, parents, old, core.scratch, measured=False)
        core.workers.run(jobs.quantize, job)
        made = core.publish(model, folder)
    log.info("derived model rebuilt", model=model, version=made[:12], source=source)
    return made
