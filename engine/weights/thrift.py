"""Thrift's compact protocol, read just well enough to look at Parquet's headers before anyone trusts them.

Arrow's own accessors end the whole process on some damaged footers, so nothing of a file is shown to them
until it was read here. Knows bytes and numbers; what fields mean is for footer and pages.

Format: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any, TypeAlias

from aios_node.engine.errors import Corrupt

Struct: TypeAlias = dict[int, Any]
"""Fields by number: int, bool, bytes, None (a float), list, Struct."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 12
_DOUBLE_BYTES = 8
_LONG_LIST = 15


def read_struct(data: bytes | memoryview) -> tuple[Struct, int]:
    """The struct at the start of ``data``, and the bytes it takes. Raises Corrupt."""
    reader = _Reader(data)
    return reader.struct(0), reader.at


def whole(fields: Struct, number: int) -> int:
    """A field that must be there and be a number of at least 0. Raises Corrupt."""
    value = fields.get(number)
    if type(value) is not int or value < 0:
        raise Corrupt(f"a header lacks its number {number} or states a negative one")
    return value


class _Reader:
    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int) -> Struct:
        if depth > _MAX_DEPTH:
            raise Corrupt("a header is nested too deeply")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            # Readers differ in which of two equal fields they believe: what was checked must be what is used.
            if number in fields:
                raise Corrupt("a header states a field twice")
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_I16, _I32, _I64):
            return self._number()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind in (_BYTE, _TRUE, _FALSE):  # in a list, a flag is a byte
            return self._byte()
        if kind == _DOUBLE:
            self._take(_DOUBLE_BYTES)
            return None
        raise Corrupt(f"a header holds a field of unknown kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _MAX_DEPTH:
            raise Corrupt("a header is nested too deeply")
        head = self._byte()
        count = head >> 4 if head >> 4 != _LONG_LIST else self._varint()
        if count > len(self._data) - self.at:  # every element takes a byte at least
            raise Corrupt("a header claims a list longer than itself")
        return [self._value(head & 15, depth) for _ in range(count)]

    def _take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self._data):
            raise Corrupt("a header is cut off")
        return bytes(self._data[start : self.at])

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise Corrupt("a header is cut off")
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Corrupt("a header holds a number that never ends")

    def _number(self) -> int:
        raw = self._varint()
        return (raw >> 1) ^ -(raw & 1)
