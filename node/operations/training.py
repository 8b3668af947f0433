"""Operations that learn from local data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from aios_node.engine.errors import BadRequest
from aios_node.node import jobs
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from pathlib import Path

    from aios_node.node.core import NodeCore

MIN_DOCUMENTS = 64


class TrainEncoderArgs(Args):
    """What to learn from, and for how long."""

    model: str
    table: str | None = None
    steps: int | None = None
    seed: int = 0
    publish: bool = True
    prox_mu: float = Field(0.0, ge=0, le=1e6)


@operation(
    "train_encoder",
    "{model, table?, steps?, seed?, publish?, prox_mu?} -> {before, after, questions, published, version, reason}",
    "admin",
    "weights/{model}",
    long=True,
)
def train_encoder(core: NodeCore, args: TrainEncoderArgs, progress: Progress) -> dict[str, Any]:
    """Adapt an encoder to a table; publish the result only if held-out retrieval gets better."""
    core.models.encoder_name(args.model)
    source = core.version(args.model, None)
    table = args.table or core.config.memory.default_table
    started = time.monotonic()
    with core.store.workspace() as folder, core.store.workspace() as work, core.store.pin(source) as base:
        documents = _write_documents(core, table, work / "documents.jsonl")
        job = jobs.AdaptJob(base, folder, documents, args.steps, args.seed, source, args.prox_mu)
        report = core.workers.run(jobs.adapt_encoder, job, progress=progress)
        version = core.publish(args.model, folder) if report["better"] and args.publish else None
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


def _write_documents(core: NodeCore, table: str, path: Path) -> Path:
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
