"""Texts to vectors: a tokeniser, an encoder, and batches that waste little and stay small.

Knows nothing of versions, files or concurrency; safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.kernels import ROW_MULTIPLE
from aios_node.engine.nets.modes import Mode
from aios_node.engine.nets.parallel import each
from aios_node.engine.tokenizer import FastTokenizer

WINDOW = 4096
"""Texts that are tokenised and sorted together: bounds what is held besides the result."""

CPU_BATCH_TOKENS = 1024
"""Padded tokens per batch on a CPU. Measured best on two cores (256 to 16384 tried): activations stay in
cache and below the size from which the allocator returns memory to the system at every free."""

INT8_BATCH_TOKENS = 512
"""The same for 8-bit products, which need half as many rows to be busy."""

DEVICE_BATCH_TOKENS = 32768
"""Padded tokens per batch on an accelerator, which needs big products to be busy."""


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """Encodes any number of texts with one network. Raises BadWeights if the vocabularies do not fit."""

    net: Encoder
    tokenizer: FastTokenizer
    device: str = "cpu"
    mode: Mode = "float32"
    most_tokens: int | None = None  # per batch, where less than usual is wanted

    def __post_init__(self) -> None:
        # An id beyond the table is an error message on a CPU, and a dead process on a GPU.
        if self.tokenizer.vocab_size > self.net.config.vocab_size:
            raise BadWeights(
                f"tokenizer.json has {self.tokenizer.vocab_size} tokens, the network knows "
                f"{self.net.config.vocab_size}: they do not belong together"
            )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.net.config.hidden_size

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that are computed together."""
        if self.most_tokens is not None:
            return self.most_tokens
        if self.device != "cpu":
            return DEVICE_BATCH_TOKENS
        return INT8_BATCH_TOKENS if self.mode == "int8" else CPU_BATCH_TOKENS

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> NDArray[np.float32]:
        """One vector per text, float32 [n, d]; texts are cut to ``max_tokens`` (the network's own by default).

        Raises BadRequest for anything but a sequence of strings.
        """
        limit = min(max_tokens or self.net.config.max_tokens, self.net.config.max_tokens)
        out = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), WINDOW):
            rows = self.tokenizer.token_ids(texts[start : start + WINDOW], limit)
            self._encode_window(rows, out[start : start + WINDOW])
        return out

    def _encode_window(self, rows: list[list[int]], out: NDArray[np.float32]) -> None:
        on_cpu = self.device == "cpu"
        multiple = 1 if self.mode == "int8" else ROW_MULTIPLE  # 8-bit products need no preparation per shape
        batches = list(length_batches([len(row) for row in rows], self.batch_tokens, multiple))

        @torch.inference_mode()
        def encode_batch(chosen: NDArray[np.intp]) -> None:
            batch = self.tokenizer.pad([rows[index] for index in chosen], multiple)
            ids, mask = (torch.from_numpy(part).to(self.device) for part in (batch.ids, batch.mask))
            out[chosen] = self.net(ids, mask).cpu().numpy()

        if on_cpu:
            # The longest first, so that no thread is left alone with it.
            each(encode_batch, batches[::-1], split_single=self.mode != "int8")
        else:
            for chosen in batches:
                encode_batch(chosen)


def length_batches(lengths: Sequence[int], budget: int, multiple: int = ROW_MULTIPLE) -> Iterator[NDArray[np.intp]]:
    """Row numbers in batches, shortest rows first, so that rows times longest row <= ``budget``.

    A row counts as its length, padded to a ``multiple``.

    Every row is in exactly one batch; one that exceeds the budget by itself is a batch of its own.
    """
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * _padded(lengths[order[end]], multiple) > budget:
            yield order[start:end]
            start = end


def _padded(length: int, multiple: int) -> int:
    return max(1, -(-length // multiple)) * multiple
