"""Search is exact: what it finds is what plain NumPy finds in float64, whatever the filter and the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest, SpaceMismatch, UnknownTable
from aios_node.memory import HITS, MemoryStore
from aios_node.memory.matrix import View
from aios_node.memory.schema import SPACE_KEY
from aios_node.memory.topk import nearest

if TYPE_CHECKING:
    from conftest import HashEmbedder
    from numpy.typing import NDArray

CONTRACT = ["id", "created_at", "modality", "text", "namespace", "source", "tags", "metadata"]
CONTRACT += ["score", "similarity", "association", "text_score", "recency", "node"]


def exact(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine in float64, as float32: float32 [n]."""
    rows, one = vectors.astype(np.float64), query.astype(np.float64)
    return (rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)).astype(np.float32)


def view_of(vectors: NDArray[np.float32], block: int, dead: NDArray[np.bool_] | None = None) -> View:
    """The vectors as a view of blocks with room to spare."""
    units = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]).astype(np.float32)
    blocks = [units[start : start + block] for start in range(0, len(units), block)]
    blocks[-1] = np.concatenate([blocks[-1], np.full((3, units.shape[1]), np.nan, np.float32)])
    return View(1, len(units), len(units), tuple(blocks), np.arange(len(units)) * 2 + 1, dead)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Vectors with many ties and near-ties, a query and k."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, width = draw(st.integers(1, 60)), draw(st.sampled_from([1, 2, 3, 384]))
    vectors = rng.standard_normal((count, width)).astype(np.float32)
    if draw(st.booleans()):
        vectors = vectors[rng.integers(0, max(1, count // 4), count)]  # copies tie
        vectors[::3] *= np.float32(1 + 1e-6)  # the same direction, rounded differently
    return vectors, rng.standard_normal(width).astype(np.float32), draw(st.integers(1, count + 2))


@given(problems(), st.sampled_from([7, 1000]), st.booleans(), st.booleans())
@settings(max_examples=200)
def test_nearest_is_exact_with_all_ties(problem: Any, block: int, with_dead: bool, with_only: bool) -> None:
    vectors, query, k = problem
    dead = np.arange(len(vectors)) % 5 == 0 if with_dead else None
    living = np.flatnonzero(~dead) if dead is not None else np.arange(len(vectors))
    only = living[living % 3 != 0] if with_only else None
    among = living if only is None else only
    view = view_of(vectors, block, dead)
    slots, similarity = nearest(view, query, k, only)
    assert set(slots) <= set(among)
    np.testing.assert_allclose(similarity, exact(vectors, query)[slots], rtol=0, atol=1e-6)

    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    rounded = np.clip((view.take(among) * unit).sum(axis=1).astype(np.float32), -1, 1)
    best = sorted(zip(-rounded, among, strict=True))
    with_ties = [pair for pair in best if pair[0] <= best[min(k, len(best)) - 1][0]]
    assert list(zip(-similarity, slots, strict=True)) == with_ties


def test_a_rows_similarity_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    vectors, query = rng.standard_normal((500, 384)).astype(np.float32), rng.standard_normal(384).astype(np.float32)
    slots, together = nearest(view_of(vectors, 64), query, 500)
    alone = [nearest(view_of(vectors[slot : slot + 1], 64), query, 1)[1][0] for slot in slots]
    assert together.tolist() == alone


@pytest.fixture
def filled(store: MemoryStore) -> tuple[MemoryStore, NDArray[np.float32]]:
    """300 rows, of which some were replaced and some removed, in several batches."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((300, 16)).astype(np.float32)
    for start in range(0, 300, 60):
        part = range(start, start + 60)
        rows = {
            "id": [f"r{n:03}" for n in part],
            "text": [f"text {n % 7}" for n in part],
            "namespace": [f"ns{n % 2}" for n in part],
            "modality": [("text", "image", "audio")[n % 3] for n in part],
            "embedding": list(-vectors[part] if start < 60 else vectors[part]),
        }
        store.add_table(pa.table(rows))
    store.add_table(pa.table(rows | {"id": [f"r{n:03}" for n in range(60)], "embedding": list(vectors[:60])}))
    store.delete([f"r{n:03}" for n in range(250, 300)])
    return store, vectors[:250]


def test_hits_have_the_contracts_columns_best_first(filled: tuple[MemoryStore, Any]) -> None:
    store, vectors = filled
    query = vectors[7] + vectors[100]
    hits = store.search(vector=query.tolist(), k=5, alpha=2.0)
    assert hits.column_names == CONTRACT == HITS.names
    truth = exact(vectors, query)
    best = np.argsort(-truth)[:5]
    assert hits.column("id").to_pylist() == [f"r{n:03}" for n in best]
    np.testing.assert_allclose(hits.column("similarity").to_numpy(), truth[best], atol=1e-6)
    np.testing.assert_allclose(hits.column("score").to_numpy(), 2 * truth[best], atol=2e-6)
    for name in ("association", "text_score", "recency", "node"):
        assert hits.column(name).null_count == 5


@pytest.mark.parametrize(
    ("arguments", "keeps"),
    [
        ({"namespace": "ns1"}, lambda n: (n if n >= 60 else n + 240) % 2 == 1),
        ({"modalities": ["text", "audio"]}, lambda n: (n if n >= 60 else n + 240) % 3 != 1),
        ({"filter": "id >= 'r100' AND id < 'r110'"}, lambda n: 100 <= n < 110),
        (
            {"filter": "id >= 'r100'", "namespace": "ns0", "modalities": ("image",)},
            lambda n: n >= 100 and n % 2 == 0 and n % 3 == 1,
        ),
        ({"filter": "FALSE"}, lambda _: False),
        ({"namespace": "nowhere"}, lambda _: False),
    ],
)
def test_filters_are_applied_before_the_best_are_chosen(filled: Any, arguments: dict[str, Any], keeps: Any) -> None:
    store, vectors = filled
    query = vectors[3]
    among = [n for n in range(250) if keeps(n)]
    truth = exact(vectors, query)
    best = sorted(among, key=lambda n: -truth[n])[:8]
    hits = store.search(vector=query, k=8, **arguments)
    assert hits.column("id").to_pylist() == [f"r{n:03}" for n in best]


def test_equal_scores_come_in_id_order_also_at_the_cut(store: MemoryStore) -> None:
    names = [f"{n:02}" for n in np.random.default_rng(0).permutation(40)]
    vectors = [[2.0, 1.0] if int(name) % 2 else [1.0, 0.5] for name in names]  # one direction
    store.add_table(pa.table({"id": names, "embedding": vectors}))
    store.add(id="best", embedding=[1.0, 1.0])
    hits = store.search(vector=[3.0, 3.0], k=4).column("id").to_pylist()
    assert hits == ["best", "00", "01", "02"]


def test_columns_can_be_chosen(filled: tuple[MemoryStore, Any]) -> None:
    store, vectors = filled
    hits = store.search(vector=vectors[0], k=1, columns=["score", "embedding", "id", "access_count"])
    assert hits.column_names == ["score", "embedding", "id", "access_count"]
    assert hits.to_pylist()[0]["embedding"] == vectors[0].tolist()
    assert store.search(vector=vectors[0], k=1, columns=["similarity"]).column_names == ["similarity"]


def test_fresh_changed_and_forgotten_rows_show_at_once(store: MemoryStore) -> None:
    store.add(id="a", embedding=[1.0, 0.0])

    def best() -> list[str]:
        found: list[str] = store.search(vector=[0.0, 1.0], k=1).column("id").to_pylist()
        return found

    assert best() == ["a"]
    store.add(id="b", embedding=[0.5, 1.0])
    assert best() == ["b"]
    store.update("a", embedding=[0.0, 2.0])
    assert best() == ["a"]
    store.delete("a")
    assert best() == ["b"]
    store.update("b", embedding=None, text="no vector any more")
    assert best() == []


def test_a_table_without_vectors_finds_nothing(model_store: MemoryStore) -> None:
    model_store.embedder, model = None, model_store.embedder
    model_store.add(text="x")
    assert model_store.search(vector=[1.0, 2.0]).schema.names == HITS.names
    assert model_store.search(vector=[1.0], columns=["id"]).column_names == ["id"]
    model_store.embedder = model
    assert model_store.search(text="x").num_rows == 0


def test_a_text_is_embedded_by_the_open_model(model_store: MemoryStore) -> None:
    model_store.add_table(pa.table({"text": [f"memory {n}" for n in range(20)]}))
    hits = model_store.search(text="memory 7", k=1)
    assert hits.column("text").to_pylist() == ["memory 7"]
    assert hits.column("similarity").to_pylist() == [1.0]
    assert hits.schema.metadata[SPACE_KEY] == b"test-space"


def test_a_query_of_another_space_is_refused(model_store: MemoryStore, embedder: HashEmbedder) -> None:
    model_store.add(text="x")
    query = embedder.encode(["x"])[0]
    assert model_store.search(vector=query, space="test-space").num_rows == 1
    with pytest.raises(SpaceMismatch, match=r"'other'.*'test-space'"):
        model_store.search(vector=query, space="other")
    embedder.space = "newer"
    with pytest.raises(SpaceMismatch, match=r"'test-space' .*'newer'"):
        model_store.search(text="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of text, vector, image and audio, not 0"),
        ({"vector": [1.0] * 8, "text": "x"}, "exactly one of .*, not 2"),
        ({"image": b"x"}, "no open model understands image"),
        ({"audio": b"x"}, "no open model understands audio"),
        ({"text": 3}, "text must be a string"),
        ({"vector": [1.0] * 7}, "vector: 7 values, the table's dimension is 8"),
        ({"vector": [0.0] * 8}, "vector: a zero vector"),
        ({"vector": [float("nan")] * 8}, "vector: NaN"),
        ({"vector": "abc"}, "vector: a flat list"),
        ({"vector": [[1.0] * 8]}, "vector: a flat list"),
        ({"text": "x", "k": 0}, "k must be a whole number from 1 to 10000, not 0"),
        ({"text": "x", "k": 10_001}, "k must be"),
        ({"text": "x", "k": True}, "k must be"),
        ({"text": "x", "k": 2.0}, "k must be"),
        ({"text": "x", "alpha": float("nan")}, "alpha must be a finite number"),
        ({"text": "x", "alpha": -1}, "alpha must be"),
        ({"text": "x", "alpha": "1"}, "alpha must be"),
        ({"text": "x", "beta": 0.5}, "beta must be 0: .*no associations"),
        ({"text": "x", "modalities": ["video"]}, "modality 'video' is none of"),
        ({"text": "x", "modalities": []}, "one or more of"),
        ({"text": "x", "modalities": "text"}, "modality 't' is none of"),
        ({"text": "x", "namespace": 3}, "namespace must be a string"),
        ({"text": "x", "columns": ["id", "colour"]}, "unknown column 'colour'"),
        ({"text": "x", "columns": []}, "one or more different names"),
        ({"text": "x", "columns": ["id", "id"]}, "one or more different names"),
        ({"text": "x", "filter": "text = "}, "filter: syntax error"),
    ],
)
def test_wrong_searches_say_what_is_wrong(model_store: MemoryStore, arguments: dict[str, Any], message: str) -> None:
    model_store.add(text="x")
    with pytest.raises(BadRequest, match=message):
        model_store.search(**arguments)


def test_a_text_without_a_model_is_refused(store: MemoryStore) -> None:
    store.add(text="x")
    with pytest.raises(BadRequest, match="no model is open"):
        store.search(text="x")
    with pytest.raises(UnknownTable):
        store.search(vector=[1.0], table="nowhere")


def test_many_removals_shrink_what_is_held(store: MemoryStore) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((9000, 4)).astype(np.float32)
    store.add_table(pa.table({"id": [f"{n:04}" for n in range(9000)], "embedding": list(vectors)}))
    store.search(vector=vectors[0])
    store.delete(filter="id >= '0100'")
    query = rng.standard_normal(4).astype(np.float32)
    best = np.argsort(-exact(vectors[:100], query))[:10]
    assert store.search(vector=query).column("id").to_pylist() == [f"{n:04}" for n in best]
    (view,) = [table._matrix._views[-1] for table in store._open.values()]
    assert view.count == 100
