"""The actions of the public contract, and how any action is checked and run. JSON in, JSON out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from aios_node.engine.errors import BadRequest, choices
from aios_node.flight.descriptors import check_argument, parse_json
from aios_node.flight.limits import Limits
from aios_node.flight.ports import Action

STANDARD: tuple[Action, ...] = (
    Action("health", "{} -> {status}", None),
    Action("status", "{} -> {node, address, models, tables, peers, version}", "read", "node/status"),
    Action(
        "versions",
        "{model} -> {model, active, heads, versions: [{id, parents, quant, bytes, created_at}]}",
        "read",
        "weights/{model}",
    ),
    Action("activate", "{model, version} -> {model, active, previous}", "admin", "weights/{model}"),
    Action("rollback", "{model} -> {model, active, previous}", "admin", "weights/{model}"),
    Action(
        "sync",
        "{peer?, model?} -> {results: [{peer, model, from, to, mode, bytes, full_bytes, hash_ok}]}",
        "admin",
        "node/sync",
    ),
    Action("drain", "{} -> {status}", "admin", "node/drain"),
    Action("metrics", "{} -> {text}", "read", "node/metrics"),
    Action("memory_get", "{table, ids} -> {rows}", "read", "memory/{table}"),
    Action("memory_update", "{table, id, ...} -> {id, version}", "write", "memory/{table}"),
    Action("memory_delete", "{table, ids | filter} -> {rows, version}", "write", "memory/{table}"),
)
"""What every node offers. A node may add its own."""


def find_action(name: str, actions: Mapping[str, Action]) -> Action:
    """The action of this name. Raises ``BadRequest``, naming those that exist."""
    action = actions.get(name)
    if action is None:
        raise BadRequest(f"unknown action {name[:80]!r}: {choices(name, actions, limit=40)}")
    return action


def parse_arguments(body: bytes, limits: Limits) -> dict[str, Any]:
    """The arguments of an action; an empty body means none. Raises ``BadRequest`` or ``TooLarge``."""
    return parse_json(body, limits.action_bytes, "the action's body") if body else {}


def resource_of(action: Action, arguments: Mapping[str, Any]) -> str:
    """The resource that the action's right is about, with the arguments it names filled in."""
    names = [name for _, name, _, _ in Formatter().parse(action.resource) if name]
    return action.resource.format(**{name: check_argument(arguments, name, action.name) for name in names})


def encode_results(results: Iterator[Mapping[str, Any]]) -> Iterator[bytes]:
    """Each result as JSON bytes."""
    for result in results:
        yield json.dumps(result, ensure_ascii=False, allow_nan=False).encode("utf-8")
