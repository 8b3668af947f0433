"""A set of calibration texts with its identity, and how a fixed number of texts is chosen out of many.

The choice follows from a hash of seed and text alone: it is spread over all that was seen, the same on every
machine, free of repetitions, and a smaller sample is the beginning of a larger one. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from aios_node.engine.errors import BadRequest

MAX_CHARACTERS = 4096
"""Characters in one text; longer ones are cut into several."""

MAX_TEXTS = 50_000
"""Texts in one set."""

_WORDS_APART = 200
"""A cut moves back by at most this many characters, to where a word begins."""


@dataclass(frozen=True)
class CalibrationSet:
    """Texts and where they come from.

    ``source``: a sentence for people, such as a path. ``sha256``: of the texts (see texts_sha256).
    ``files``: what the texts were made of, name to sha256 of the content, where that was recorded.
    """

    texts: tuple[str, ...]
    source: str
    sha256: str
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str], source: str, files: Mapping[str, str] | None = None) -> CalibrationSet:
        """A set of these texts, in this order. Raises BadRequest when there are none, or more than MAX_TEXTS."""
        kept = tuple(texts)
        if not kept:
            raise BadRequest(f"{source}: there is no text to calibrate with")
        if len(kept) > MAX_TEXTS:
            raise BadRequest(f"{source}: {len(kept)} texts; at most {MAX_TEXTS} are used")
        return cls(kept, source, texts_sha256(kept), dict(files or {}))

    def first(self, limit: int | None) -> CalibrationSet:
        """The first ``limit`` texts; all of them for None. Raises BadRequest for a limit that cannot be."""
        if limit is None or checked_limit(limit) >= len(self.texts):
            return self
        return CalibrationSet.of(self.texts[:limit], self.source, self.files)


def texts_sha256(texts: Iterable[str]) -> str:
    """sha256 (hex) over the texts as a JSON list: ASCII only, no spaces."""
    return hashlib.sha256(json.dumps(list(texts), separators=(",", ":")).encode("ascii")).hexdigest()


def checked_limit(limit: int) -> int:
    """The limit itself. Raises BadRequest unless it is a whole number from 1 to MAX_TEXTS."""
    if type(limit) is not int or not 1 <= limit <= MAX_TEXTS:
        raise BadRequest(f"a limit of {limit!r:.40} texts: a whole number from 1 to {MAX_TEXTS} is allowed")
    return limit


def place(text: str, seed: int) -> int:
    """Where a text stands in the order of a seed: a number of 128 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode("utf-8", "replace")).digest()[:16], "big")


class Sample:
    """Keeps ``limit`` of all the texts that it is shown, and holds no more than those in memory."""

    def __init__(self, limit: int | None, seed: int = 0) -> None:
        self._limit = MAX_TEXTS if limit is None else checked_limit(limit)
        self._seed = seed
        self._kept: list[tuple[int, str]] = []  # a heap: the text that would go first is at the top
        self._places: set[int] = set()

    def add(self, text: str) -> None:
        """Show a text of any length."""
        for piece in pieces(text):
            self._offer(-place(piece, self._seed), piece)

    def texts(self) -> list[str]:
        """What was kept, in the order of the seed."""
        return [text for _, text in sorted(self._kept, reverse=True)]

    def _offer(self, key: int, piece: str) -> None:
        if key in self._places:
            return
        if len(self._kept) < self._limit:
            heapq.heappush(self._kept, (key, piece))
        elif key > self._kept[0][0]:
            self._places.discard(heapq.heapreplace(self._kept, (key, piece))[0])
        else:
            return
        self._places.add(key)


def pieces(text: str) -> Iterator[str]:
    """A text as parts of at most MAX_CHARACTERS, cut where words begin; nothing for one without letters."""
    text = text.encode("utf-8", "replace").decode("utf-8").strip()  # half a surrogate pair becomes "?"
    while text:
        end = MAX_CHARACTERS
        if len(text) > end:
            space = text.rfind(" ", end - _WORDS_APART, end)
            end = space if space > 0 else end
        part, text = text[:end].rstrip(), text[end:].lstrip()
        if any(character.isalnum() for character in part):
            yield part
