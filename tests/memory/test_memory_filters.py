"""Filters mean what the same condition means in plain Python, and nothing else ever reaches SQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest
from aios_node.memory import MemoryStore
from aios_node.memory.filters import compile_filter

Row = dict[str, Any]

STRINGS = ("id", "text", "source", "namespace", "modality", "metadata")
WORDS = st.text(alphabet="abAäß%_*?[]^-'\\\" \n€", max_size=5)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def _rows() -> list[Row]:
    """Rows with every oddity that a condition could meet."""
    rng = np.random.default_rng(0)
    texts = [None, "", "a", "A", "ab", "a%b", "a_b", "aäb", "*", "[a]", "a?b", "it's", "\\", "€\n", 'q"', "ß^-"]
    return [
        {
            "id": f"r{n:02}",
            "text": texts[n % len(texts)],
            "payload": b"GIF89a" if n % 3 == 0 or texts[n % len(texts)] is None else None,
            "modality": "image" if n % 5 == 0 else "text",
            "namespace": "a" if n % 2 else None,
            "source": texts[(7 * n) % len(texts)] or None,
            "tags": [texts[i] for i in rng.integers(2, len(texts), n % 4)],
            "importance": None if n % 7 == 0 else float(np.float32(n / 10 - 2)),
            "created_at": EPOCH + timedelta(hours=n, microseconds=n % 2),
            "metadata": '{"a": 1}' if n % 4 else None,
            "embedding": [1.0, float(n)] if n % 2 else None,
        }
        for n in range(64)
    ]


ROWS = _rows()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    with MemoryStore.open(tmp_path_factory.mktemp("filters")) as store:
        rows = pa.Table.from_pylist(ROWS).cast(
            pa.schema(
                [
                    *(pa.field(name, pa.string()) for name in ("id", "text")),
                    pa.field("payload", pa.binary()),
                    *(pa.field(name, pa.string()) for name in ("modality", "namespace", "source")),
                    pa.field("tags", pa.list_(pa.string())),
                    pa.field("importance", pa.float32()),
                    pa.field("created_at", pa.timestamp("us", tz="UTC")),
                    pa.field("metadata", pa.string()),
                    pa.field("embedding", pa.list_(pa.float32())),
                ]
            )
        )
        store.add_table(rows)
        yield store


def matching(store: MemoryStore, condition: str) -> list[str]:
    names: list[str] = store.scan(columns=["id"], filter=condition).read_all().column("id").to_pylist()
    return names


# A condition as text and as a function of a row that returns True, False or None (unknown).


@dataclass(frozen=True)
class Condition:
    sql: str
    holds: Callable[[Row], bool | None]


def value_of(row: Row, column: str) -> Any:
    value = row.get(column)
    return "default" if column == "namespace" and value is None else value


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def compared(left: Callable[[Row], Any], sign: str, right: Callable[[Row], Any]) -> Callable[[Row], bool | None]:
    def holds(row: Row) -> bool | None:
        a, b = left(row), right(row)
        return None if a is None or b is None else COMPARE[sign](a, b)

    return holds


def column(name: str) -> Callable[[Row], Any]:
    return lambda row: value_of(row, name)


def constant(value: Any) -> Callable[[Row], Any]:
    return lambda _row: value


@st.composite
def literals(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A column, a literal for it in SQL, and the literal's value."""
    kind = draw(st.sampled_from(["string", "number", "time"]))
    if kind == "string":
        text = draw(WORDS)
        return draw(st.sampled_from(STRINGS)), quoted(text), text
    if kind == "number":
        number = draw(st.integers(-20, 50)) / 10
        return "importance", draw(st.sampled_from([f"{number}", f"({number})"])), float(np.float32(number))
    moment = EPOCH + timedelta(hours=draw(st.integers(-1, 65)))
    form = draw(st.sampled_from(["'{}'", "TIMESTAMP '{}'", "TIMESTAMPTZ '{}'"]))
    zone = draw(st.sampled_from([moment, moment.replace(tzinfo=None)]))
    return "created_at", form.format(zone.isoformat()), moment


@st.composite
def comparisons(draw: st.DrawFn) -> Condition:
    name, sql, value = draw(literals())
    sign = draw(st.sampled_from(sorted(COMPARE)))
    if draw(st.booleans()):
        return Condition(f"{name} {sign} {sql}", compared(column(name), sign, constant(value)))
    return Condition(f"{sql} {sign} {name}", compared(constant(value), sign, column(name)))


@st.composite
def column_pairs(draw: st.DrawFn) -> Condition:
    left, right = draw(st.sampled_from(STRINGS)), draw(st.sampled_from(STRINGS))
    sign = draw(st.sampled_from(sorted(COMPARE)))
    return Condition(f"{left} {sign} {right}", compared(column(left), sign, column(right)))


