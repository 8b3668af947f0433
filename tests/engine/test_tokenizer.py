"""The tokeniser against the library's own answers, and against bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from aios_node.engine.errors import BadRequest, Corrupt, TooLarge
from aios_node.engine.tokenizer import CHARACTERS_PER_TOKEN, MAX_FILE_BYTES, FastTokenizer

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=6)


@pytest.fixture(scope="module")
def tokenizer(minilm_folder: Path) -> FastTokenizer:
    return FastTokenizer.from_bytes((minilm_folder / "tokenizer.json").read_bytes())


@pytest.fixture(scope="module")
def library(minilm_folder: Path) -> Any:
    native = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    native.no_padding()
    native.no_truncation()
    return native


@pytest.fixture(scope="module")
def truncating_library(minilm_folder: Path) -> Any:
    native = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    native.no_padding()
    native.enable_truncation(12)
    return native


@given(texts=TEXTS)
def test_ids_are_the_librarys(tokenizer: FastTokenizer, library: Any, texts: list[str]) -> None:
    assert tokenizer.token_ids(texts) == [library.encode(text).ids for text in texts]


@given(texts=TEXTS)
def test_truncation_is_the_librarys(tokenizer: FastTokenizer, truncating_library: Any, texts: list[str]) -> None:
    assert tokenizer.token_ids(texts, 12) == [truncating_library.encode(text).ids for text in texts]


@given(texts=TEXTS)
def test_a_batch_holds_every_row_padded_and_masked(tokenizer: FastTokenizer, texts: list[str]) -> None:
    rows = tokenizer.token_ids(texts, 16)
    batch = tokenizer.encode_batch(texts, 16)
    assert batch.ids.dtype == batch.mask.dtype == np.int64
    assert batch.ids.shape == batch.mask.shape == (len(texts), max(map(len, rows), default=0))
    for row, ids, mask in zip(rows, batch.ids, batch.mask, strict=True):
        assert ids[mask == 1].tolist() == row
        assert (ids[mask == 0] == 0).all()
        assert mask.tolist() == [1] * len(row) + [0] * (len(ids) - len(row))


def test_padding_to_a_multiple(tokenizer: FastTokenizer) -> None:
    assert tokenizer.pad([[1, 2, 3], [4]], 8).ids.shape == (2, 8)
    assert tokenizer.pad([[1] * 8], 8).ids.shape == (1, 8)
    assert tokenizer.pad([], 8).ids.shape == (0, 0)


def test_text_to_ids_and_back(tokenizer: FastTokenizer) -> None:
    rows = tokenizer.token_ids(["hello world", ""])
    assert rows == [[101, 7592, 2088, 102], [101, 102]]
    assert tokenizer.decode(rows) == ["hello world", ""]
    assert tokenizer.decode(rows, skip_special=False)[0] == "[CLS] hello world [SEP]"


def test_special_tokens_in_a_text_are_cut_like_words(tokenizer: FastTokenizer, truncating_library: Any) -> None:
    text = "one [SEP] two [SEP] " * 9
    assert tokenizer.token_ids([text], 12) == [truncating_library.encode(text).ids]


def test_a_vast_text_costs_no_more_than_its_beginning(tokenizer: FastTokenizer) -> None:
    beginning = "many words " * 200
    vast = beginning.ljust(CHARACTERS_PER_TOKEN * 16) + "x" * 30_000_000
    assert tokenizer.token_ids([vast], 16) == tokenizer.token_ids([beginning], 16)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "not str"),
        (b"bytes", "not bytes"),
        (7, "not int"),
        ({"a": 1}, "not dict"),
        (["fine", 3], "text 1 is int"),
        ([None], "text 0 is NoneType"),
        (["\ud800"], "lone surrogate"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(tokenizer: FastTokenizer, texts: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        tokenizer.token_ids(texts)


@pytest.mark.parametrize("token", [-1, 30522, 2**40, "7", 1.0, True])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: FastTokenizer, token: Any) -> None:
    with pytest.raises(BadRequest, match="not in this vocabulary of 30522"):
        tokenizer.decode([[101, token]])


def test_numpy_ids_are_ids(tokenizer: FastTokenizer) -> None:
    assert tokenizer.decode([np.array([7592, 2088])]) == ["hello world"]


def test_no_room_for_anything_but_special_tokens_is_refused(tokenizer: FastTokenizer) -> None:
    with pytest.raises(BadRequest, match="max_tokens is 2"):
        tokenizer.token_ids(["x"], 2)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"model": {"type": "WordPiece"}}', b"\xff\xfe"])
def test_broken_files_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="tokenizer"):
        FastTokenizer.from_bytes(data)


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(TooLarge, match="bytes"):
        FastTokenizer.from_bytes(bytes(MAX_FILE_BYTES + 1))
