"""Sentences made of a tokeniser's words, for machines that have no text at hand.

They mean nothing, but they reach every corner of a vocabulary, in lengths and with punctuation as texts have
them. Knows how vocabularies mark whole words; knows no tokeniser.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Sequence

from aios_node.engine.calibration.sets import CalibrationSet, checked_limit
from aios_node.engine.errors import BadRequest

_WORD_MARKS = ("Ġ", "▁")  # byte-level and sentence-piece vocabularies; WordPiece marks what continues a word
_MIN_WORDS = 10
_LENGTHS = range(3, 14)
_MAX_SENTENCES = 12
_COMMA = 0.12
_QUESTION = 0.2


def synthetic(vocabulary: Sequence[str], count: int, seed: int = 0) -> CalibrationSet:
    """``count`` texts of one to twelve sentences; few sentences are likelier than many (Zipf's law, as with words).

    ``vocabulary``: tokens in the order of their numbers; those that are no whole words are left out.
    The same arguments give the same texts. Raises BadRequest for a vocabulary without enough words.
    """
    checked_limit(count)
    words = whole_words(vocabulary)
    if len(words) < _MIN_WORDS:
        raise BadRequest(f"the vocabulary has {len(words)} whole words; at least {_MIN_WORDS} are needed")
    writer = _Writer(words, random.Random(seed))  # noqa: S311 - texts, no secrets
    return CalibrationSet.of(writer.texts(count), f"synthetic, {len(words)} words, seed {seed}")


def whole_words(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The tokens that are words of two letters and more, without marks and repetitions."""
    for mark in _WORD_MARKS:
        marked = [token.removeprefix(mark) for token in vocabulary if token.startswith(mark)]
        if marked:
            vocabulary = marked
            break
    return tuple(dict.fromkeys(token for token in vocabulary if len(token) > 1 and token.isalpha()))


class _Writer:
    def __init__(self, words: Sequence[str], chance: random.Random) -> None:
        self._words = words
        self._chance = chance
        self._sums = {size: _zipf(size) for size in (len(words), _MAX_SENTENCES)}

    def texts(self, count: int) -> list[str]:
        """That many texts."""
        return [self._text() for _ in range(count)]

    def _text(self) -> str:
        return " ".join(self._sentence() for _ in range(1 + self._rank(_MAX_SENTENCES)))

    def _sentence(self) -> str:
        count = _LENGTHS[int(self._chance.random() * len(_LENGTHS))]
        words = [self._words[self._rank(len(self._words))] for _ in range(count)]
        body = "".join(word + (", " if self._chance.random() < _COMMA else " ") for word in words[:-1]) + words[-1]
        return body[0].upper() + body[1:] + ("?" if self._chance.random() < _QUESTION else ".")

    def _rank(self, size: int) -> int:
        """A number below ``size``: small ones often, large ones rarely."""
        sums = self._sums[size]
        return min(size - 1, bisect(sums, self._chance.random() * sums[-1]))


def _zipf(size: int) -> list[float]:
    """Running sums of 1 / (rank + 2)."""
    return list(itertools.accumulate(1 / (rank + 2) for rank in range(size)))
