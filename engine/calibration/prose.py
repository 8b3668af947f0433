"""Long texts cut into passages, paragraphs, sentences and short titles, and mixed so that lengths vary.

Knows English punctuation; knows nothing about where texts come from.
"""

from __future__ import annotations

import re

from aios_node.engine.calibration.sets import MAX_TEXTS, place

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_EMPTY_LINE = re.compile(r"\n\s*\n")
_PARAGRAPH_WORDS = range(8, 400)
_SENTENCE_WORDS = range(4, 41)
_TITLE_WORDS = range(2, 13)
_LETTERS = 0.6
"""Tables, examples of code and rulers have fewer letters than this part of their characters."""

_PASSAGE_WORDS = range(60, 300)
_SHARES = (0.2, 0.35, 0.28, 0.17)
"""Passages, paragraphs, sentences and titles in a mix, as long as there are enough of each."""

_VERBS = (
    " add build call check close compare compute convert copy create decode delete encode find format get install "
    "load make open parse print read remove replace return run save search send set sort split start stop store "
    "test update use wait write "
)


class Prose:
    """Collects texts and gives them back as a mix of passages, paragraphs, sentences and titles."""

    def __init__(self) -> None:
        self._kinds: tuple[set[str], ...] = (set(), set(), set(), set())

    def add(self, text: str) -> None:
        """A text of any length: its paragraphs, several of them in a row, and its sentences."""
        passages, paragraphs, sentences, _ = self._kinds
        passage: list[str] = []
        for raw in _EMPTY_LINE.split(text):
            paragraph = " ".join(raw.split())
            if not _is_prose(paragraph):
                continue
            if len(paragraph.split()) in _PARAGRAPH_WORDS:
                paragraphs.add(paragraph)
            sentences.update(each for each in _SENTENCE_END.split(paragraph) if _is_sentence(each))
            passage += paragraph.split()
            if len(passage) in _PASSAGE_WORDS:
                passages.add(" ".join(passage))
            if len(passage) >= _PASSAGE_WORDS.start:
                passage = []

    def add_title(self, title: str) -> None:
        """What could be a heading; one that tells to do something becomes a question every second time."""
        title = " ".join(title.split()).rstrip(".:;, ")
        if len(title.split()) in _TITLE_WORDS and _is_prose(title):
            self._kinds[3].add(_as_question(title))

    def mixed(self, limit: int | None, seed: int) -> list[str]:
        """``limit`` texts (None: as many as a set may hold); a smaller mix is the beginning of a larger one."""
        best: dict[str, float] = {}
        for texts, share in zip(self._kinds, _SHARES, strict=True):
            for number, text in enumerate(sorted(texts, key=lambda each: (place(each, seed), each))):
                best[text] = min(best.get(text, float("inf")), number / share)
        order = sorted(best, key=lambda text: (best[text], place(text, seed), text))
        return order[: MAX_TEXTS if limit is None else limit]


def _is_sentence(text: str) -> bool:
    return len(text.split()) in _SENTENCE_WORDS and _is_prose(text)


def _is_prose(text: str) -> bool:
    return bool(text) and sum(character.isalpha() for character in text) > _LETTERS * len(text)


def _as_question(title: str) -> str:
    first, _, rest = title.partition(" ")
    if f" {first.lower()} " in _VERBS and place(title, 0) % 2:
        return f"How do I {first.lower()} {rest}?"
    return title
