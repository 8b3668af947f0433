"""How good a version is: its hashes, and how far it is from what it was made of."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from aios_node.engine.errors import BadRequest
from aios_node.node import jobs
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore

MAX_SIBLINGS = 16
"""Other precisions that are measured for one report."""


class ValidateArgs(Args):
    """A model, what to compare it with, on which texts, and what it must reach.

    ``precisions``: measure everything else that was made of the same reference, too.
    """

    model: str
    reference: str | None = None
    texts: Path | None = None
    min_cosine: float | None = Field(None, ge=-1, le=1)
    max_relative_error: float | None = Field(None, ge=0)
    precisions: bool = False

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were asked for."""
        limits = {"min_cosine": self.min_cosine, "max_relative_error": self.max_relative_error}
        return {name: limit for name, limit in limits.items() if limit is not None}


@operation(
    "model_validate",
    "{model, reference?, texts?, min_cosine?, max_relative_error?, precisions?} -> "
    "{version, tensors, weights, layers, embedding, worst, precisions, passed, failures}",
    "admin",
    "node/models",
    long=True,
)
def model_validate(core: NodeCore, args: ValidateArgs, progress: Progress) -> dict[str, Any]:
    """Recompute every hash; compare weights, layers and embeddings with the reference."""
    version = core.version(args.model, None)
    reference = args.reference or _origin(core, version)
    if reference is None and args.model_fields_set - {"model"}:
        raise BadRequest(f"{args.model} was not made of another model here: name one to compare it with (--reference)")
    progress(0.1, "hashing")
    core.store.verify(version)
    tensors = len(core.store.manifest(version).tensors)
    result: dict[str, Any] = {"model": args.model, "version": version, "tensors": tensors, "hash_ok": True}
    if reference is None:
        return {**result, "passed": True, "failures": []}
    other = core.version(reference, None)
    with ExitStack() as stack:
        mine, theirs = (stack.enter_context(core.store.pin(each)) for each in (version, other))
        siblings = _siblings(core, args.model, reference) if args.precisions else ()
        others = tuple((name, stack.enter_context(core.store.pin(each))) for name, each in siblings)
        job = jobs.CompareJob(mine, theirs, args.texts, others)
        compared = core.workers.run(jobs.compare, job, progress=progress)
    failures = jobs.failures(compared, args.min_cosine, args.max_relative_error)
    named = {"reference": reference, "reference_version": other, "limits": args.limits}
    return {**result, **named, **compared, "passed": not failures, "failures": failures}


def _origin(core: NodeCore, version: str) -> str | None:
    source = core.store.picture.facts[version].derived_from
    return source.model if source and source.model in core.store.models() else None


def _siblings(core: NodeCore, model: str, reference: str) -> list[tuple[str, str]]:
    """Names and active versions of the other models that were made of a reference."""
    found = []
    for name in core.store.models():
        active = core.store.active(name)
        if active and name not in {model, reference} and _origin(core, active) == reference:
            found.append((name, active))
    return found[:MAX_SIBLINGS]
