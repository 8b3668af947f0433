"""Pairs from titled texts, and their division by document."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest
from aios_node.engine.evolve.pairs import (
    MIN_DOCUMENT_WORDS,
    MIN_QUESTION_WORDS,
    Document,
    Pair,
    first_sentence,
    make_pairs,
    split_pairs,
    title_words,
)

LONG = "Send a request to the server. The method names what is wanted, and the url says of what it is wanted."


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("http.cookiejar.FileCookieJar.load(filename)", "http cookiejar file cookie jar load filename"),
        ("os.path.join a b", "os path join a b"),
        ("How to read a file?", "how to read a file"),
        ("__init__", "init"),
        ("HTTPServer", "http server"),
        ("parseHTML5", "parse html5"),
        ("naïve Café", "naïve café"),
        ("json json.dump json", "json dump"),
        ("", ""),
    ],
)
def test_titles_become_words(title: str, words: str) -> None:
    assert title_words(title) == words


@pytest.mark.parametrize(
    ("text", "lead", "rest"),
    [
        ("One. Two. Three.", "One.", "Two. Three."),
        ("Heading\n\nBody of it.", "Heading", "Body of it."),
        ("Is it?\nYes.", "Is it?", "Yes."),
        ("see os.path for e.g this", "see os.path for e.g this", ""),
        ("over\ntwo lines. end", "over two lines.", "end"),
        ("  ", "", ""),
    ],
)
def test_first_sentences(text: str, lead: str, rest: str) -> None:
    assert first_sentence(text) == (lead, rest)


def test_a_title_asks_for_its_text() -> None:
    assert make_pairs([Document("http.client.request", LONG)]) == (Pair("http client request", LONG, 0),)


def test_leads_ask_for_the_rest() -> None:
    titled, lead = make_pairs([Document("http.client.request", LONG)], leads=True)
    assert titled.question == "http client request"
    assert lead == Pair("Send a request to the server.", LONG.removeprefix("Send a request to the server. "), 0)


def test_nothing_is_made_of_too_little() -> None:
    assert make_pairs([Document("read", LONG), Document("two words", "Too short."), Document("", "")]) == ()
    assert MIN_QUESTION_WORDS == 2
    assert MIN_DOCUMENT_WORDS == 8


def test_what_was_asked_or_answered_before_is_left_out() -> None:
    documents = [
        Document("first.name", LONG),
        Document("other.name", LONG.upper()),
        Document("first name", "Another text that is long enough to be found by somebody."),
        Document("third.name", "A third text that is long enough to be found by somebody."),
    ]
    assert [pair.document for pair in make_pairs(documents)] == [0, 3]


DOCUMENTS = st.lists(st.builds(Document, st.text(max_size=40), st.text(max_size=200)), max_size=20)


@given(documents=DOCUMENTS, leads=st.booleans())
def test_every_pair_is_usable_and_unique(documents: list[Document], leads: bool) -> None:
    pairs = make_pairs(documents, leads=leads)
    assert len({pair.question.lower() for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert len(pair.question.split()) >= MIN_QUESTION_WORDS
        assert len(pair.answer.split()) >= MIN_DOCUMENT_WORDS
        assert 0 <= pair.document < len(documents)


@given(count=st.integers(0, 300), held_out=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_no_document_is_on_both_sides(count: int, held_out: float, seed: int) -> None:
    pairs = [Pair(f"question {n}", "answer", n // 2) for n in range(count)]
    split = split_pairs(pairs, held_out=held_out, seed=seed)
    assert sorted((*split.train, *split.held_out), key=lambda pair: int(pair.question[9:])) == pairs
    assert not {pair.document for pair in split.train} & {pair.document for pair in split.held_out}


def test_the_share_is_about_what_was_asked_and_the_seed_decides_which() -> None:
    pairs = [Pair("a question", "an answer", n) for n in range(2000)]
    some, others = (split_pairs(pairs, held_out=0.25, seed=seed).held_out for seed in (0, 1))
    assert 400 < len(some) < 600
    assert set(some) != set(others)


def test_more_documents_do_not_reshuffle_the_earlier_ones() -> None:
    pairs = [Pair("a question", "an answer", n) for n in range(200)]
    early = split_pairs(pairs[:100]).held_out
    assert split_pairs(pairs).held_out[: len(early)] == early


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_shares_that_leave_nothing_are_refused(share: float) -> None:
    with pytest.raises(BadRequest, match="held_out"):
        split_pairs([], held_out=share)
