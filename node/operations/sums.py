"""Operations of secure sums: what a coordinator asks of its members, and the command that makes one of a node."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from aios_node.delta.merge.samples import total_samples
from aios_node.delta.privacy.ledger import RECIPE_KEY, recipe_entry, rho_of
from aios_node.engine.errors import BadRequest, Unauthorized
from aios_node.node import jobs
from aios_node.node.operations.registry import Args, Progress, operation
from aios_node.node.operations.training import write_documents
from aios_node.node.patterns import chosen
from aios_node.node.privacy import spent_by
from aios_node.node.sums.plan import SumPlan

if TYPE_CHECKING:
    from aios_node.delta.privacy.aggregation.aggregator import Sum
    from aios_node.node.core import NodeCore
    from aios_node.node.sums.coordinator import Ask

TRAINING_S = 3600.0
ANSWER_S = 300.0


class SumOpenArgs(Args, SumPlan):
    """The plan."""


class SumSayArgs(Args):
    """What the aggregator says."""

    model: str
    session: str
    message: str


class SumPieceArgs(Args):
    """From which byte on."""

    model: str
    session: str
    at: int = Field(ge=0)


class TrainTogetherArgs(Args):
    """Who shall learn from what; ``threshold``: members that must stay, by default two thirds and one."""

    model: str
    threshold: int | None = None
    honest: int | None = None
    steps: int | None = Field(default=None, ge=1, le=100_000)
    clip_norm: float | None = Field(None, gt=0, le=1e9)
    noise_multiplier: float | None = Field(None, ge=0, le=1e4)


@operation(
    "sum_open",
    "{model, base, session, ...} -> {message, bytes}: train, and say keys",
    "write",
    "weights/{model}",
    long=True,
)
def sum_open(core: NodeCore, args: SumOpenArgs, progress: Progress) -> dict[str, Any]:
    """Take part in a sum: train on the default table, keep the vector ready, answer with this node's keys."""
    _check(core, args)
    table, terms = core.config.memory.default_table, args.terms
    settings, rho = core.config.privacy, rho_of(args.noisy.release)  # infinite without noise
    counted = settings.epsilon_max is not None or args.noise_multiplier > 0
    if counted:
        core.privacy.check(table, rho, settings)
    with core.store.workspace() as work, core.store.pin(args.base) as base:
        documents = write_documents(core, table, work / "documents.jsonl")
        vector = work / "vector"
        job = jobs.ContributeJob(base, documents, args.steps, args.layout, args.noisy, vector)
        core.workers.run(jobs.contribute, job, progress=progress)
        values = np.frombuffer(vector.read_bytes(), terms.dtype)
    keys = core.sums.open(terms, values, lambda: core.privacy.spend(table, rho, settings) if counted else None)
    return {"message": keys, "bytes": 0}


@operation("sum_say", "{model, session, message} -> {message, bytes}", "write", "weights/{model}")
def sum_say(core: NodeCore, args: SumSayArgs, _progress: Progress) -> dict[str, Any]:
    """Answer the aggregator of a sum."""
    message, size = core.sums.say(args.session, args.message)
    return {"message": message, "bytes": size}


@operation("sum_piece", "{model, session, at} -> {data}", "write", "weights/{model}")
def sum_piece(core: NodeCore, args: SumPieceArgs, _progress: Progress) -> dict[str, Any]:
    """A piece of the masked vector, base64."""
    return {"data": base64.b64encode(core.sums.piece(args.session, args.at)).decode()}


@operation(
    "train_together",
    "{model, threshold?, honest?, steps?, clip_norm?, noise_multiplier?} -> {version, contributors, members, privacy}",
    "admin",
    "weights/{model}",
    long=True,
)
def train_together(core: NodeCore, args: TrainTogetherArgs, progress: Progress) -> dict[str, Any]:
    """Let this node and its peers train, each on its own texts, and publish the mean; nobody sees a single update."""
    from aios_node.node.sums.coordinator import Coordinator

    source = core.version(args.model, None)
    members = _members(core, args.model)
    with core.store.pin(source) as base:
        layout = core.workers.run(jobs.trained_layout, jobs.LayoutJob(base))
        plan = _plan(core, args, source, tuple(members), layout.digest, layout.length)
        found = Coordinator(plan, members).run(progress)
        version, entry = _publish(core, plan, found)
    return {
        "model": args.model,
        "from": source,
        "version": version,
        "contributors": list(found.contributors),
        "members": sorted(members),
        "privacy": entry,
    }


