"""A caller's SQL condition as a checked predicate for the log.

    text LIKE '%delta%' AND (source = 'wiki' OR list_contains(tags, 'pinned')) AND created_at >= '2026-01-01'

Allowed are the columns, literals, comparison, AND, OR, NOT, IN, LIKE, BETWEEN, IS NULL and
``list_contains(tags, 'x')``; everything else is refused by name. sqlglot parses; only SQL written here and
in ``predicates`` reaches SQLite, and every literal travels as a parameter. Comparisons with null are
unknown, as in SQL; LIKE minds case and reads a text up to its first NUL; times are compared with ISO
strings; ``importance`` is compared in float32. Knows nothing about rows or search.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from aios_node.engine.errors import BadRequest
from aios_node.memory.predicates import Predicate, column, compare, given, glob, only, operand, refused

if TYPE_CHECKING:
    from sqlglot.expressions import Expr

_MAX_LENGTH = 20_000
_MAX_DEPTH = 16
_MAX_VALUES = 2_000

_COMPARISONS = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_WIDE = {"rows.payload": "payloads", "rows.embedding": "vectors", "rows.joint_embedding": "joints"}


def compile_filter(condition: str) -> Predicate:
    """Check and translate; raises ``BadRequest`` that says what and, for syntax, at which character."""
    if not isinstance(condition, str) or not condition.strip():
        raise BadRequest("filter: an SQL condition is needed, such as text LIKE '%x%'; leave it out to take all")
    if len(condition) > _MAX_LENGTH:
        raise BadRequest(f"filter: longer than {_MAX_LENGTH} characters")
    if "\0" in condition:
        raise BadRequest(f"filter: a NUL character at position {condition.index(chr(0)) + 1}")
    try:
        predicate = _condition(_parse(condition), 0)
    except RecursionError as error:
        raise BadRequest("filter: nested too deeply") from error
    if len(predicate.values) > _MAX_VALUES:
        raise BadRequest(f"filter: more than {_MAX_VALUES} values")
    return predicate


def _parse(condition: str) -> Expr:
    import sqlglot
    from sqlglot.errors import ParseError, SqlglotError

    try:
        trees = sqlglot.parse(condition, read="duckdb")
    except ParseError as error:
        first = error.errors[0] if error.errors else {}
        what = re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", str(first.get("description") or "cannot be read"))
        where = f"line {first.get('line', 1)}, position {first.get('col', len(condition))}"
        raise BadRequest(f"filter: syntax error at {where}: {what}") from error
    except SqlglotError as error:
        position = max(condition.rfind("'"), condition.rfind('"')) + 1
        raise BadRequest(f"filter: syntax error at line 1, position {position}: a quote is not closed") from error
    if len(trees) != 1 or trees[0] is None:
        raise BadRequest("filter: exactly one condition is needed")
    return trees[0]


def _condition(node: Expr, depth: int) -> Predicate:
    """A boolean node; only what the table below lists."""
    if depth > _MAX_DEPTH:
        raise BadRequest(f"filter: nested deeper than {_MAX_DEPTH} levels")
    name = type(node).__name__
    if name in _COMPARISONS:
        only(node, "this", "expression")
        return compare(_COMPARISONS[name], operand(node.this), operand(node.expression))
    if name not in _CONDITIONS:
        raise refused(node)
    return _CONDITIONS[name](node, depth)


def _paren(node: Expr, depth: int) -> Predicate:
    only(node, "this")
    return _condition(node.this, depth + 1)


def _constant(node: Expr, _depth: int) -> Predicate:
    only(node, "this")
    return Predicate("TRUE" if node.this else "FALSE")


def _not(node: Expr, depth: int) -> Predicate:
    only(node, "this")
    inner = _condition(node.this, depth + 1)
    return Predicate(f"NOT ({inner.sql})", inner.values)


def _chain(node: Expr, depth: int) -> Predicate:
    """``a AND b AND c`` nests to the left: unroll it, so that long chains stay shallow."""
    terms: list[Expr] = []
    current = node
    while type(current) is type(node):
        only(current, "this", "expression")
        terms.append(current.expression)
        current = current.this
    terms.append(current)
    parts = [_condition(term, depth + 1) for term in reversed(terms)]
    sql = _balanced([f"({part.sql})" for part in parts], f" {type(node).__name__.upper()} ")
    return Predicate(sql, tuple(value for part in parts for value in part.values))


def _is_null(node: Expr, _depth: int) -> Predicate:
    only(node, "this", "expression")
    if type(node.expression).__name__ != "Null":
        raise BadRequest("filter: IS goes with NULL only")
    tested = column(node.this)
    if tested.kind == "wide":
        where = f"SELECT 1 FROM {_WIDE[tested.sql]} AS part WHERE part.seq = rows.seq"  # noqa: S608 - from the table above
        return Predicate(f"NOT EXISTS ({where})")
    return Predicate(f"{tested.sql} IS NULL")


def _in(node: Expr, _depth: int) -> Predicate:
    only(node, "this", "expressions")
    left, options = operand(node.this), [operand(option) for option in node.expressions]
    if not options or any(option.literal is None for option in options):
        raise BadRequest("filter: IN needs a list of values")
    mine = [given(left, option) for option in options]
    values = [value for option in options for value in given(option, left)]
    return Predicate(f"{left.sql} IN ({', '.join('?' * len(values))})", (*mine[0], *values))


def _between(node: Expr, _depth: int) -> Predicate:
    only(node, "this", "low", "high")
    value = operand(node.this)
    low, high = operand(node.args["low"]), operand(node.args["high"])
    return compare(">=", value, low) & compare("<=", value, high)


def _like(node: Expr, _depth: int, escape: str = "") -> Predicate:
    only(node, "this", "expression", "negate")
    left, pattern = operand(node.this), operand(node.expression)
    if left.kind != "string" or not isinstance(pattern.literal, str):
        raise BadRequest("filter: LIKE compares a string column with a quoted pattern")
    word = "NOT GLOB" if node.args.get("negate") else "GLOB"
    return Predicate(f"{left.sql} {word} ?", (*given(left, pattern), glob(pattern.literal, escape)))


def _escaped_like(node: Expr, depth: int) -> Predicate:
    only(node, "this", "expression")
    escape = operand(node.expression).literal
    if type(node.this).__name__ != "Like" or not isinstance(escape, str) or len(escape) != 1:
        raise BadRequest("filter: ESCAPE goes with LIKE and one character")
    return _like(node.this, depth, escape)


def _list_contains(node: Expr, _depth: int) -> Predicate:
    only(node, "this", "expression")
    tags, tag = column(node.this), operand(node.expression)
    if tags.kind != "list" or not isinstance(tag.literal, str):
        raise BadRequest("filter: list_contains takes the column tags and a quoted tag")
    return Predicate("EXISTS (SELECT 1 FROM json_each(rows.tags) AS tag WHERE tag.value = ?)", (tag.literal,))


def _balanced(parts: list[str], word: str) -> str:
    """Join as a balanced tree: SQLite refuses expressions deeper than 1,000."""
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [f"({word.join(pair)})" if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


_CONDITIONS: dict[str, Callable[[Expr, int], Predicate]] = {
    "And": _chain,
    "Or": _chain,
    "Not": _not,
    "Paren": _paren,
    "Boolean": _constant,
    "Is": _is_null,
    "In": _in,
    "Between": _between,
    "Like": _like,
    "Escape": _escaped_like,
    "ArrayContains": _list_contains,
}
