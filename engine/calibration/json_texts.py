"""Texts from JSON lines and from JSON documents: strings, or objects with a member that is the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aios_node.engine.calibration.columns import text_column
from aios_node.engine.errors import Corrupt, TooLarge
from aios_node.engine.weights.disk import disk_errors, read_file

MAX_LINE_BYTES = 4 * 2**20
MAX_DOCUMENT_BYTES = 256 * 2**20
"""A JSON document is read as a whole; JSON lines may be as long as any file."""


def line_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """One JSON value per line; empty lines do not count.

    Raises Corrupt (not JSON, not text), BadRequest (an object without the text) and TooLarge, all of them
    with the line's number.
    """
    with disk_errors(path, "read"), path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise TooLarge(f"{where}: longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield from _texts(_parsed(line, where), where, column)


def json_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """A JSON list, or an object whose text member is a list; else what line_texts reads.

    Raises as line_texts does; an entry's number stands for the line's.
    """
    if _is_lines(path):
        yield from line_texts(path, column)
        return
    value = _parsed(read_file(path, MAX_DOCUMENT_BYTES), str(path))
    if isinstance(value, dict):
        value = _member(value, str(path), column)
    if not isinstance(value, list):
        raise Corrupt(f"{path}: a JSON list of texts is needed")
    for number, entry in enumerate(value, 1):
        yield from _texts(entry, f"{path}, entry {number}", column)


def _is_lines(path: Path) -> bool:
    """Whether the first line is a whole value and is not all there is (or holds one text)."""
    with disk_errors(path, "read"), path.open("rb") as file:
        first = file.readline(MAX_LINE_BYTES + 1)
        more = bool(file.read(1))
    if len(first) > MAX_LINE_BYTES or not first.strip():
        return False
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return more if not isinstance(value, dict) else more or not any(isinstance(each, list) for each in value.values())


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Corrupt(f"{where}: not UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{where}: not valid JSON: {str(error)[:120]}") from None


def _texts(value: Any, where: str, column: str | None) -> Iterator[str]:
    """The texts of one entry; a list of strings counts as several."""
    if isinstance(value, dict):
        value = _member(value, where, column)
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            raise Corrupt(f"{where}: a text is needed, not {_kind(text)}")
        yield text


def _member(value: dict[str, Any], where: str, column: str | None) -> Any:
    if column is not None and value.get(column, "") is None:
        return ""  # an entry without a value, as tables have them
    return value[text_column(where, [name for name, each in value.items() if isinstance(each, (str, list))], column)]


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
