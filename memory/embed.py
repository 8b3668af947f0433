"""What the memory room needs from a model: one Protocol, and who fills in embeddings when.

Knows embedding spaces; no model, no device and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aios_node.engine.errors import DataError
from aios_node.memory.vectors import Vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.memory.rows import RowBatch
    from aios_node.memory.table import Facts

_TEXTS_AT_ONCE = 256


class Embedder(Protocol):
    """Turns texts into vectors of one embedding space. ``ArrowEngine`` is one."""

    @property
    def space(self) -> str:
        """Name of the embedding space; vectors of different spaces are never compared."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Return float32 [n, dimension], one row per text."""
        ...


def embed_texts(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Encode in slices, so that other callers get their turn between them; float32 [n, dimension].

    Raises ``DataError`` when the model answers with another shape, NaN, Inf or a zero vector.
    """
    out = np.empty((len(texts), embedder.dimension), dtype=np.float32)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        vectors = np.asarray(embedder.encode(part), dtype=np.float32)
        if vectors.shape != (len(part), embedder.dimension):
            raise DataError(
                f"the model of space {embedder.space} answered {vectors.shape} "
                f"for {len(part)} texts of dimension {embedder.dimension}"
            )
        out[start : start + len(part)] = vectors
    if not (np.isfinite(out).all() and out.any(axis=1).all()):
        raise DataError(f"the model of space {embedder.space} made NaN, infinite or zero vectors")
    return out


def fitting(embedder: Embedder | None, facts: Facts | None, given: int | None) -> Embedder | None:
    """The embedder, if its vectors may stand in the table; ``given`` is the dimension of vectors that come along.

    A table takes the space of its first vectors; later ones of another space or dimension never join them.
    """
    if embedder is None:
        return None
    if facts is not None and facts.dimension is not None:
        fits = facts.space == embedder.space and facts.dimension == embedder.dimension
    else:
        fits = given in (None, embedder.dimension)
    return embedder if fits else None


def complete(
    batch: RowBatch, embedder: Embedder | None, facts: Facts | None, declared: str | None
) -> tuple[RowBatch, str | None, bool]:
    """Fill in embeddings for texts where the embedder fits.

    ``facts`` are the table's (None: it does not exist yet), ``declared`` the space that the owner of given
    embeddings named. Returns the batch, the space of its embeddings, and whether that space is certain:
    undeclared vectors that fit this node's model are only taken to be its.
    """
    given = batch.embedding.dimension
    if given is None:
        declared = None
    model = fitting(embedder, facts, given)
    if model is None or declared not in (None, model.space):
        return batch, declared, declared is not None
    rows = batch.unembedded()
    if rows:
        texts = [text for row in rows if (text := batch.text[row]) is not None]
        batch = batch.with_embeddings(Vectors(embed_texts(model, texts), np.array(rows, np.int64)))
    return batch, model.space, bool(rows) or declared is not None
