"""Questions and documents to learn from, made of titled texts without any labelling by people.

A text's title (a qualified name, a signature) and its first sentence are things that somebody who looks
for the text might ask; the rest is what should be found. The split is by document: no text that is
learned from is ever asked about. Knows no networks, tokenisers or files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aios_node.engine.errors import BadRequest

MIN_QUESTION_WORDS = 2
MIN_DOCUMENT_WORDS = 8

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[^\w]+|_+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


@dataclass(frozen=True)
class Document:
    """One titled text. ``title`` may be prose, a qualified name or a signature."""

    title: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A question and the text that answers it; ``document`` numbers the source document."""

    question: str
    answer: str
    document: int


@dataclass(frozen=True)
class Split:
    """Pairs to learn from and pairs to be judged by. They share no document."""

    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


def title_words(title: str) -> str:
    """``http.cookiejar.FileCookieJar.load(filename)`` -> ``http cookiejar file cookie jar load filename``.

    Prose goes through unharmed, up to punctuation and case. Repeated words are said once.
    """
    words = _SEPARATORS.sub(" ", _CAMEL.sub(" ", title)).lower().split()
    return " ".join(dict.fromkeys(words))


def first_sentence(text: str) -> tuple[str, str]:
    """Split a text into its first sentence (or paragraph, whichever ends first) and the rest."""
    parts = _SENTENCE_END.split(text.strip(), maxsplit=1)
    return " ".join(parts[0].split()), parts[1].strip() if len(parts) > 1 else ""


def make_pairs(documents: Sequence[Document], *, leads: bool = False) -> tuple[Pair, ...]:
    """Make a pair of each document: title -> text; with ``leads`` also first sentence -> the rest.

    With titles alone every answer is a whole text, as it would be stored. Leads are for texts whose
    titles say little.

    Texts and questions that occurred before are left out (their answer would be ambiguous), as are
    questions under MIN_QUESTION_WORDS and answers under MIN_DOCUMENT_WORDS words.
    """
    seen_texts: set[str] = set()
    seen_questions: set[str] = set()
    pairs: list[Pair] = []
    for number, document in enumerate(documents):
        for pair in _pairs_of(number, document, leads):
            text, question = " ".join(pair.answer.split()).lower(), pair.question.lower()
            if text not in seen_texts and question not in seen_questions:
                pairs.append(pair)
            seen_questions.add(question)
            seen_texts.add(text)
    return tuple(pairs)


def split_pairs(pairs: Iterable[Pair], *, held_out: float = 0.2, seed: int = 0) -> Split:
    """Divide pairs by document: about ``held_out`` of the documents are kept for judging.

    Which ones follows from a hash of seed and document number alone, so more documents later do not
    reshuffle the earlier ones. Raises BadRequest unless 0 < held_out < 1.
    """
    if not 0 < held_out < 1:
        raise BadRequest(f"held_out is {held_out}: use a share between 0 and 1")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_share(pair.document, seed) < held_out].append(pair)
    return Split(train=tuple(sides[0]), held_out=tuple(sides[1]))


def _pairs_of(number: int, document: Document, leads: bool) -> Iterator[Pair]:
    titled = (title_words(document.title), document.text.strip())
    for question, answer in (titled, first_sentence(document.text)) if leads else (titled,):
        if _words(question) >= MIN_QUESTION_WORDS and _words(answer) >= MIN_DOCUMENT_WORDS:
            yield Pair(question, answer, number)


def _words(text: str) -> int:
    return len(text.split())


def _share(document: int, seed: int) -> float:
    """A fixed pseudo-random number in [0, 1) for this document."""
    digest = hashlib.sha256(f"{seed}:{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
