"""A search as callers write it, checked against the table and turned into a vector and a predicate.

Knows arguments and embedding spaces; nothing about SQL or the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aios_node.engine.errors import BadRequest, SpaceMismatch
from aios_node.memory.embed import Embedder, embed_texts
from aios_node.memory.filters import compile_filter
from aios_node.memory.predicates import Predicate, any_of
from aios_node.memory.retrieve import CHOOSABLE, HITS, Query
from aios_node.memory.schema import MODALITIES, SPACE_KEY, Limits, pick_columns
from aios_node.memory.vectors import one_vector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.memory.table import Facts


@dataclass(frozen=True, eq=False)
class Search:
    """The arguments of ``MemoryStore.search``, unchecked."""

    text: str | None = None
    vector: Sequence[float] | NDArray[np.floating] | None = None
    image: object = None
    audio: object = None
    k: int = 10
    filter: str | None = None
    alpha: float = 1.0
    beta: float = 0.0
    namespace: str | None = None
    modalities: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    space: str | None = None


def check(search: Search, facts: Facts, embedder: Embedder | None, limits: Limits) -> Query | None:
    """The query that ``retrieve`` runs, or None when the table has no vectors yet and nothing can be found.

    Raises ``BadRequest`` or ``SpaceMismatch``.
    """
    _check_numbers(search, limits)
    asked = pick_columns(None if search.columns is None else list(search.columns), CHOOSABLE)
    where = _where(search)
    vector = _vector(search, facts, embedder)
    if facts.dimension is None:
        return None
    columns = HITS if search.columns is None else asked
    if facts.space is not None:
        columns = columns.with_metadata({SPACE_KEY: facts.space.encode()})
    return Query(vector, search.k, where, float(search.alpha), columns)


def _check_numbers(search: Search, limits: Limits) -> None:
    if isinstance(search.k, bool) or not isinstance(search.k, int) or not 1 <= search.k <= limits.k:
        raise BadRequest(f"k must be a whole number from 1 to {limits.k}, not {search.k!r}")
    for name in ("alpha", "beta"):
        value = getattr(search, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise BadRequest(f"{name} must be a finite number that is not negative, not {value!r}")
    if search.beta != 0:
        raise BadRequest("beta must be 0: this table has no associations; leave it out to search by similarity")


def _where(search: Search) -> Predicate | None:
    """Filter, namespace and modalities as one predicate."""
    parts = []
    if search.filter is not None:
        parts.append(compile_filter(search.filter))
    if search.namespace is not None:
        if not isinstance(search.namespace, str):
            raise BadRequest("namespace must be a string")
        parts.append(any_of("namespace", [search.namespace]))
    if search.modalities is not None:
        parts.append(any_of("modality", _known_modalities(search.modalities)))
    if not parts:
        return None
    joined = parts[0]
    for part in parts[1:]:
        joined &= part
    return joined


def _known_modalities(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in MODALITIES:
            raise BadRequest(f"modality {str(name)[:80]!r} is none of {', '.join(MODALITIES)}")
    if isinstance(names, str) or not names:
        raise BadRequest(f"modalities must be a list of one or more of {', '.join(MODALITIES)}")
    return list(dict.fromkeys(names))


def _vector(search: Search, facts: Facts, embedder: Embedder | None) -> NDArray[np.float32]:
    """The query's vector, float32 [dimension], of the table's embedding space."""
    given = [name for name in ("text", "vector", "image", "audio") if getattr(search, name) is not None]
    if len(given) != 1:
        raise BadRequest(f"a search needs exactly one of text, vector, image and audio, not {len(given)}")
    if given[0] in ("image", "audio"):
        raise BadRequest(f"no open model understands {given[0]}; search by text or vector")
    if facts.dimension is not None and search.space not in (None, facts.space):
        raise SpaceMismatch(f"the query is of space {search.space!r}, the table's embeddings are of {facts.space!r}")
    if search.vector is not None:
        vector = one_vector(search.vector, "vector")
        if facts.dimension not in (None, len(vector)):
            raise BadRequest(f"vector: {len(vector)} values, the table's dimension is {facts.dimension}")
        return vector
    return _embedded(search.text, facts, embedder)


def _embedded(text: object, facts: Facts, embedder: Embedder | None) -> NDArray[np.float32]:
    if not isinstance(text, str):
        raise BadRequest(f"text must be a string, not {type(text).__name__}")
    if embedder is None:
        raise BadRequest("no model is open that could embed the text; search by vector, or open a model")
    if facts.dimension is None:
        return np.zeros(embedder.dimension, np.float32)  # nothing to compare with: spare the model the work
    if (facts.space, facts.dimension) != (embedder.space, embedder.dimension):
        raise SpaceMismatch(
            f"the table's embeddings are of space {facts.space!r} ({facts.dimension} values), the open model's "
            f"of {embedder.space!r} ({embedder.dimension}); search by a vector of the table's space"
        )
    vector: NDArray[np.float32] = embed_texts(embedder, [text])[0]
    return vector