def _plan(
    core: NodeCore, args: TrainTogetherArgs, source: str, members: tuple[str, ...], layout: str, length: int
) -> SumPlan:
    settings, count = core.config.privacy, len(members)
    threshold = args.threshold or 2 * count // 3 + 1
    if count < 2 or threshold > count:
        raise BadRequest(f"a sum of {count} members with threshold {threshold}: at least 2 are needed; add peers")
    noise = settings.noise_multiplier if args.noise_multiplier is None else args.noise_multiplier
    return SumPlan(
        model=args.model,
        base=source,
        session=secrets.token_hex(32),
        layout=layout,
        length=length,
        members=members,
        threshold=threshold,
        honest=args.honest or threshold - 1,
        clip_norm=args.clip_norm or settings.clip_norm,
        noise_multiplier=noise,
        steps=args.steps,
    )


def _members(core: NodeCore, model: str) -> dict[str, Ask]:
    """How every member is asked: this node, if its owner lets it, and all peers that can be dialled."""
    from aios_node.node.operations.registry import run_operation

    def of_peer(peer: Any) -> Ask:
        return lambda op, args: core.dialer.ask(peer, op, args, TRAINING_S if op == "sum_open" else ANSWER_S)

    members: dict[str, Ask] = {peer.node_id: of_peer(peer) for peer in core.peers.dialled() if peer.node_id}
    if chosen(model, core.config.privacy.sums):
        members[core.identity.node_id] = lambda op, args: run_operation(core, op, args, lambda _at, _text: None)
    return members


def _publish(core: NodeCore, plan: SumPlan, found: Sum) -> tuple[str, dict[str, Any]]:
    parent = core.store.manifest(plan.base).recipe
    entry = recipe_entry(plan.clip_norm, plan.noisy.release, core.config.privacy.delta, spent_by(core.store, plan.base))
    recipe = {
        "method": "secure-sum",
        "members": len(plan.members),
        "threshold": plan.threshold,
        "honest": plan.honest,
        "contributors": len(found.contributors),
        "steps": plan.steps,
        "total_samples": total_samples(parent),
        RECIPE_KEY: entry,
    }
    with core.store.workspace() as folder, core.store.workspace() as work, core.store.pin(plan.base) as base:
        (work / "total").write_bytes(found.total.data)
        count = len(found.contributors)
        job = jobs.SumJob(base, folder, work / "total", plan.noisy, count, plan.base, recipe)
        core.workers.run(jobs.apply_sum, job)
        return core.publish(plan.model, folder), entry


def _check(core: NodeCore, plan: SumPlan) -> None:
    """Whether this node's owner wants to be in such a sum. Raises Unauthorized, BadRequest, UnknownModel."""
    settings = core.config.privacy
    core.models.encoder_name(plan.model)
    if not chosen(plan.model, settings.sums):
        raise Unauthorized(f"this node trains for no sums of {plan.model}: its owner can add it to privacy.sums")
    if plan.base not in core.store.lineage(plan.model):
        raise BadRequest(f"this node does not have version {plan.base[:12]} of {plan.model}: sync first")
    known = {peer.node_id for peer in core.peers.all()} | {core.identity.node_id}
    strangers = set(plan.members) - known
    if strangers:
        raise Unauthorized(
            f"{len(strangers)} members of this sum are no peers of this node: it could not hide among them"
        )
    if plan.threshold < settings.sums_least or plan.honest > plan.threshold:
        raise Unauthorized(
            f"threshold {plan.threshold}, honest {plan.honest}: this node wants to be one of "
            f"{settings.sums_least} at least, and to count on no more noise than is surely there"
        )
    if plan.noise_multiplier < settings.noise_multiplier:
        raise Unauthorized(f"noise {plan.noise_multiplier:g}: this node's owner asks for {settings.noise_multiplier:g}")
