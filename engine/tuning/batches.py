"""Batches to learn from: calibration texts as token ids, some of their tokens exchanged for random ones.

The teacher answers for any input, so inputs need not be sentences: exchanged tokens show the student the whole
vocabulary, which the texts alone do not. Everything follows from the seed: the batches after a step can be made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.nets.kernels import ROW_MULTIPLE
from aios_node.engine.nets.sentences import length_batches
from aios_node.engine.tokenizer import FastTokenizer, TokenBatch

_SORTED_TOGETHER = 4096
"""Rows that are sorted by length together: enough that batches are padded little."""

_TOUCHED = 0.25
"""Share of rows in which tokens are exchanged; which part of a row's tokens is drawn evenly from none to all."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Token rows, given out in batches of at most ``budget`` padded tokens, in a new order every epoch."""

    rows: Sequence[Sequence[int]]
    tokenizer: FastTokenizer
    budget: int
    seed: int

    @classmethod
    def of(
        cls, texts: Sequence[str], tokenizer: FastTokenizer, *, max_tokens: int, budget: int, seed: int
    ) -> BatchPlan:
        """Tokenise texts, cut to ``max_tokens``. Raises BadRequest when no text has a token of its own."""
        rows = [row for row in tokenizer.token_ids(list(texts), min(max_tokens, budget)) if len(row) > 2]
        if not rows:
            raise BadRequest("the calibration texts hold no token that the model knows")
        return cls(rows, tokenizer, budget, seed)

    def training(self, start: int = 0) -> Iterator[TokenBatch]:
        """Endless batches, ids and mask int64 [b, t], from step ``start`` on."""
        ordinary = self.tokenizer.ordinary_ids
        for step, chosen in islice(enumerate(self._order()), start, None):
            random = np.random.default_rng((self.seed, step))
            rows = [_exchanged(self.rows[row], ordinary, random) for row in chosen]
            yield self.tokenizer.pad(rows, ROW_MULTIPLE)

    def plain(self, limit: int) -> list[TokenBatch]:
        """The first ``limit`` rows as they are, each once."""
        rows = self.rows[:limit]
        chosen = length_batches([len(row) for row in rows], self.budget)
        return [self.tokenizer.pad([rows[index] for index in part], ROW_MULTIPLE) for part in chosen]

    def _order(self) -> Iterator[NDArray[np.intp]]:
        lengths = np.array([len(row) for row in self.rows])
        for epoch in count():
            random = np.random.default_rng((self.seed, epoch, 0))
            order = random.permutation(len(lengths))
            cut: list[NDArray[np.intp]] = []
            for start in range(0, len(order), _SORTED_TOGETHER):
                part = order[start : start + _SORTED_TOGETHER]
                cut += [part[chosen] for chosen in length_batches(lengths[part].tolist(), self.budget)]
            yield from (cut[index] for index in random.permutation(len(cut)))


def _exchanged(row: Sequence[int], ordinary: NDArray[np.int64], random: np.random.Generator) -> list[int]:
    """The row with some of its tokens, special ones at the ends aside, replaced by random ones."""
    ids = np.array(row)
    if random.random() < _TOUCHED:
        places = 1 + np.flatnonzero(random.random(len(row) - 2) < random.random())
        ids[places] = random.choice(ordinary, len(places))
    changed: list[int] = ids.tolist()
    return changed
