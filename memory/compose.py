"""One memory given as Python values, as the one-row Arrow table that ``rows`` checks.

Knows conveniences (paths, dicts, NumPy arrays); decides nothing about what is valid beyond types.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from aios_node.engine.errors import BadRequest, choices
from aios_node.memory.schema import COLUMNS
from aios_node.memory.storage import clear_errors
from aios_node.memory.vectors import one_vector

_MEDIA = ("image", "audio")


def one_row(values: Mapping[str, Any]) -> pa.Table:
    """A table of one row and exactly the columns given; ``image`` and ``audio`` become ``payload`` and ``modality``.

    Raises ``BadRequest`` for unknown names and values of a wrong type.
    """
    row = dict(values)
    media = [kind for kind in _MEDIA if row.get(kind) is not None]
    if len(media) > 1 or (media and row.get("payload") is not None):
        raise BadRequest("one memory holds one payload: give image, audio or payload, not several")
    for kind in _MEDIA:
        content = row.pop(kind, None)
        if content is not None:
            row |= {"payload": _file_bytes(content, kind), "modality": kind}
    unknown = sorted(set(row) - set(COLUMNS.names))
    if unknown:
        raise BadRequest(f"a memory has no {unknown[0][:80]!r}: {choices(unknown[0], COLUMNS.names, limit=20)}")
    return pa.table({name: _array(name, value) for name, value in row.items()})


def _array(name: str, value: Any) -> pa.Array:
    kind = COLUMNS.field(name).type
    try:
        plain = _PLAIN[name](value) if name in _PLAIN and value is not None else value
        return pa.array([plain], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"{name}: {kind} is needed, not {type(value).__name__}: {str(error)[:120]}") from error


def _file_bytes(content: Any, kind: str) -> bytes:
    """The bytes of a file given as bytes or as a path object; a plain string is refused as ambiguous."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, os.PathLike):
        path = Path(os.fspath(content))
        with clear_errors(f"{kind} {path}"):
            return path.read_bytes()
    raise BadRequest(f"{kind}: bytes or a pathlib.Path is needed, not {type(content).__name__}")


def _tags(value: Any) -> list[Any]:
    if isinstance(value, str):
        raise TypeError("a list of strings, not one string")
    return list(value)


def _metadata(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _moment(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError("a datetime")
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "embedding": lambda value: one_vector(value, "embedding"),
    "joint_embedding": lambda value: one_vector(value, "joint_embedding"),
    "tags": _tags,
    "metadata": _metadata,
    "created_at": _moment,
}
