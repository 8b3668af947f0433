"""What a Flight descriptor asks for: paths and JSON commands as dataclasses. Everything in them is hostile.

    paths     weights/<model>[/<version>]   memory/<table>   encode[/<model>]   search/<table>   sync
    commands  {"v":1,"op":"weights",...}    {"v":1,"op":"search",...}

A path may come as one component or as several: ``for_path("weights", "m")`` means ``for_path("weights/m")``.
Does not know whether a name exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.flight as fl

from aios_node.engine.errors import BadRequest, choices
from aios_node.flight.limits import Limits, require_size
from aios_node.flight.ports import SearchRequest
from aios_node.flight.queries import parse_search
from aios_node.memory.schema import check_table_name

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9a-f]{1,64}")
_MAX_PATH_BYTES = 1024
_KINDS = ("weights", "memory", "encode", "search", "sync")


@dataclass(frozen=True)
class WeightsTarget:
    """Weights of a model: rows, or the raw bytes of its shard files."""

    model: str
    version: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class MemoryTarget:
    """All rows of a table, or the place to put some."""

    table: str


@dataclass(frozen=True)
class SearchTarget:
    """One search (command), or the searches of an exchange; then ``request`` holds what they have in common."""

    request: SearchRequest


@dataclass(frozen=True)
class EncodeTarget:
    """An exchange of texts for vectors; None: the only open model."""

    model: str | None


@dataclass(frozen=True)
class SyncTarget:
    """An exchange of weights between peers."""


Target = WeightsTarget | MemoryTarget | SearchTarget | EncodeTarget | SyncTarget


def parse_descriptor(descriptor: Any, limits: Limits, *, exchange: bool = False) -> Target:
    """What a descriptor asks for. Raises ``BadRequest`` or ``TooLarge``.

    ``exchange``: for ``do_exchange``, where a search command carries no query of its own.
    """
    if descriptor.descriptor_type == fl.DescriptorType.PATH:
        return parse_path(list(descriptor.path))
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return parse_command(descriptor.command, limits, exchange=exchange)
    raise BadRequest("give a path such as weights/<model>, or a JSON command")


def parse_path(components: list[bytes]) -> Target:
    """What a path asks for. Raises ``BadRequest``."""
    if sum(len(part) for part in components) > _MAX_PATH_BYTES:
        raise BadRequest(f"the path is longer than {_MAX_PATH_BYTES} bytes")
    try:
        path = b"/".join(components).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the path is not UTF-8") from None
    kind, *names = path.split("/")
    if kind == "weights" and len(names) in {1, 2}:
        return WeightsTarget(check_model(names[0]), check_version(names[1]) if len(names) == 2 else None)
    if kind == "memory" and len(names) == 1:
        return MemoryTarget(check_table_name(names[0]))
    if kind == "encode" and len(names) <= 1:
        return EncodeTarget(check_model(names[0]) if names else None)
    if kind == "search" and len(names) == 1:
        return SearchTarget(SearchRequest(check_table_name(names[0])))
    if kind == "sync" and not names:
        return SyncTarget()
    shapes = "weights/<model>[/<version>], memory/<table>, encode[/<model>], search/<table>, sync"
    hint = f"{choices(kind, _KINDS)}; " if kind not in _KINDS else ""
    raise BadRequest(f"nothing has the path {path[:200]!r}: {hint}paths look like {shapes}")


def parse_command(command: bytes, limits: Limits, *, exchange: bool = False) -> Target:
    """What a JSON command asks for. Raises ``BadRequest`` or ``TooLarge``."""
    fields = parse_json(command, limits.command_bytes, "the command")
    if type(fields.get("v")) is not int or fields["v"] != 1:
        raise BadRequest('the command needs "v": 1, the version of this protocol')
    op = fields.get("op")
    rest = {key: value for key, value in fields.items() if key not in {"v", "op"}}
    if op == "weights":
        return _weights(rest)
    if op == "search":
        return SearchTarget(parse_search(rest, limits, with_query=not exchange))
    raise BadRequest(f"unknown op {str(op)[:80]!r}: {choices(str(op), ('weights', 'search'))}")


def _weights(fields: dict[str, Any]) -> WeightsTarget:
    for key in fields:
        if key not in {"model", "version", "raw"}:
            raise BadRequest(f"unknown field {key[:80]!r}: {choices(key, ('model', 'version', 'raw'))}")
    model, version, raw = fields.get("model"), fields.get("version"), fields.get("raw", False)
    if not isinstance(model, str):
        raise BadRequest('the op weights needs "model", the name of a model')
    if not (version is None or isinstance(version, str)) or not isinstance(raw, bool):
        raise BadRequest('"version" is text and "raw" is true or false')
    return WeightsTarget(check_model(model), check_version(version) if version is not None else None, raw)


def parse_json(data: bytes, limit: int, what: str) -> dict[str, Any]:
    """A JSON object from outside, bounded. Raises ``BadRequest`` or ``TooLarge``."""
    require_size(len(data), limit, f"{what} (bytes)")
    try:
        value = json.loads(data, parse_constant=_no_constant)
        if b"\\u" in data:  # an escape may smuggle in half a surrogate pair, which no UTF-8 can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, such as {{}}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def check_model(name: str) -> str:
    """Return ``name`` if it may name a model. Raises ``BadRequest``."""
    if _MODEL.fullmatch(name):
        return name
    raise BadRequest(
        f"{name[:80]!r} cannot name a model: use up to 128 of letters, digits, '.', '_' and '-', "
        "starting with a letter or digit"
    )


def check_version(version: str) -> str:
    """Return ``version`` if it may be a version id or a prefix of one. Raises ``BadRequest``."""
    if _VERSION.fullmatch(version):
        return version
    raise BadRequest(f"{version[:80]!r} is no version: give the first characters of its hexadecimal id")


def check_argument(arguments: Mapping[str, Any], name: str, action: str) -> str:
    """A required argument of an action that is a model's or a table's name. Raises ``BadRequest``."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"the action {action} needs {name!r} (text)")
    return check_table_name(value) if name == "table" else check_model(value)