@st.composite
def likes(draw: st.DrawFn) -> Condition:
    name, pattern = draw(st.sampled_from(STRINGS)), draw(WORDS)
    parts = [".*" if c == "%" else "." if c == "_" else re.escape(c) for c in pattern]
    found = re.compile("".join(parts), re.DOTALL)

    def holds(row: Row) -> bool | None:
        value = value_of(row, name)
        return None if value is None else found.fullmatch(value) is not None

    return Condition(f"{name} LIKE {quoted(pattern)}", holds)


@st.composite
def lists(draw: st.DrawFn) -> Condition:
    name, first, value = draw(literals())
    options = [(first, value)]
    if name in STRINGS:
        options += [(quoted(text), text) for text in draw(st.lists(WORDS, max_size=3))]

    def holds(row: Row) -> bool | None:
        found = value_of(row, name)
        return None if found is None else found in [value for _, value in options]

    return Condition(f"{name} IN ({', '.join(sql for sql, _ in options)})", holds)


@st.composite
def ranges(draw: st.DrawFn) -> Condition:
    low, high = sorted([draw(st.integers(-30, 60)) / 10, draw(st.integers(-30, 60)) / 10])

    def holds(row: Row) -> bool | None:
        value = row["importance"]
        return None if value is None else np.float32(low) <= np.float32(value) <= np.float32(high)

    return Condition(f"importance BETWEEN {low} AND {high}", holds)


NULLS = st.sampled_from([*STRINGS, "importance", "created_at", "payload", "embedding", "joint_embedding"]).map(
    lambda name: Condition(f"{name} IS NULL", lambda row: value_of(row, name) is None)
)
TAGS = WORDS.filter(bool).map(
    lambda tag: Condition(f"list_contains(tags, {quoted(tag)})", lambda row: tag in row["tags"])
)
CONSTANTS = st.sampled_from([Condition("TRUE", constant(True)), Condition("false", constant(False))])
LEAVES = st.one_of(comparisons(), column_pairs(), likes(), lists(), ranges(), NULLS, TAGS, CONSTANTS)


def negated(inner: Condition) -> Condition:
    def holds(row: Row) -> bool | None:
        value = inner.holds(row)
        return None if value is None else not value

    return Condition(f"NOT ({inner.sql})", holds)


def chained(parts: list[Condition], word: str) -> Condition:
    decisive = word == "OR"

    def holds(row: Row) -> bool | None:
        values = [part.holds(row) for part in parts]
        return decisive if decisive in values else None if None in values else not decisive

    return Condition(f" {word} ".join(f"({part.sql})" for part in parts), holds)


def combined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    chains = st.builds(chained, st.lists(inner, min_size=2, max_size=4), st.sampled_from(["AND", "OR"]))
    return st.one_of(inner.map(negated), chains)


@given(st.recursive(LEAVES, combined, max_leaves=8))
@settings(max_examples=300)
def test_a_filter_means_what_it_means_in_python(filled: MemoryStore, condition: Condition) -> None:
    assert matching(filled, condition.sql) == [row["id"] for row in ROWS if condition.holds(row)]


