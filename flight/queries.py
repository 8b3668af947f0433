"""Search requests as JSON: checked in form here, in meaning by the memory room.

The same fields travel in commands, in tickets and in the client, so both directions live here.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

import pyarrow as pa

from aios_node.engine.errors import BadRequest, TooLarge, choices
from aios_node.flight.limits import Limits, require_size
from aios_node.flight.ports import SearchRequest
from aios_node.memory.retrieve import CHOOSABLE, HITS
from aios_node.memory.schema import MODALITIES, check_table_name, pick_columns

QUERY_FIELDS = ("text", "vector", "image", "audio")


def parse_search(fields: Mapping[str, Any], limits: Limits, *, with_query: bool = True) -> SearchRequest:
    """A search from JSON. Raises ``BadRequest`` or ``TooLarge``.

    ``with_query``: one of text, vector, image and audio is required; else none is allowed.
    """
    known = {field.name for field in dataclass_fields(SearchRequest)}
    values: dict[str, Any] = {}
    for key, value in fields.items():
        if key not in known:
            raise BadRequest(f"unknown field {key[:80]!r} in a search: {choices(key, known, limit=20)}")
        if value is not None:
            values[key] = _PARSERS[key](key, value, limits)
    if "table" not in values:
        raise BadRequest('a search needs "table", the name of a memory table')
    given = [name for name in QUERY_FIELDS if name in values]
    if with_query and not given:
        raise BadRequest(f"a search needs one of {', '.join(QUERY_FIELDS)}")
    if given and not with_query:
        raise BadRequest(f"{given[0]!r} does not belong here: queries come as rows of the exchange")
    return SearchRequest(**values)


def search_fields(request: SearchRequest) -> dict[str, Any]:
    """The JSON fields of a request, without those at their default; ``parse_search`` reads them."""
    found: dict[str, Any] = {}
    for field in dataclass_fields(SearchRequest):
        value = getattr(request, field.name)
        if value == field.default:
            continue
        found[field.name] = base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
    return found


def result_schema(request: SearchRequest) -> pa.Schema:
    """The columns of the hits of ``request``. Raises ``BadRequest`` for an unknown column."""
    return HITS if request.columns is None else pick_columns(request.columns, CHOOSABLE)


def check_vector(values: Any, limits: Limits, what: str) -> tuple[float, ...]:
    """A query vector: finite numbers, at least one. Raises ``BadRequest`` or ``TooLarge``."""
    if not isinstance(values, (list, tuple)) or not values:
        raise BadRequest(f"{what} must be a list of numbers")
    require_size(len(values), limits.vector_dimension, f"{what} (dimension)")
    return tuple(_number(what, value, limits) for value in values)


def _table(key: str, value: Any, limits: Limits) -> str:
    return check_table_name(value)


def _text(key: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{key!r} must be text")
    return value


def _filter(key: str, value: Any, limits: Limits) -> str:
    text = _text(key, value, limits)
    require_size(len(text.encode("utf-8", "replace")), limits.filter_bytes, "the filter (bytes)")
    return text


def _number(key: str, value: Any, limits: Limits) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{key!r} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRequest(f"{key!r} must be finite")
    return number


def _k(key: str, value: Any, limits: Limits) -> int:
    if type(value) is not int or value < 1:
        raise BadRequest("'k' must be a whole number of at least 1")
    if value > limits.k:
        raise TooLarge(f"k is {value}, at most {limits.k} is allowed")
    return value


def _vector(key: str, value: Any, limits: Limits) -> tuple[float, ...]:
    return check_vector(value, limits, "vector")


def _file(key: str, value: Any, limits: Limits) -> bytes:
    try:
        data = base64.b64decode(_text(key, value, limits), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{key!r} must be the bytes of a file in base64") from None
    if not data:
        raise BadRequest(f"{key!r} is empty")
    return data


def _scope(key: str, value: Any, limits: Limits) -> str:
    if value not in ("local", "network"):
        raise BadRequest("'scope' is 'local' or 'network'")
    return str(value)


def _names(key: str, value: Any, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) for v in value):
        raise BadRequest(f"{key!r} must be a list of names")
    if len(set(value)) != len(value):
        raise BadRequest(f"{key!r} names something twice")
    return tuple(value)


def _modalities(key: str, value: Any, limits: Limits) -> tuple[str, ...]:
    names = _names(key, value, limits)
    for name in names:
        if name not in MODALITIES:
            raise BadRequest(f"unknown modality {name[:80]!r}: {choices(name, MODALITIES)}")
    return names


def _columns(key: str, value: Any, limits: Limits) -> tuple[str, ...]:
    names = _names(key, value, limits)
    pick_columns(names, CHOOSABLE)
    return names


_PARSERS: dict[str, Callable[[str, Any, Limits], Any]] = {
    "table": _table,
    "text": _text,
    "vector": _vector,
    "image": _file,
    "audio": _file,
    "k": _k,
    "filter": _filter,
    "alpha": _number,
    "beta": _number,
    "scope": _scope,
    "modalities": _modalities,
    "namespace": _text,
    "columns": _columns,
    "space": _text,
}
