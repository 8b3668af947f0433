"""Page headers of Parquet column chunks, read before any Parquet library allocates by them.

A page says how many values it holds and how large it is when decompressed; a few bytes can claim
gigabytes. This module walks a chunk's pages and compares the claims with what the footer and the
file's size allow. It decodes no values.

Format: https://github.com/apache/parquet-format (PageHeader, in Thrift's compact protocol).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aios_node.engine.errors import Corrupt

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
_TYPE, _RAW_SIZE, _STORED_SIZE = 1, 2, 3
# The sub-header that counts the values of each kind of page: data, dictionary, data of version 2.
_COUNTED = {0: 5, 2: 7, 3: 8}
_MAX_HEADER_BYTES = 64 * 1024
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Page:
    """One page: values it claims to hold, its size decompressed and as stored."""

    values: int
    raw_bytes: int
    stored_bytes: int


def check_pages(data: memoryview, max_values: int, max_raw_bytes: int) -> None:
    """Walk all pages of one column chunk (``data``, nothing else).

    Raises Corrupt unless the pages fill the chunk exactly and claim no more values and no more
    decompressed bytes than they may.
    """
    values = raw = 0
    for page in _walk(data):
        values, raw = values + page.values, raw + page.raw_bytes
        if values > max_values or raw > max_raw_bytes:
            raise Corrupt(f"pages claim {values} values and {raw} bytes; {max_values} and {max_raw_bytes} are possible")


def _walk(data: memoryview) -> Iterator[Page]:
    at = 0
    while at < len(data):
        fields, length = _Reader(data[at : at + _MAX_HEADER_BYTES]).header()
        page = _page(fields)
        at += length + page.stored_bytes
        yield page
    if at != len(data):
        raise Corrupt("the last page of a column reaches beyond its end")


def _page(fields: dict[int, Any]) -> Page:
    counted = fields.get(_COUNTED.get(fields.get(_TYPE, -1), -1), {})
    page = Page(counted.get(1, 0), fields.get(_RAW_SIZE, -1), fields.get(_STORED_SIZE, -1))
    if min(page.values, page.raw_bytes, page.stored_bytes) < 0:
        raise Corrupt("a page header lacks its sizes or has negative ones")
    return page


class _Reader:
    """Just enough of Thrift's compact protocol for page headers: integers, flags, bytes, structs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def header(self) -> tuple[dict[int, Any], int]:
        """The fields of the struct at the start, and its length in bytes."""
        fields = self._struct(0)
        return fields, self._at

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise Corrupt("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in (_I16, _I32, _I64):
            return self._number()
        if kind == _STRUCT:
            return self._struct(depth + 1)
        if kind in (_BYTE, _DOUBLE, _BINARY):
            return self._skip({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        raise Corrupt(f"a page header holds a field of unknown kind {kind}")

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise Corrupt("a page header is cut off")

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Corrupt("a page header holds a number that never ends")

    def _number(self) -> int:
        raw = self._varint()
        return (raw >> 1) ^ -(raw & 1)
