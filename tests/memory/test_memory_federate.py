"""Merging answers: the same as one table with everything in it, whatever some nodes answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest
from aios_node.memory import HITS, MemoryStore, merge_hits
from aios_node.memory.schema import SPACE_KEY


def hits(*rows: dict[str, Any], space: str | None = None) -> pa.Table:
    plain = {"modality": "text", "namespace": "default", "tags": [], "created_at": 0}
    schema = HITS if space is None else HITS.with_metadata({SPACE_KEY: space.encode()})
    return pa.Table.from_pylist([dict.fromkeys(HITS.names) | plain | row for row in rows], schema=schema)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from([f"m{n}" for n in range(8)]),
            "score": st.sampled_from([0.25, 0.5, 0.75]),
            "text": st.sampled_from([None, "a", "b", "c"]),
            "modality": st.sampled_from(["text", "image"]),
        }
    ),
    max_size=6,
)


@given(st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), st.one_of(st.none(), ROWS)), st.integers(1, 8))
def test_the_merge_is_the_sorted_union_without_repeats(answers: dict[str, Any], k: int) -> None:
    merged = merge_hits({node: None if rows is None else hits(*rows) for node, rows in answers.items()}, k)
    everything = [row | {"node": node} for node, rows in answers.items() for row in rows or []]
    expected: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for row in sorted(everything, key=lambda row: (-row["score"], row["node"], row["id"])):
        keys = {row["id"]} | ({(row["modality"], row["text"])} if row["text"] is not None else set())
        if not keys & seen:
            expected.append(row)
        seen |= keys
    names = ["id", "score", "text", "modality", "node"]
    assert merged.hits.select(names).to_pylist() == [{name: row[name] for name in names} for row in expected[:k]]
    assert merged.hits.schema.equals(HITS)
    assert merged.missing == tuple(sorted(node for node, rows in answers.items() if rows is None))
    assert merged.complete == (not merged.missing)


def test_nodes_together_answer_like_one_big_node(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 8)).astype(np.float32)
    rows = pa.table({"id": [f"m{n:03}" for n in range(400)], "embedding": list(vectors)})
    rows = rows.append_column("created_at", pa.array([0] * 400, pa.timestamp("us", tz="UTC")))
    owner = rng.integers(0, 4, 400)
    stores = [MemoryStore.open(tmp_path / f"{n}") for n in range(5)]
    for node, store in enumerate(stores[:4]):
        store.add_table(rows.filter(owner == node))
    stores[4].add_table(rows)
    for query in rng.standard_normal((20, 8)).astype(np.float32):
        merged = merge_hits({f"n{n}": store.search(vector=query) for n, store in enumerate(stores[:4])}, 10)
        alone = stores[4].search(vector=query)
        assert merged.hits.drop_columns("node").equals(alone.drop_columns("node"))
    for store in stores:
        store.close()


GOOD = hits({"id": "good", "score": 0.5, "text": "x"}, space="alpha")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        pa.table({"id": ["a"]}),
        hits({"id": "a", "score": float("nan")}),
        hits({"id": "a", "score": float("inf")}),
        hits({"id": "a", "score": None}),
        hits({"id": None, "score": 0.5}),
        hits({"id": "a", "score": 0.5}, space="beta"),
        hits({"id": "a", "score": 0.5}).set_column(12, "recency", pa.array(["high"])),
        hits({"id": "a", "score": 0.5}).append_column("id", pa.array(["b"])),
        hits({"id": "a", "score": 0.5}).replace_schema_metadata({SPACE_KEY: b"\xff"}),
        hits({"id": "a", "score": 0.5}).set_column(
            0,
            "id",
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
        ),
    ],
)
def test_an_unusable_answer_is_missing_and_spoils_nothing(answer: pa.Table | None) -> None:
    merged = merge_hits({"bad": answer, "good": GOOD}, 10, space="alpha")
    assert merged.hits.column("id").to_pylist() == ["good"]
    assert (merged.complete, merged.missing) == (False, ("bad",))


def test_nodes_are_named_by_whoever_asks() -> None:
    liar = hits({"id": "a", "score": 0.5, "node": "someone else"})
    assert merge_hits({"liar": liar}, 1).hits.column("node").to_pylist() == ["liar"]


def test_further_columns_are_kept_where_asked_for() -> None:
    rows = hits({"id": "a", "score": 0.5}, {"id": "b", "score": 0.7})
    full = rows.append_column("importance", pa.array([1.0, 2.0], pa.float32()))
    merged = merge_hits({"full": full, "lacking": rows}, 5, extra=["importance"])
    assert merged.hits.select(["id", "importance"]).to_pylist() == [
        {"id": "b", "importance": 2.0},
        {"id": "a", "importance": 1.0},
    ]
    assert merged.missing == ("lacking",)
    assert merge_hits({"full": full}, 5).hits.column_names == HITS.names
    with pytest.raises(BadRequest, match="unknown column 'colour'"):
        merge_hits({}, 5, extra=["colour"])


def test_no_answers_at_all_is_an_empty_table() -> None:
    merged = merge_hits({}, 5)
    assert merged.hits.num_rows == 0
    assert merged.complete
