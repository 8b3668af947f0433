"""Reading JSON objects that strangers wrote: every field is asked for by name and kind, nothing else may be there.

Knows nothing about what the fields mean. All errors are ProtocolError or Corrupt, as the reader chooses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from aios_node.delta.names import check_model, check_version
from aios_node.engine.errors import AiosError, BadRequest, Corrupt
from aios_node.engine.weights.names import check_file_name

MOST_INTEGER: Final = (1 << 63) - 1
_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def parse_object(data: bytes, what: str, error: type[AiosError]) -> dict[str, Any]:
    """A JSON object without duplicate keys, or ``error``. The caller bounds the size of ``data``."""
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as reason:
        raise error(f"{what} is not valid JSON ({type(reason).__name__})") from None
    if not isinstance(value, dict):
        raise error(f"{what} is not a JSON object")
    return value


class Fields:
    """The fields of one object, taken one by one; ``close`` complains about what is left."""

    def __init__(self, values: object, what: str, error: type[AiosError]) -> None:
        self._what, self._error = what, error
        if not isinstance(values, dict):
            raise error(f"{what} is not an object")
        self._values: dict[str, Any] = dict(values)

    def integer(self, name: str, most: int = MOST_INTEGER) -> int:
        """A whole number from 0 to ``most``."""
        value = self._take(name)
        if type(value) is not int or not 0 <= value <= most:
            raise self._wrong(name, value, f"a whole number from 0 to {most}")
        return value

    def maybe_integer(self, name: str) -> int | None:
        if self._values.get(name, 0) is None:
            del self._values[name]
            return None
        return self.integer(name)

    def flag(self, name: str) -> bool:
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, most: int) -> str:
        """Printable text of at most ``most`` characters."""
        value = self._take(name)
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise self._wrong(name, value, f"printable text of at most {most} characters")
        return value

    def word(self, name: str) -> str:
        """A lower-case identifier such as a codec's or a quantisation's name."""
        return self._word(name, self._take(name))

    def maybe_word(self, name: str) -> str | None:
        value = self._take(name)
        return None if value is None else self._word(name, value)

    def words(self, name: str, most: int) -> tuple[str, ...]:
        return tuple(self._word(name, item) for item in self.items(name, most))

    def names(self, name: str, most: int) -> tuple[str, ...]:
        """Plain file names."""
        return tuple(self._file_name(name, item) for item in self.items(name, most))

    def hexadecimal(self, name: str, digits: int) -> str:
        value = self._take(name)
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise self._wrong(name, value, f"{digits} lower-case hexadecimal digits")
        return value

    def model(self, name: str = "model") -> str:
        value = self._take(name)
        try:
            return check_model(value)
        except BadRequest as reason:
            raise self._error(f"{self._what}: {reason.message}") from None

    def version(self, name: str = "version") -> str:
        return self._version(self._take(name))

    def maybe_version(self, name: str) -> str | None:
        value = self._take(name)
        return None if value is None else self._version(value)

    def versions(self, name: str, most: int) -> tuple[str, ...]:
        return tuple(self._version(item) for item in self.items(name, most))

    def has(self, name: str) -> bool:
        """Whether the field is there, for those that may be left out."""
        return name in self._values

    def maybe(self, name: str) -> Fields | None:
        """A nested object, or None for null."""
        value = self._take(name)
        return None if value is None else Fields(value, f"{self._what}.{name}", self._error)

    def items(self, name: str, most: int) -> list[Any]:
        """A list of at most ``most`` values, still to be checked."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, value, f"a list of at most {most} values")
        return value

    def objects(self, name: str, most: int) -> Iterable[Fields]:
        for item in self.items(name, most):
            yield Fields(item, f"{self._what}.{name}", self._error)

    def ranges(self, name: str, most: int) -> tuple[tuple[int, int], ...]:
        """Ascending, separate, half-open ranges: [[0, 3], [7, 8]]."""
        ranges: list[tuple[int, int]] = []
        for item in self.items(name, most):
            end = ranges[-1][1] if ranges else -1
            fits = isinstance(item, list) and len(item) == 2 and all(type(number) is int for number in item)
            if not (fits and end < item[0] < item[1] <= MOST_INTEGER and item[0] >= 0):
                raise self._wrong(name, item, "ascending ranges [first, end)")
            ranges.append((item[0], item[1]))
        return tuple(ranges)

    def close(self) -> None:
        """Raise if a field was not asked for."""
        if self._values:
            raise self._error(f"{self._what} has unknown fields: {', '.join(sorted(self._values))[:200]!r}")

    def _take(self, name: str) -> Any:
        try:
            return self._values.pop(name)
        except KeyError:
            raise self._error(f"{self._what} lacks the field {name!r}") from None

    def _word(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise self._wrong(name, value, "a lower-case word")
        return value

    def _file_name(self, name: str, value: object) -> str:
        try:
            return check_file_name(value)
        except Corrupt as reason:
            raise self._error(f"{self._what}.{name}: {reason.message}") from None

    def _version(self, value: object) -> str:
        try:
            return check_version(value)
        except BadRequest as reason:
            raise self._error(f"{self._what}: {reason.message}") from None

    def _wrong(self, name: str, value: object, expected: str) -> AiosError:
        return self._error(f"{self._what}.{name} must be {expected}, not {repr(value)[:80]}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate keys")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
