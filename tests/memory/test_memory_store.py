"""What a person does with a store: remember, read, change, forget, and find all of it again after a restart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from aios_node.engine.errors import BadRequest, NotFound, SpaceMismatch, Unavailable, UnknownTable
from aios_node.memory import ArrowStorage, MemoryStore
from aios_node.memory.schema import COLUMNS, DIMENSION_KEY, SPACE_KEY

if TYPE_CHECKING:
    from conftest import HashEmbedder

WHEN = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
FULL: dict[str, Any] = {
    "text": "kettle",
    "image": b"\x89PNG\r\n\x1a\nrest",
    "id": "a",
    "namespace": "home",
    "source": "diary",
    "tags": ["kitchen", "hot"],
    "importance": 0.25,
    "metadata": {"who": "me"},
    "embedding": [1.0, 2.0, 2.0],
    "created_at": WHEN,
}


def one(store: MemoryStore, name: str, **kwargs: Any) -> dict[str, Any]:
    (row,) = store.get(name, **kwargs).to_pylist()
    return row


def test_everything_given_comes_back(store: MemoryStore) -> None:
    assert store.add(**FULL) == "a"
    assert one(store, "a") == {
        "id": "a",
        "created_at": WHEN,
        "modality": "image",
        "text": "kettle",
        "payload": FULL["image"],
        "embedding": [1.0, 2.0, 2.0],
        "joint_embedding": None,
        "namespace": "home",
        "source": "diary",
        "tags": ["kitchen", "hot"],
        "importance": 0.25,
        "metadata": '{"who": "me"}',
    }


def test_defaults_are_filled_in(store: MemoryStore) -> None:
    before = datetime.now(UTC)
    row = one(store, store.add(text="x"))
    assert before - timedelta(milliseconds=1) <= row["created_at"] <= datetime.now(UTC)
    assert (row["modality"], row["namespace"], row["tags"]) == ("text", "default", [])
    assert row["source"] is row["importance"] is row["metadata"] is row["embedding"] is None


def test_ids_are_fresh_and_sort_by_time(store: MemoryStore) -> None:
    first = store.add(text="x", created_at=datetime(2000, 1, 1))  # noqa: DTZ001 - a time without a zone is UTC
    store.add_table(pa.table({"text": ["y"] * 50}))
    ids = store.scan().read_all().column("id").to_pylist()
    assert ids[0] == first
    assert len(set(ids)) == 51
    assert {name[:12] for name in ids[1:]} >= {max(ids)[:12]}
    assert one(store, first)["created_at"] == datetime(2000, 1, 1, tzinfo=UTC)


def test_times_of_any_unit_and_zone_are_stored_in_utc(store: MemoryStore) -> None:
    cet = timezone(timedelta(hours=1))
    rows = pa.table(
        {
            "id": ["a", "b"],
            "text": ["x", "y"],
            "created_at": pa.array([WHEN.astimezone(cet), None], pa.timestamp("ns", tz="+01:00")),
        }
    )
    store.add_table(rows)
    assert one(store, "a")["created_at"] == WHEN
    assert one(store, "b")["created_at"] > WHEN


def test_a_path_or_bytes_make_a_payload_and_its_kind(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    row = one(store, store.add(audio=tmp_path / "a.wav", embedding=[1.0]))
    assert (row["modality"], row["payload"]) == ("audio", b"RIFF\0\0\0\0WAVEfmt ")


@pytest.mark.parametrize(
    ("payload", "modality"),
    [
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\0\0\0\0WEBP", "image"),
        (b"fLaC\0", "audio"),
        (b"RIFF\0\0\0\0WAVE", "audio"),
    ],
)
def test_the_first_bytes_tell_the_modality(store: MemoryStore, payload: bytes, modality: str) -> None:
    store.add_table(pa.table({"id": ["a"], "payload": [payload]}))
    assert one(store, "a")["modality"] == modality


def test_the_same_id_replaces_the_row_and_the_last_of_a_batch_wins(store: MemoryStore) -> None:
    store.add(id="a", text="old", embedding=[1.0, 0.0], tags=["t"])
    assert store.add_table(pa.table({"id": ["a", "b", "a"], "text": ["1", "2", "3"]})) == 3
    assert [row["text"] for row in store.get(["a", "b"]).to_pylist()] == ["3", "2"]
    assert one(store, "a")["tags"] == []
    assert store.stats().rows == 2
    assert store.search(vector=[1.0, 0.0]).num_rows == 0  # its vector went with the old row


def test_update_changes_only_what_it_names(store: MemoryStore) -> None:
    store.add(**FULL)
    version = store.version()
    assert store.update("a", tags=["cold"], metadata=None, importance=1) == version + 1
    row = one(store, "a")
    assert (row["tags"], row["metadata"], row["importance"]) == (["cold"], None, 1.0)
    assert (row["text"], row["payload"], row["created_at"]) == ("kettle", FULL["image"], WHEN)
    assert store.search(vector=[1, 2, 2]).column("id").to_pylist() == ["a"]


def test_update_of_a_payload_brings_its_modality(store: MemoryStore) -> None:
    store.add(**FULL)
    store.update("a", audio=b"fLaC....")
    assert (one(store, "a")["modality"], one(store, "a")["payload"]) == ("audio", b"fLaC....")


def test_update_refuses_what_cannot_be(store: MemoryStore) -> None:
    store.add(id="a", text="x")
    with pytest.raises(NotFound, match="holds no 'b'"):
        store.update("b", text="y")
    with pytest.raises(BadRequest, match="no 'colour'"):
        store.update("a", colour="red")
    with pytest.raises(BadRequest, match="at least one column"):
        store.update("a")
    with pytest.raises(BadRequest, match="at least one of"):
        store.update("a", text=None)
    assert one(store, "a")["text"] == "x"


def test_delete_by_id_and_by_filter(store: MemoryStore) -> None:
    store.add_table(pa.table({"id": list("abcd"), "text": ["1", "2", "3", "3"]}))
    assert store.delete("a") == 1
    assert store.delete(["a", "b", "zz", "b\0"]) == 1
    assert store.delete(filter="text = '3'") == 2
    assert store.stats().rows == 0
    with pytest.raises(BadRequest, match="one of the two"):
        store.delete()
    with pytest.raises(BadRequest, match="one of the two"):
        store.delete("a", filter="TRUE")


def test_an_id_cut_at_a_nul_names_nothing(store: MemoryStore) -> None:
    store.add(id="b", text="x")
    assert store.delete(["b\0c"]) == 0
    assert store.get(["b\0c"]).num_rows == 0


def test_get_keeps_the_order_and_leaves_out_what_is_unknown(store: MemoryStore) -> None:
    store.add_table(pa.table({"id": list("abc"), "text": list("123")}))
    rows = store.get(["c", "x", "a", "c"], columns=["text", "id"])
    assert rows.column_names == ["text", "id"]
    assert rows.column("id").to_pylist() == ["c", "a"]
    assert store.get([]).schema.names == COLUMNS.names


def test_reading_is_counted_beside_the_rows(folder: Path) -> None:
    with MemoryStore.open(folder) as store:
        store.add_table(pa.table({"id": ["a", "b"], "text": ["1", "2"], "embedding": [[1.0], [1.0]]}))
        version = store.version()
        store.get("a")
        store.search(vector=[1.0], k=1)
        store.add(id="b", text="3")  # its commit takes the counts along
        counts = store.get(["a", "b"], columns=["id", "access_count", "last_access"]).to_pylist()
        assert [row["access_count"] for row in counts] == [2, 0]
        assert counts[0]["last_access"] is not None
        assert counts[1]["last_access"] is None
        assert store.version() == version + 1  # reading changes no version
    with MemoryStore.open(folder) as store:  # what close wrote is there again
        assert store.get(["a", "b"], columns=["access_count"])["access_count"].to_pylist() == [3, 1]


def test_many_reads_are_written_without_waiting_for_a_change(store: MemoryStore) -> None:
    names = [f"m{n}" for n in range(8192)]
    store.add_table(pa.table({"id": names, "text": names}))
    store.get(names)
    assert set(store.scan(columns=["access_count"]).read_all()["access_count"].to_pylist()) == {1}
    store.delete(names[:10])
    store.add(id="m0", text="a new one of the same name")
    assert one(store, "m0", columns=["access_count"]) == {"access_count": 0}


def test_scan_streams_in_order_with_filter_columns_and_batches(store: MemoryStore) -> None:
    store.add_table(pa.table({"text": [str(n) for n in range(100)], "embedding": [[1.0 * n + 1] for n in range(100)]}))
    with store.scan(columns=["text", "embedding"], filter="text LIKE '1%'", batch_rows=4) as reader:
        assert reader.schema.metadata[DIMENSION_KEY] == b"1"
        batches = list(reader)
    assert [batch.num_rows for batch in batches] == [4, 4, 3]
    assert [text for batch in batches for text in batch["text"].to_pylist()] == ["1", *(str(n) for n in range(10, 20))]
    assert batches[0]["embedding"].to_pylist()[:2] == [[2.0], [11.0]]


def test_scanned_batches_end_after_about_a_mebibyte(store: MemoryStore) -> None:
    store.add_table(pa.table({"text": ["x" * 10_000] * 1000}))
    sizes = [batch.nbytes for batch in store.scan()]
    assert sum(size > 2 << 20 for size in sizes) == 0
    assert len(sizes) > 5


def test_a_scan_is_one_snapshot(store: MemoryStore) -> None:
    store.add_table(pa.table({"id": [str(n) for n in range(100)], "text": ["old"] * 100}))
    reader = store.scan(batch_rows=10)
    first = next(reader)
    store.add_table(pa.table({"id": [str(n) for n in range(100)], "text": ["new"] * 100}))
    store.add(text="more")
    rows = first.num_rows + sum(batch.num_rows for batch in reader if set(batch["text"].to_pylist()) == {"old"})
    assert rows == 100


def test_the_table_is_there_after_a_restart(folder: Path) -> None:
    with MemoryStore.open(folder) as store:
        store.add(**FULL)
        before = (store.get("a"), store.stats(), store.schema(), store.version())
    with MemoryStore.open(folder) as store:
        assert store.tables() == ["default"]
        assert (store.get("a"), store.schema(), store.version()) == (before[0], *before[2:])
        assert store.search(vector=[1, 2, 2]).column("similarity").to_pylist() == [1.0]


def test_tables_are_apart_and_can_be_dropped(store: MemoryStore, folder: Path) -> None:
    store.add(table="notes", text="x")
    store.add(table="other-2", text="y", embedding=[1.0] * 4)
    assert store.tables() == ["notes", "other-2"]
    assert (store.stats("notes").dimension, store.stats("other-2").dimension) == (None, 4)
    store.drop("notes")
    assert store.tables() == ["other-2"]
    assert not (folder / "notes").exists()
    with pytest.raises(UnknownTable, match="there are: other-2"):
        store.get("a", table="notes")
    with pytest.raises(UnknownTable):
        store.drop("notes")
    assert store.add(table="notes", text="again")


def test_only_what_can_be_a_table_is_listed(store: MemoryStore, folder: Path) -> None:
    store.add(table="notes", text="x")
    for name in ("Notes", ".hidden", "with space"):
        (folder / name).mkdir()
        (folder / name / "memory.sqlite").touch()
    (folder / "empty").mkdir()
    assert store.tables() == ["notes"]


def test_a_scan_begun_after_the_end_says_so(store: MemoryStore) -> None:
    store.add(text="x")
    reader = store.scan()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        reader.read_all()


def test_leftovers_of_a_drop_are_removed(folder: Path) -> None:
    (folder / ".dropped-12").mkdir(parents=True)
    with MemoryStore.open(folder) as store:
        assert store.tables() == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", ".x", "-x", "a" * 65, "a\0", "ä", None])
def test_hostile_table_names_are_refused(store: MemoryStore, folder: Path, name: Any) -> None:
    for call in (store.version, store.drop, lambda table: store.add(table=table, text="x")):
        with pytest.raises((BadRequest, UnknownTable), match="table"):
            call(name)
    assert list(folder.iterdir()) == []


def test_stats_count(store: MemoryStore) -> None:
    store.add(**FULL)
    store.add(text="x")
    stats = store.stats()
    assert (stats.rows, stats.embedded, stats.dimension, stats.version) == (2, 1, 3, 2)
    assert stats.namespaces == {"default": 1, "home": 1}
    assert stats.modalities == {"image": 1, "text": 1}
    assert stats.bytes > 4096


def test_an_empty_batch_makes_an_empty_table(store: MemoryStore) -> None:
    assert store.add_table(pa.table({"text": pa.array([], pa.string())}), "new") == 0
    assert store.version("new") == 0
    assert store.search(vector=[1.0], table="new").num_rows == 0
    assert store.scan("new").read_all().num_rows == 0


def test_versions_grow_with_every_change_and_no_other_call(store: MemoryStore) -> None:
    seen = []
    for change in (
        lambda: store.add(id="a", text="x"),
        lambda: store.add(id="a", text="y"),
        lambda: store.update("a", source="s"),
        lambda: store.delete("a"),
    ):
        change()
        seen.append(store.version())
    assert seen == [1, 2, 3, 4]
    store.delete("a")
    store.get("a")
    list(store.scan())
    assert store.version() == 4


def test_the_first_vectors_bind_dimension_and_space(store: MemoryStore) -> None:
    rows = pa.table({"embedding": [[1.0, 2.0]]})
    store.add_table(rows, space="alpha")
    assert store.schema().metadata[SPACE_KEY] == b"alpha"
    with pytest.raises(SpaceMismatch, match=r"'beta'.*'alpha'"):
        store.add_table(rows.replace_schema_metadata({SPACE_KEY: b"beta"}))
    with pytest.raises(BadRequest, match=r"column embedding, row 1: 3 values.*dimension is 2"):
        store.add_table(pa.table({"text": ["a", "b"], "embedding": [None, [1.0, 2.0, 3.0]]}))
    assert store.add_table(rows) == 1  # undeclared: taken at its owner's word
    assert store.stats().rows == 2


def test_texts_are_embedded_where_a_model_is_open(model_store: MemoryStore, embedder: HashEmbedder) -> None:
    model_store.add_table(
        pa.table({"id": ["a", "b", "c"], "text": ["x", None, "y"], "payload": [None, b"GIF89a", None]})
    )
    assert embedder.seen == ["x", "y"]
    assert model_store.stats().embedded == 2
    assert (model_store.stats().space, model_store.stats().dimension) == ("test-space", 8)
    given = np.ones(8, np.float32)
    model_store.add(id="d", text="z", embedding=given)
    assert embedder.seen == ["x", "y"]  # what comes with a vector keeps it
    assert one(model_store, "d")["embedding"] == given.tolist()


def test_a_new_text_gets_a_new_embedding(model_store: MemoryStore, embedder: HashEmbedder) -> None:
    model_store.add(id="a", text="x")
    model_store.update("a", text="y")
    assert one(model_store, "a")["embedding"] == embedder.encode(["y"])[0].tolist()
    model_store.embedder = None
    model_store.update("a", text="z")
    assert one(model_store, "a")["embedding"] is None
    model_store.embedder = embedder
    assert model_store.embed_missing() == 1
    assert model_store.search(text="z").column("similarity").to_pylist() == [1.0]


def test_a_new_text_beside_vectors_of_ones_own_leaves_them(store: MemoryStore) -> None:
    store.add(id="a", text="x", embedding=[1.0, 0.0])
    store.update("a", text="y")
    assert one(store, "a")["embedding"] == [1.0, 0.0]


def test_rows_wait_for_a_model(store: MemoryStore, embedder: HashEmbedder) -> None:
    store.add_table(pa.table({"text": [f"t{n}" for n in range(700)]}))
    with pytest.raises(BadRequest, match="no model"):
        store.embed_missing()
    store.embedder = embedder
    assert store.embed_missing(batch_rows=100) == 700
    assert store.embed_missing() == 0
    assert store.search(text="t699", k=1).column("text").to_pylist() == ["t699"]


def test_vectors_of_another_model_are_never_mixed_in(store: MemoryStore, embedder: HashEmbedder) -> None:
    store.add(text="x", embedding=[1.0] * 8)  # no model was open: whose vector this is, nobody said
    store.embedder = embedder
    store.add(text="y")
    assert store.stats().embedded == 1
    with pytest.raises(SpaceMismatch, match=r"None.*'test-space'"):
        store.search(text="y")
    assert store.embed_missing() == 0
    assert store.stats().embedded == 1


def test_undeclared_vectors_that_fit_the_model_are_taken_to_be_its(model_store: MemoryStore) -> None:
    model_store.add_table(pa.table({"text": ["a", "b"], "embedding": [[1.0] * 8, None]}))
    assert (model_store.stats().space, model_store.stats().embedded) == ("test-space", 2)
    model_store.add_table(pa.table({"text": ["a", "b"], "embedding": [[1.0] * 3, None]}), "other")
    assert (model_store.stats("other").space, model_store.stats("other").embedded) == (None, 1)
    model_store.add_table(pa.table({"text": ["a", "b"], "embedding": [[1.0] * 8, None]}), "named", space="else")
    assert (model_store.stats("named").space, model_store.stats("named").embedded) == ("else", 1)


def test_a_closed_store_says_so(folder: Path) -> None:
    store = MemoryStore.open(folder)
    store.add(text="x")
    store.close()
    store.close()
    for call in (store.version, store.scan, lambda: store.add(text="x"), lambda: store.search(vector=[1.0])):
        with pytest.raises(Unavailable, match="closed"):
            call()


def test_the_older_name_is_the_same_store() -> None:
    assert ArrowStorage is MemoryStore
