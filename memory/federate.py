"""Answers of several nodes to one search, merged into one. Pure: tables in, a table out.

Answers come from machines that others own: one that is not a hit table of the right embedding space counts
as missing, it never spoils the others'. Knows nothing about networks, time or trust.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from aios_node.engine.errors import BadRequest
from aios_node.memory.retrieve import CHOOSABLE, HITS
from aios_node.memory.schema import declared_space, pick_columns


@dataclass(frozen=True, eq=False)
class Merged:
    """Hits, best first; ``missing`` names the nodes whose answer is not in it, ``complete`` when there are none."""

    hits: pa.Table
    complete: bool
    missing: tuple[str, ...]


def merge_hits(
    answers: Mapping[str, pa.Table | None], k: int, *, space: str | None = None, extra: Sequence[str] = ()
) -> Merged:
    """The ``k`` best of all nodes' hits, ordered by (-score, node, id), each memory once.

    ``answers`` maps a node's name to its hits (None: it did not answer). Of several hits with the same id, or
    the same kind and text, the best stays. ``space``: an answer that names another embedding space is missing.
    ``extra`` names columns that the answers carry beyond ``HITS`` and that the merged hits keep.
    """
    schema = pick_columns([*HITS.names, *extra], CHOOSABLE)
    rows, missing = [], []
    for node in sorted(answers):
        hits = _checked(answers[node], space, schema)
        if hits is None:
            missing.append(node)
        else:
            rows.append(_named(hits, node))
    together = pa.concat_tables([schema.empty_table(), *rows])
    return Merged(_best(together, k), not missing, tuple(missing))


def _checked(hits: pa.Table | None, space: str | None, schema: pa.Schema) -> pa.Table | None:
    """The answer in the columns of ``schema``, or None when it is unusable."""
    if hits is None:
        return None
    try:
        hits.validate(full=True)
        named = declared_space(hits.schema)
        fitting = hits.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError, BadRequest):
        return None
    if space is not None and named not in (None, space):
        return None
    usable = fitting.column("id").null_count == 0 and _finite(fitting.column("score").to_pylist())
    return fitting if usable else None


def _finite(scores: list[float | None]) -> bool:
    return all(score is not None and math.isfinite(score) for score in scores)


def _named(hits: pa.Table, node: str) -> pa.Table:
    """The hits under the name by which the caller knows the node, whatever the node calls itself."""
    names = pa.array([node] * hits.num_rows, pa.string())
    return hits.set_column(HITS.get_field_index("node"), HITS.field("node"), names)


def _best(hits: pa.Table, k: int) -> pa.Table:
    columns = ("score", "node", "id", "modality", "text")
    scores, nodes, ids, modalities, texts = (hits.column(name).to_pylist() for name in columns)
    order = sorted(range(hits.num_rows), key=lambda row: (-scores[row], nodes[row], ids[row]))
    seen: set[object] = set()
    kept: list[int] = []
    for row in order:
        keys = {ids[row], *_content(modalities[row], texts[row])}
        if len(kept) < k and not keys & seen:
            kept.append(row)
        seen |= keys
    return hits.take(pa.array(kept, pa.int64()))


def _content(modality: str | None, text: str | None) -> tuple[bytes, ...]:
    """What makes two memories the same under different ids: their kind and text."""
    if text is None:
        return ()
    return (hashlib.sha256(f"{modality}\0{text}".encode()).digest(),)
