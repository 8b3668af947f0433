"""The values inside a filter: columns, literals, patterns, and comparisons between them.

Knows sqlglot's leaves and how the log stores each column; ``filters`` knows how conditions combine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from aios_node.engine.errors import BadRequest, choices
from aios_node.memory.schema import COLUMNS

if TYPE_CHECKING:
    from sqlglot.expressions import Expr

Kind = Literal["string", "number", "time", "list", "wide"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: dict[str, Kind] = {
    "created_at": "time",
    "importance": "number",
    "tags": "list",
    "payload": "wide",
    "embedding": "wide",
    "joint_embedding": "wide",
}


@dataclass(frozen=True)
class Predicate:
    """SQL over the log's table ``rows`` and its parameters."""

    sql: str = "TRUE"
    values: tuple[Any, ...] = ()

    def __and__(self, other: Predicate) -> Predicate:
        return Predicate(f"({self.sql}) AND ({other.sql})", self.values + other.values)


def any_of(column: str, values: Sequence[str]) -> Predicate:
    """Rows whose ``column`` (a name from the code, never from a caller) is one of ``values``."""
    return Predicate(f"rows.{column} IN ({', '.join('?' * len(values))})", tuple(values))


def with_ids(ids: Iterable[str]) -> Predicate:
    """Rows of these ids, however many. No id holds a NUL, and SQLite's JSON would cut there: such are left out."""
    return Predicate("rows.id IN (SELECT value FROM json_each(?))", (json.dumps([i for i in ids if "\0" not in i]),))


@dataclass(frozen=True)
class Operand:
    """One side of a comparison: a column or a literal."""

    kind: Kind
    sql: str
    literal: Any = None  # the parameter, None for a column


def only(node: Expr, *allowed: str) -> None:
    """A node may carry no argument beyond these: newer grammars put meaning into new ones."""
    for name, value in node.args.items():
        if name not in allowed and not name.startswith("_") and value not in (None, False, []):
            raise BadRequest(f"filter: {name} of {type(node).__name__.upper()} is not supported")


def refused(node: Expr) -> BadRequest:
    """The error for a node that has no place where it stands."""
    if type(node).__name__ in ("Column", "Literal"):
        return BadRequest(f"filter: {node.name[:60]!r} alone is no condition; compare it with something")
    return BadRequest(
        f"filter: {type(node).__name__.upper()} is not allowed; use comparison, AND, OR, NOT, IN, LIKE, BETWEEN, "
        "IS NULL and list_contains(tags, 'x')"
    )


def operand(node: Expr) -> Operand:
    """A column that can be compared, or a literal."""
    node = _bare(node)
    name = type(node).__name__
    if name == "Column":
        found = column(node)
        if found.kind in ("list", "wide"):
            raise BadRequest(f"filter: {node.name} cannot be compared, only tested with IS NULL or list_contains")
        return found
    if name == "Literal":
        only(node, "this", "is_string")
        return Operand("string", "?", node.this) if node.is_string else _number(node.this, 1)
    if name == "Neg" and type(node.this).__name__ == "Literal" and not node.this.is_string:
        return _number(node.this.this, -1)
    if name == "Cast":
        return _cast(node)
    if name == "Null":
        raise BadRequest("filter: nothing equals NULL; use IS NULL or IS NOT NULL")
    raise refused(node)


def column(node: Expr) -> Operand:
    """A column of the schema, of any kind."""
    node = _bare(node)
    name = node.name.lower()
    if type(node).__name__ != "Column" or name not in COLUMNS.names:
        hint = "; strings take single quotes" if getattr(node.this, "quoted", False) else ""
        raise BadRequest(f"filter: unknown column {name[:60]!r}{hint}: {choices(name, COLUMNS.names, limit=20)}")
    only(node, "this")
    return Operand(_KINDS.get(name, "string"), f"rows.{name}")


def compare(sign: str, left: Operand, right: Operand) -> Predicate:
    """``left sign right``; ``sign`` is one of the code's own."""
    return Predicate(f"{left.sql} {sign} {right.sql}", (*given(left, right), *given(right, left)))


def given(one: Operand, other: Operand) -> tuple[Any, ...]:
    """The parameter of ``one``, if it is a literal, in the form in which ``other`` is stored."""
    if one.kind != other.kind:
        text, time = (one, other) if one.kind == "string" else (other, one)
        if (text.kind, time.kind) != ("string", "time") or text.literal is None:
            raise BadRequest(f"filter: a {one.kind} cannot be compared with a {other.kind}")
        if one is text:
            return (microseconds(text.literal),)
    if one.literal is None:
        return ()
    return (_float32(one.literal),) if one.kind == "number" else (one.literal,)


def glob(pattern: str, escape: str) -> str:
    """A LIKE pattern as a GLOB pattern, which minds case and knows no escape: ``[*]`` is a plain star."""
    out = []
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            plain = next(characters, "")
            if not plain:
                raise BadRequest("filter: the LIKE pattern ends with its escape character")
            out.append(f"[{plain}]" if plain in "*?[" else plain)
        else:
            out.append({"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}.get(character, character))
    return "".join(out)


def microseconds(text: str) -> int:
    """An ISO date or time as microseconds since 1970, UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise BadRequest(f"filter: {text[:40]!r} is no ISO time such as '2026-01-31T12:00:00Z'") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _bare(node: Expr) -> Expr:
    """The node without parentheses around it."""
    while type(node).__name__ == "Paren":
        only(node, "this")
        node = node.this
    return node


def _number(digits: str, sign: int) -> Operand:
    try:
        return Operand("number", "?", sign * float(digits))
    except ValueError as error:
        raise BadRequest(f"filter: {digits[:40]} is no number") from error


def _cast(node: Expr) -> Operand:
    """``TIMESTAMP '...'`` and ``DATE '...'``; no other cast."""
    only(node, "this", "to")
    value = _bare(node.this)
    if not node.args["to"].sql().startswith(("TIMESTAMP", "DATE")) or not value.is_string:
        raise refused(node)
    return Operand("time", "?", microseconds(value.this))


def _float32(value: float) -> float:
    """The float32 nearest to ``value``, which is what a stored importance would be."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
