"""Operations that learn from local data."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import Field

from aios_node.engine.errors import BadRequest
from aios_node.node import jobs
from aios_node.node.operations.lossy import LossyArgs, lossy_settings
from aios_node.node.operations.registry import Progress, operation

if TYPE_CHECKING:
    from pathlib import Path

    from aios_node.node.core import NodeCore
    from aios_node.node.privacy import PrivacyPlan

MIN_DOCUMENTS = 64


class TrainEncoderArgs(LossyArgs):
    """What to learn from, and for how long."""

    model: str
    table: str | None = None
    steps: int | None = None
    seed: int = 0
    publish: bool = True
    prox_mu: float = Field(0.0, ge=0, le=1e6)
    clip_norm: float | None = Field(None, gt=0, le=1e9)
    noise_multiplier: float | None = Field(None, ge=0, le=1e4)
    epsilon: float | None = Field(None, gt=0)


@operation(
    "train_encoder",
    "{model, table?, steps?, seed?, publish?, prox_mu?, clip_norm?, noise_multiplier?, epsilon?, "
    "lossy?, share?} -> {before, after, questions, published, version, reason, privacy?, lossy?}",
    "admin",
    "weights/{model}",
    long=True,
)
def train_encoder(core: NodeCore, args: TrainEncoderArgs, progress: Progress) -> dict[str, Any]:
    """Adapt an encoder to a table; publish the result only if held-out retrieval gets better."""
    core.models.encoder_name(args.model)
    source = core.version(args.model, None)
    table = args.table or core.config.memory.default_table
    plan = _privacy(core, args, table, source)
    settings = lossy_settings(args)
    started = time.monotonic()
    with ExitStack() as stack:
        folder, work = (stack.enter_context(core.store.workspace()) for _ in range(2))
        base = stack.enter_context(core.store.pin(source))
        documents = write_documents(core, table, work / "documents.jsonl")
        lossy = None
        if settings is not None:
            private = plan is not None
            kept = stack.enter_context(core.residuals.workspace())
            lossy = jobs.LossyPlan(settings, kept, core.residuals.find(args.model, source, private=private), private)
        job = jobs.AdaptJob(base, folder, documents, args.steps, args.seed, source, args.prox_mu, plan, lossy)
        report = core.workers.run(jobs.adapt_encoder, job, progress=progress)
        version = None
        if report["better"] and args.publish:
            if plan is not None:
                core.privacy.spend(table, plan.rho, core.config.privacy)
            version = core.publish(args.model, folder)
            if lossy is not None:
                core.residuals.keep(args.model, version, lossy.kept)
    return {
        "model": args.model,
        "table": table,
        **report,
        "reason": report["reason"] or ("" if args.publish else "a dry run publishes nothing"),
        "published": version is not None,
        "version": version,
        "from": source,
        "seconds": round(time.monotonic() - started, 1),
    }


def _privacy(core: NodeCore, args: TrainEncoderArgs, table: str, source: str) -> PrivacyPlan | None:
    """Noise as the configuration and the arguments ask for it; refused before anything is trained."""
    from aios_node.node.privacy import plan_release, spent_by

    if args.epsilon is not None and args.noise_multiplier is not None:
        raise BadRequest("epsilon and noise_multiplier say the same in two ways: give one of them")
    said = {"clip_norm": args.clip_norm, "noise_multiplier": args.noise_multiplier}
    changes = {name: value for name, value in said.items() if value is not None}
    settings = core.config.privacy.model_copy(update=changes)
    before = spent_by(core.store, source)
    return plan_release(settings, core.privacy, table, before, epsilon=args.epsilon)


def write_documents(core: NodeCore, table: str, path: Path) -> Path:
    """The table's texts for the worker, one JSON object per line; ``source`` is a text's title."""
    count = 0
    with path.open("wb") as file:
        for document in core.documents(table):
            file.write(jobs.document_line(document))
            count += 1
    if count < MIN_DOCUMENTS:
        raise BadRequest(
            f"table {table} holds {count} texts; at least {MIN_DOCUMENTS} are needed to learn and to judge by"
        )
    return path