@pytest.mark.parametrize(
    ("sql", "same_as"),
    [
        ("text NOT LIKE 'a%'", "NOT (text LIKE 'a%')"),
        ("id NOT IN ('r01', 'r02')", "NOT id IN ('r01', 'r02')"),
        ("importance NOT BETWEEN 0 AND 1", "importance < 0 OR importance > 1"),
        ("source IS NOT NULL", "NOT source IS NULL"),
        ("text LIKE 'a!%b' ESCAPE '!'", "text = 'a%b'"),
        ("text LIKE '[a]'", "text = '[a]'"),
        ("text LIKE '*'", "text = '*'"),
        ("text LIKE 'a?b'", "text = 'a?b'"),
        ("TEXT = 'a' and Id < 'r50'", "text = 'a' AND id < 'r50'"),
        ("id = 'r01' OR id = 'r02' AND text = 'nothing'", "id = 'r01'"),
        ("text = 'a' -- a comment", "text = 'a'"),
        ("created_at >= DATE '2026-01-02'", "created_at >= '2026-01-02T01:00:00+01:00'"),
        ("importance > 1e39", "FALSE"),
        ("'a' IN ('a')", "TRUE"),
        (" AND ".join(["id > 'r10'"] * 500), "id > 'r10'"),
        (" OR ".join(f"id = 'r{n:02}'" for n in range(64)), "TRUE"),
    ],
)
def test_other_spellings(filled: MemoryStore, sql: str, same_as: str) -> None:
    assert matching(filled, sql) == matching(filled, same_as)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "an SQL condition is needed"),
        ("  ", "an SQL condition is needed"),
        ("-- nothing", "exactly one condition"),
        ("text = = 'a'", "syntax error at line 1, position 8"),
        ("text = 'a' AND", "syntax error at line 1, position 14"),
        ("(text = 'a'", "syntax error at line 1, position 11"),
        ("text = 'a", "position 8: a quote is not closed"),
        ("text = 'a\0'", "NUL character at position 10"),
        ("txet = 'a'", "unknown column 'txet': did you mean text"),
        ('text = "a"', "unknown column 'a'; strings take single quotes"),
        ("rows.text = 'a'", "table of COLUMN is not supported"),
        ("seq = 1", "unknown column 'seq'"),
        ("text = 'a'; DROP TABLE rows", "exactly one condition"),
        ("text = 'a' UNION SELECT 1", "UNION is not allowed"),
        ("id IN (SELECT id FROM rows)", "query of IN"),
        ("EXISTS (SELECT 1)", "EXISTS is not allowed"),
        ("(SELECT 1)", "is not allowed"),
        ("length(text) = 1", "LENGTH is not allowed"),
        ("load_extension('x')", "ANONYMOUS is not allowed"),
        ("text || 'a' = 'b'", "DPIPE is not allowed"),
        ("text GLOB 'a*'", "GLOB is not allowed"),
        ("text ILIKE 'a'", "ILIKE is not allowed"),
        ("text = ?", "PLACEHOLDER is not allowed"),
        ("CASE WHEN TRUE THEN TRUE END", "CASE is not allowed"),
        ("CAST(text AS int) = 1", "CAST is not allowed"),
        ("text", "'text' alone is no condition"),
        ("1", "'1' alone is no condition"),
        ("text = NULL", "use IS NULL"),
        ("id IN ('a', NULL)", "use IS NULL"),
        ("id IN ()", "IN needs a list"),
        ("id IN (text)", "IN needs a list"),
        ("source IS TRUE", "IS goes with NULL"),
        ("importance = 'a'", "a number cannot be compared with a string"),
        ("text > 3", "a string cannot be compared with a number"),
        ("created_at > 3", "a time cannot be compared with a number"),
        ("source = created_at", "a string cannot be compared with a time"),
        ("source = TIMESTAMP '2026-01-01'", "a string cannot be compared with a time"),
        ("created_at > 'yesterday'", "'yesterday' is no ISO time"),
        ("tags = 'a'", "tags cannot be compared"),
        ("payload = 'a'", "payload cannot be compared"),
        ("embedding IN ('a')", "embedding cannot be compared"),
        ("importance LIKE 'a'", "LIKE compares a string column"),
        ("text LIKE source", "LIKE compares a string column"),
        ("text LIKE 'a!' ESCAPE '!'", "ends with its escape"),
        ("text LIKE 'a' ESCAPE 'ab'", "one character"),
        ("list_contains(text, 'a')", "takes the column tags"),
        ("list_contains(tags, 1)", "takes the column tags"),
        ("list_contains(tags, 'a', 'b')", "is not supported"),
        ("importance BETWEEN SYMMETRIC 2 AND 1", "symmetric of BETWEEN"),
        ("(" * 17 + "TRUE" + ")" * 17, "nested deeper than 16"),
        ("NOT " * 4000 + "TRUE", "nested too deeply"),
        ("(" * 9000, "nested too deeply"),
        ("TRUE" + " AND TRUE" * 3000, "longer than 20000"),
        (f"id IN ({', '.join(['1'] * 2001)})", "cannot be compared"),
        (f"id IN ({','.join(chr(39) + 'a' + chr(39) for _ in range(2001))})", "more than 2000 values"),
    ],
)
def test_everything_else_is_refused_by_name(filled: MemoryStore, sql: str, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        filled.scan(filter=sql)


FRAGMENTS = ["text", "tags", "'a'", '"id"', "1", "=", "<>", "LIKE", "IN", "(", ")", ",", "AND", "OR", "NOT", "IS NULL"]
FRAGMENTS += ["; DROP TABLE rows", "--", "/*", "*/", "UNION SELECT value FROM meta", "load_extension('x')", "'", '"']
FRAGMENTS += ["list_contains(tags, 'evil')", "BETWEEN", "importance", "created_at", "'2026-01-01'", "::", "evil", "?"]

OURS = re.compile(
    r"rows\.(?:id|created_at|modality|text|namespace|source|tags|importance|metadata|seq)|\?|[(),]|<>|[<>]=?|=|AND|OR"
    r"|NOT|IN|IS NULL|GLOB|TRUE|FALSE|\s"
    r"|EXISTS \(SELECT 1 FROM json_each\(rows\.tags\) AS tag WHERE tag\.value = \?\)"
    r"|EXISTS \(SELECT 1 FROM (?:payloads|vectors|joints) AS part WHERE part\.seq = rows\.seq\)"
)


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(" ".join)))
@settings(max_examples=500)
def test_no_word_of_the_caller_reaches_sql(condition: str) -> None:
    try:
        predicate = compile_filter(condition)
    except BadRequest:
        return
    assert OURS.sub("", predicate.sql) == ""
    assert predicate.sql.count("?") == len(predicate.values)


def test_like_reads_up_to_a_nul(store: MemoryStore) -> None:
    store.add(id="a", text="one\0two")
    assert matching(store, "text LIKE '%one'") == ["a"]
    assert store.get("a").column("text").to_pylist() == ["one\0two"]
