"""Tokenisers: text to token ids and back, through the native ``tokenizers`` library.

Knows nothing about networks: the ids are whatever ``tokenizer.json`` says. Thread-safe, because the
library object is never reconfigured after it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest, Corrupt, TooLarge

MAX_FILE_BYTES = 256 * 2**20
"""The largest ``tokenizer.json`` that is read (the biggest public ones have about 35 MB)."""

CHARACTERS_PER_TOKEN = 64
"""Truncating calls look at no more than this many characters per token that may come out. Natural
text has 4 to 6; without a bound, 50 MB of blanks would take the library 18 seconds."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Ids and mask of several texts: int64 [n, t] each, t the longest row; mask is 1 on real tokens."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


class FastTokenizer:
    """A tokeniser read from the bytes of a ``tokenizer.json``."""

    def __init__(self, native: Any, pad_id: int) -> None:
        self._native = native
        self._pad_id = pad_id
        self._specials = int(native.num_special_tokens_to_add(False))

    @classmethod
    def from_bytes(cls, data: bytes) -> FastTokenizer:
        """Read a ``tokenizer.json``. Raises Corrupt if it is none, TooLarge beyond MAX_FILE_BYTES.

        Truncation and padding that the file asks for are switched off: lengths are the caller's choice.
        """
        from tokenizers import Tokenizer

        if len(data) > MAX_FILE_BYTES:
            raise TooLarge(f"tokenizer.json has {len(data)} bytes: {MAX_FILE_BYTES} are allowed")
        try:
            native = Tokenizer.from_buffer(data)
        except ValueError as error:
            raise Corrupt(f"tokenizer.json cannot be read: {error}") from error
        pad_id = int(native.padding["pad_id"]) if native.padding else native.token_to_id("[PAD]") or 0
        native.no_truncation()
        native.no_padding()
        return cls(native, pad_id)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included: every id is below it."""
        return int(self._native.get_vocab_size(with_added_tokens=True))

    @cached_property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """Ids of all tokens but the special ones ([CLS], [PAD], ...), in order: int64."""
        special = self._native.get_added_tokens_decoder()
        return np.array([one for one in range(self.vocab_size) if one not in special], np.int64)

    @cached_property
    def tokens(self) -> list[str]:
        """All tokens in the order of their ids, as the vocabulary spells them."""
        return [str(self._native.id_to_token(one) or "") for one in range(self.vocab_size)]

    def token_ids(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids of each text with its special tokens, cut to ``max_tokens`` (special tokens are kept).

        Where ``max_tokens`` is given, only the first ``CHARACTERS_PER_TOKEN * max_tokens`` characters
        of a text are looked at. Raises BadRequest for anything but a sequence of encodable strings.
        """
        limit = None if max_tokens is None else self._checked_limit(max_tokens) * CHARACTERS_PER_TOKEN
        encodings = self._encode([text[:limit] for text in checked_texts(texts)])
        if max_tokens is None:
            return [encoding.ids for encoding in encodings]
        return [self._cut(encoding, max_tokens) for encoding in encodings]

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> TokenBatch:
        """Ids and mask of all texts, int64 [n, t], padded on the right to the longest of them."""
        return self.pad(self.token_ids(texts, max_tokens))

    def pad(self, rows: Sequence[Sequence[int]], multiple: int = 1) -> TokenBatch:
        """Put rows of ids into one right-padded int64 [n, t] array with its mask, t a multiple of ``multiple``."""
        if len(rows) == 1 and rows[0] and not len(rows[0]) % multiple:  # as single requests are: a tenth of the work
            alone = np.array(rows, dtype=np.int64)
            return TokenBatch(alone, np.ones_like(alone))
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        width = -(-int(lengths.max(initial=0)) // multiple) * multiple
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        if width:
            ids[mask.astype(bool)] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return TokenBatch(ids, mask)

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
        """Text of each row of ids. Raises BadRequest for ids that this vocabulary does not have."""
        size = self.vocab_size
        clean = [[_checked_id(token, size) for token in row] for row in rows]
        return [str(text) for text in self._native.decode_batch(clean, skip_special_tokens=skip_special)]

    def _encode(self, texts: list[str]) -> list[Any]:
        return list(self._native.encode_batch_fast(texts, add_special_tokens=True))

    def _cut(self, encoding: Any, max_tokens: int) -> list[int]:
        """Drop the overflow before the special tokens that end the row."""
        ids: list[int] = encoding.ids
        if len(ids) <= max_tokens:
            return ids
        trailing = next((n for n, special in enumerate(reversed(encoding.special_tokens_mask)) if not special), 0)
        return ids[: max_tokens - trailing] + ids[len(ids) - trailing :]

    def _checked_limit(self, max_tokens: int) -> int:
        if max_tokens <= self._specials:
            raise BadRequest(f"max_tokens is {max_tokens}: this tokeniser needs {self._specials} for itself")
        return max_tokens


def checked_texts(texts: object) -> list[str]:
    """Return the texts as a list, or raise BadRequest naming the first that cannot be encoded."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise BadRequest(f"texts must be a list of strings, not {type(texts).__name__}")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"text {position} is {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"text {position} holds a lone surrogate: it is not valid Unicode") from None
    return list(texts)


def _checked_id(token: object, size: int) -> int:
    if isinstance(token, (int, np.integer)) and not isinstance(token, bool) and 0 <= token < size:
        return int(token)
    raise BadRequest(f"token id {token!r} is not in this vocabulary of {size}")
