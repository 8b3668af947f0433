"""Bad rows: one clear error that names column and row, and a table that is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aios_node.engine.errors import AiosError, BadRequest, TooLarge
from aios_node.memory import Limits, MemoryStore
from aios_node.memory.schema import COLUMNS

SMALL = Limits(text=100, payload=100, metadata=100, name=10, tags=3, dimension=16)

Bad = tuple[dict[str, Any], type[AiosError], str]

TEXT = pa.array(["ok", "ok"])


def rows(**columns: Any) -> dict[str, Any]:
    return {"text": TEXT} | columns


BAD: dict[str, Bad] = {
    "unknown column": (rows(txet=["a", "b"]), BadRequest, "unknown column 'txet': did you mean text"),
    "column kept by the node": (rows(access_count=[1, 2]), BadRequest, "access_count is kept by the node"),
    "no content column": ({"source": ["a"]}, BadRequest, "at least one of the columns text, payload, embedding"),
    "row without content": ({"text": ["a", None]}, BadRequest, "row 1: at least one of"),
    "text of numbers": ({"text": [1, 2]}, BadRequest, "column text: string is needed, not int64"),
    "text too long": ({"text": ["a", "é" * 51]}, TooLarge, "column text, row 1: longer than 100 bytes"),
    "payload of strings": (rows(payload=["a", "b"]), BadRequest, "column payload: binary is needed, not string"),
    "payload too long": (rows(payload=[None, b"x" * 101]), TooLarge, "column payload, row 1: longer than 100"),
    "payload of unknown kind": (rows(payload=[None, b"?"]), BadRequest, "column modality, row 1"),
    "unknown modality": (rows(modality=["text", "video"]), BadRequest, "modality, row 1: 'video' is none of text"),
    "empty id": (rows(id=["a", ""]), BadRequest, "column id, row 1: an empty name"),
    "id with NUL": (rows(id=["a", "b\0"]), BadRequest, "column id, row 1: .*NUL"),
    "id too long": (rows(id=["a" * 11, "b"]), TooLarge, "column id, row 0: longer than 10 characters"),
    "ids of bytes": (rows(id=[b"a", b"b"]), BadRequest, "column id: string is needed, not binary"),
    "embedding of integers": (rows(embedding=[[1, 2], [3, 4]]), BadRequest, "embedding: a list .* of float"),
    "embedding of strings": (rows(embedding=[["a"], ["b"]]), BadRequest, "embedding: a list .* of float"),
    "flat embedding": (rows(embedding=[1.0, 2.0]), BadRequest, "embedding: a list .* of float"),
    "mixed dimensions": (rows(embedding=[[1.0], [1.0, 2.0]]), BadRequest, "row 1: 2 values where row 0 has 1"),
    "other dimension": (rows(embedding=[None, [1.0, 2.0]]), BadRequest, "embedding, row 1: 2 values.* is 3"),
    "empty vector": (
        rows(embedding=pa.array([None, []], pa.list_(pa.float32()))),
        BadRequest,
        "embedding, row 1: an empty vector",
    ),
    "too many dimensions": (rows(embedding=[[1.0] * 17, None]), TooLarge, "row 0: 17 values, at most 16"),
    "NaN": (rows(embedding=[[1.0] * 3, [1.0, np.nan, 1.0]]), BadRequest, "embedding, row 1: NaN or infinite"),
    "Inf": (rows(embedding=[[np.inf] * 3, None]), BadRequest, "embedding, row 0: NaN or infinite"),
    "Inf in float32": (rows(embedding=[None, [1e39] * 3]), BadRequest, "embedding, row 1: NaN or infinite"),
    "zero vector": (rows(embedding=[[1.0] * 3, [0.0] * 3]), BadRequest, "row 1: a zero vector"),
    "zero in float32": (rows(embedding=[[1e-60] * 3, None]), BadRequest, "row 0: a zero vector"),
    "null in a vector": (rows(embedding=[None, [1.0, None, 1.0]]), BadRequest, "row 1: a null inside"),
    "joint of another size": (rows(joint_embedding=[[1.0], None]), BadRequest, "joint_embedding, row 0: 1 values"),
    "tags as a string": (rows(tags=["a", "b"]), BadRequest, "column tags: list of string is needed"),
    "null tag": (rows(tags=[["a"], [None]]), BadRequest, "column tags, row 1: a tag is null"),
    "too many tags": (rows(tags=[["a"] * 4, []]), BadRequest, "column tags, row 0: more than 3"),
    "time as a string": (rows(created_at=["2026", "2027"]), BadRequest, "created_at: timestamp is needed"),
    "time beyond the calendar": (
        rows(created_at=pa.array([0, 1 << 61], pa.timestamp("us"))),
        BadRequest,
        "created_at, row 1: outside the years",
    ),
    "time that overflows": (rows(created_at=pa.array([0, 1 << 61], pa.timestamp("s"))), BadRequest, "created_at"),
    "importance as a string": (rows(importance=["a", "b"]), BadRequest, "importance: float is needed"),
    "importance NaN": (rows(importance=[0.5, float("nan")]), BadRequest, "importance, row 1: NaN"),
    "importance beyond float32": (rows(importance=[1e39, 1.0]), BadRequest, "importance, row 0: NaN or inf"),
    "metadata not JSON": (rows(metadata=["{}", "{'a': 1}"]), BadRequest, "metadata, row 1: not JSON"),
    "metadata with NaN": (rows(metadata=["{}", '{"a": NaN}']), BadRequest, "metadata, row 1: not JSON"),
    "metadata not closed": (rows(metadata=["{}", "[" * 97 + "]" * 2]), BadRequest, "metadata, row 1: not JSON"),
    "metadata too long": (rows(metadata=["{}", '"' + "a" * 100 + '"']), TooLarge, "metadata, row 1: longer"),
}


@pytest.fixture
def small(folder: Any) -> Iterator[MemoryStore]:
    with MemoryStore.open(folder, limits=SMALL) as store:
        store.add(id="keep", text="kept", embedding=[1.0, 2.0, 3.0])
        yield store


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_name_column_and_row_and_change_nothing(small: MemoryStore, name: str) -> None:
    columns, kind, message = BAD[name]
    before = (small.scan().read_all(), small.stats())
    with pytest.raises(kind, match=message):
        small.add_table(pa.table(columns))
    assert (small.scan().read_all(), small.stats()) == before
    assert small.search(vector=[1, 2, 3]).column("id").to_pylist() == ["keep"]


def test_bad_rows_make_no_table(small: MemoryStore) -> None:
    for columns, kind, message in BAD.values():
        if "is 3" not in message:  # fits a table of its own
            with pytest.raises(kind):
                small.add_table(pa.table(columns), "new")
    assert small.tables() == ["default"]


def test_a_column_that_occurs_twice_is_refused(small: MemoryStore) -> None:
    with pytest.raises(BadRequest, match="occurs twice"):
        small.add_table(pa.table([TEXT, TEXT], names=["text", "text"]))


def test_strings_that_are_not_utf8_are_refused(small: MemoryStore) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    with pytest.raises(BadRequest, match="damaged rows"):
        small.add_table(pa.table({"text": broken}))


def test_offsets_that_point_outside_are_refused(small: MemoryStore) -> None:
    offsets = pa.py_buffer(np.array([0, 1000, 2], np.int32))  # what Arrow's quick check does not see
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    with pytest.raises(BadRequest, match="damaged rows"):
        small.add_table(pa.table({"text": broken}))


def test_metadata_nested_beyond_measure_is_refused(store: MemoryStore) -> None:
    with pytest.raises(BadRequest, match="metadata, row 0: not JSON"):
        store.add(text="x", metadata="[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": 3}, "text: string is needed"),
        ({"text": "\ud800"}, "text: string is needed"),
        ({"image": "/etc/passwd"}, "image: bytes or a pathlib.Path"),
        ({"image": b"a", "audio": b"b"}, "one payload"),
        ({"text": "a", "tags": "one"}, "tags: .*not one string"),
        ({"text": "a", "tags": [1]}, "tags: "),
        ({"text": "a", "metadata": {"a": float("nan")}}, "metadata: "),
        ({"text": "a", "metadata": {1, 2}}, "metadata: "),
        ({"text": "a", "created_at": "2026"}, "created_at: .*a datetime"),
        ({"text": "a", "created_at": datetime}, "created_at: "),
        ({"text": "a", "importance": "much"}, "importance: "),
        ({"text": "a", "embedding": [[1.0]]}, "embedding: a flat list"),
        ({"text": "a", "embedding": "vector"}, "embedding: a flat list"),
        ({"text": "a", "embedding": []}, "embedding: a flat list"),
        ({"text": "a", "embedding": [0.0]}, "embedding: a zero vector"),
        ({"text": "a", "embedding": [float("inf")]}, "embedding: NaN or infinite"),
    ],
)
def test_bad_values_of_one_memory_are_named(small: MemoryStore, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        small.add(**values)
    with pytest.raises(BadRequest, match=message):
        small.update("keep", **values)
    assert small.get("keep").column("text").to_pylist() == ["kept"]


def test_a_missing_file_is_a_storage_error(small: MemoryStore, tmp_path: Any) -> None:
    with pytest.raises(AiosError, match="No such file") as caught:
        small.add(image=tmp_path / "absent.png")
    assert caught.value.code == "storage_error"


@pytest.mark.parametrize(
    "columns",
    [
        {"text": pa.array(["a", None, "b"]).dictionary_encode(), "payload": [None, b"GIF89a", None]},
        {"text": pa.array(["a", "b"], pa.large_string())},
        {"text": pa.array(["a", "b"], pa.string_view())},
        {"payload": pa.array([b"GIF89a", b"BM"], pa.binary_view())},
        {"payload": pa.array([b"GIF89a", b"GIF87a"], pa.binary(6))},
        {"embedding": pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float16()))},
        {"embedding": pa.array([[1.0, 2.0, 3.0], None], pa.list_(pa.float64(), 3)), "text": [None, "a"]},
        {"embedding": pa.array([[1.0, 2.0, 3.0]], pa.large_list(pa.float32()))},
        {"text": ["a"], "tags": pa.array([["x"]], pa.large_list(pa.string()))},
        {"text": ["a"], "tags": pa.nulls(1), "importance": pa.array([3]), "source": pa.nulls(1)},
    ],
)
def test_every_arrow_layout_of_the_right_meaning_is_accepted(small: MemoryStore, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    assert small.add_table(table) == table.num_rows
    back = small.scan().read_all().slice(1)
    for name in table.column_names:
        expected = table.column(name).to_pylist()
        assert back.column(name).to_pylist() == (expected if name != "tags" else [tags or [] for tags in expected])
    assert back.schema.names == COLUMNS.names


def test_slices_of_larger_tables_are_read_right(small: MemoryStore) -> None:
    table = pa.table({"text": list("abcdef"), "embedding": [[float(n), 1.0, 1.0] for n in range(6)]})
    small.add_table(table.slice(2, 3))
    assert small.scan().read_all().column("embedding").to_pylist()[1:] == [[n, 1.0, 1.0] for n in (2, 3, 4)]
