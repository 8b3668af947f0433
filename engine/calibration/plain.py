"""Plain text as paragraphs: what stands between empty lines, its line breaks taken out.

Reads line by line, so that a file of any size takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aios_node.engine.calibration.sets import MAX_CHARACTERS
from aios_node.engine.errors import Corrupt
from aios_node.engine.weights.disk import disk_errors

_LINE_BYTES = 64 * 1024


def plain_texts(path: Path) -> Iterator[str]:
    """The paragraphs of a text file in UTF-8, long ones in several parts.

    Raises Corrupt naming the line that is not text, NotFound, StorageError.
    """
    paragraph: list[str] = []
    size = 0
    for line in _lines(path):
        words = " ".join(line.split())
        if words:
            paragraph.append(words)
            size += len(words) + 1
        if paragraph and (not words or size >= MAX_CHARACTERS):
            yield " ".join(paragraph)
            paragraph, size = [], 0
    if paragraph:
        yield " ".join(paragraph)


def _lines(path: Path) -> Iterator[str]:
    """Lines, or parts of very long ones; an end of line is never cut off."""
    number = 1
    rest = b""
    with disk_errors(path, "read"), path.open("rb") as file:
        while data := file.readline(_LINE_BYTES):
            data, rest = _whole_characters(rest + data)
            yield _decoded(data, path, number)
            number += data.endswith(b"\n")
    if rest:
        raise Corrupt(f"{path}, line {number}: the file ends within a character")


def _whole_characters(data: bytes) -> tuple[bytes, bytes]:
    """Leave a character that goes on in the next part for later: at most three bytes of UTF-8."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return (data[:-back], data[-back:]) if length > back else (data, b"")
        if byte < 0x80:
            break
    return data, b""


def _decoded(data: bytes, path: Path, number: int) -> str:
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path}, line {number}: not UTF-8 text ({error.reason})") from None
    if "\0" in text:
        raise Corrupt(f"{path}, line {number}: binary data instead of text")
    return text
