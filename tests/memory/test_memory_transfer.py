"""Export and import: what goes out comes back, and a bad file changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from aios_node.engine.errors import AiosError, BadRequest, Corrupt, SpaceMismatch, StorageError
from aios_node.memory import MemoryStore

FORMATS = ("parquet", "arrow", "jsonl")


@pytest.fixture
def filled(store: MemoryStore) -> MemoryStore:
    rows = {
        "id": [f"r{n}" for n in range(5000)],
        "text": [None if n == 3 else f"täxt {n}\n" for n in range(5000)],
        "payload": [b"GIF89a\0\xff" if n % 100 == 3 else None for n in range(5000)],
        "embedding": [None if n % 2 and n != 3 else [0.1 * n + 1, -1.0] for n in range(5000)],
        "tags": [["a", 'ü"'] if n % 3 else [] for n in range(5000)],
        "importance": [None if n % 5 else n / 7 for n in range(5000)],
        "metadata": ['{"n":1,"ü":[null]}' if n % 2 else None for n in range(5000)],
    }
    store.add_table(pa.table(rows), "from", space="alpha")
    return store


@pytest.mark.parametrize("kind", FORMATS)
def test_what_goes_out_comes_back(filled: MemoryStore, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    assert filled.export("from", file) == 5000
    assert filled.import_file(file, "to") == 5000
    before, after = filled.scan("from").read_all(), filled.scan("to").read_all()
    if kind == "jsonl":  # JSON keeps the meaning of metadata, not its spelling, and names no space
        assert filled.stats("to").space is None
        parsed = [[json.loads(text) for text in table["metadata"].to_pylist() if text] for table in (before, after)]
        assert parsed[0] == parsed[1]
        before, after = before.drop_columns("metadata"), after.drop_columns("metadata")
    else:
        assert filled.schema("to") == filled.schema("from")
        with pytest.raises(SpaceMismatch):
            filled.add_table(pa.table({"embedding": [[1.0, 1.0]]}), "to", space="beta")
    assert after.to_pylist() == before.to_pylist()


def test_other_programs_read_the_files(filled: MemoryStore, tmp_path: Path) -> None:
    for kind in FORMATS:
        filled.export("from", tmp_path / f"x.{kind}")
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 5000
    with pa.ipc.open_file(tmp_path / "x.arrow") as file:
        assert file.read_all().num_rows == 5000
    first = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[1])
    assert first["text"] == "täxt 1\n"
    assert first["metadata"] == {"n": 1, "ü": [None]}


def test_a_format_can_be_named(filled: MemoryStore, tmp_path: Path) -> None:
    filled.export("from", tmp_path / "rows.bin", "arrow")
    assert filled.import_file(tmp_path / "rows.bin", "to", "arrow") == 5000
    for call in (filled.export, lambda table, path: filled.import_file(path, table)):
        with pytest.raises(BadRequest, match="must be one of parquet, arrow, jsonl"):
            call("from", tmp_path / "rows.bin")


def test_people_write_json_by_hand(store: MemoryStore, tmp_path: Path) -> None:
    lines = [
        {"text": "one", "created_at": "2026-01-02T03:04:05Z", "metadata": {"a": [1]}, "tags": ["x"]},
        {"text": "two", "payload": "R0lGODlh", "importance": 1, "metadata": "{}"},
    ]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert store.import_file(tmp_path / "in.jsonl") == 2
    one, two = store.scan().read_all().to_pylist()
    assert one["created_at"].isoformat() == "2026-01-02T03:04:05+00:00"
    assert (one["metadata"], one["tags"]) == ('{"a": [1]}', ["x"])
    assert (two["payload"], two["modality"], two["metadata"]) == (b"GIF89a", "image", "{}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 3: not JSON"),
        ("[" * 100_000, r"line 3: not JSON"),
        ("3", r"line 3: an object is needed"),
        ('{"colour": "red"}', r"line 3: a memory has no 'colour'"),
        ('{"text": 3}', r"line 3: text: string is needed"),
        ('{"text": "x", "created_at": "yesterday"}', r"line 3: Invalid isoformat"),
        ('{"payload": "%%%"}', r"line 3: .*base64"),
        ('{"text": "x", "embedding": [1, "a"]}', r"line 3: embedding: a flat list"),
        ('{"source": "x"}', r"row 2: at least one of"),
        ('{"text": "x", "tags": [""]}', r"column tags, row 2"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_stored(store: MemoryStore, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' + line + "\n")
    with pytest.raises(AiosError, match=message) as caught:
        store.import_file(tmp_path / "in.jsonl")
    assert caught.value.code in ("bad_request", "corrupt")
    assert store.tables() == []


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "flipped"])
def test_a_damaged_file_is_corrupt_and_nothing_is_stored(
    filled: MemoryStore, tmp_path: Path, kind: str, damage: str
) -> None:
    file = tmp_path / f"x.{kind}"
    filled.export("from", file)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-40:-12] = bytes(255 - byte for byte in data[-40:-12])
    else:
        data = {"cut": data[: len(data) // 2], "empty": bytearray(), "noise": bytearray(b"noise" * 99)}[damage]
    file.write_bytes(data)
    with pytest.raises(Corrupt, match=r"x\."):
        filled.import_file(file, "to")
    assert filled.tables() == ["from"]


def test_bad_rows_late_in_a_file_store_nothing(store: MemoryStore, tmp_path: Path) -> None:
    texts: list[Any] = [f"t{n}" for n in range(9000)]
    texts[8500] = None
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    with pytest.raises(BadRequest, match="at least one of"):
        store.import_file(tmp_path / "in.parquet")
    assert store.tables() == []


def test_a_missing_file_or_folder_is_a_storage_error(filled: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        filled.import_file(tmp_path / "absent.parquet")
    for kind in FORMATS:
        with pytest.raises(StorageError):
            filled.export("from", tmp_path / "absent" / f"x.{kind}")


def test_a_failed_export_leaves_the_old_file(filled: MemoryStore, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("precious")
    filled._open["from"].close()
    with pytest.raises(AiosError):
        filled.export("from", file)
    assert file.read_text() == "precious"
    assert list(tmp_path.glob(".*")) == []
