"""Calibration texts from real files of every kind, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.calibration import parquet
from aios_node.engine.calibration.load import load_texts
from aios_node.engine.calibration.sets import MAX_CHARACTERS, MAX_TEXTS, CalibrationSet, pieces, texts_sha256
from aios_node.engine.errors import AiosError, BadRequest, Corrupt, DataError, NotFound, TooLarge

TEXTS = [f"This is text number {number}, and it says something. Does it? Ünïcode 東京." for number in range(40)]


def save_txt(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.txt"
    path.write_text("\n\n".join(text.replace(" ", "\n", 1) for text in texts) + "\n", "utf-8")
    return path


def save_jsonl(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts), "utf-8")
    return path


def save_strings(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.unknown"
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=1).replace("[\n ", "["), "utf-8")
    return path


def save_json(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.json"
    path.write_text(json.dumps([{"sentence": text} for text in texts], indent=1), "utf-8")
    return path


def save_member(folder: Path, texts: list[str]) -> Path:
    path = folder / "member.json"
    path.write_text(json.dumps({"version": 1, "texts": texts}), "utf-8")
    return path


def save_parquet(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.parquet"
    others = {"id": list(range(len(texts))), "content": texts, "tags": [["a", "b"]] * len(texts)}
    pq.write_table(pa.table(others), path, row_group_size=7)
    return path


def save_plain_parquet(folder: Path, texts: list[str]) -> Path:
    path = folder / "plain.parquet"
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    pq.write_table(table, path, use_dictionary=False, compression="zstd", data_page_version="2.0")
    return path


def write_stream(path: Path, array: pa.Array, name: str = "text", **options: object) -> Path:
    table = pa.table({"other": pa.array([1.5] * len(array)), name: array})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, 6)
    return path


def save_dataset(folder: Path, texts: list[str]) -> Path:
    folder = folder / "dataset"
    folder.mkdir()
    half = len(texts) // 2
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (texts[:half], texts[half:]), strict=True):
        write_stream(folder / name, pa.array(part))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def save_splits(folder: Path, texts: list[str]) -> Path:
    top = folder / "splits"
    (top / "train").mkdir(parents=True)
    save_dataset(top / "train", texts).rename(top / "train2")
    (top / "train").rmdir()
    (top / "train2").rename(top / "train")
    (top / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "train"]}))
    return top


def save_stream(folder: Path, texts: list[str]) -> Path:
    return write_stream(folder / "words.arrow", pa.array(texts).dictionary_encode())


KINDS = [
    save_txt,
    save_jsonl,
    save_strings,
    save_json,
    save_member,
    save_parquet,
    save_plain_parquet,
    save_dataset,
    save_splits,
    save_stream,
]
Save = Callable[[Path, list[str]], Path]


@pytest.mark.parametrize("save", KINDS)
def test_every_kind_of_file_gives_the_same_texts(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path, TEXTS)
    found = load_texts(path)
    assert sorted(found.texts) == sorted(TEXTS)
    assert found.sha256 == texts_sha256(found.texts)
    assert found.source == str(path)


@pytest.mark.parametrize("save", KINDS)
def test_a_limit_takes_a_spread_sample_that_grows(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path, TEXTS)
    small, large = (load_texts(path, limit=limit).texts for limit in (5, 20))
    assert small == large[:5]
    assert set(large) != set(TEXTS[:20])
    assert load_texts(path, limit=5, seed=1).texts != small


@pytest.mark.parametrize("save", [save_jsonl, save_parquet, save_dataset])
def test_the_sample_does_not_depend_on_order_or_repetitions(save: Save, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    once = load_texts(save(tmp_path, TEXTS), limit=9)
    again = load_texts(save(tmp_path / "again", [*reversed(TEXTS), *TEXTS]), limit=9)
    assert once.sha256 == again.sha256


def outcome(path: Path) -> str | None:
    """What is said about a damaged file; None when its texts could be read. Nothing but what callers expect."""
    try:
        load_texts(path)
    except (BadRequest, DataError) as error:
        return error.message
    return None


@pytest.mark.parametrize("save", KINDS)
def test_a_cut_or_damaged_file_is_refused_or_read_never_worse(save: Save, tmp_path: Path) -> None:
    """Fixed positions over the whole file: cut there, or one bit turned over there."""
    path = save(tmp_path, TEXTS)
    inside = sorted(path.rglob("*.arrow"))
    file = inside[0] if inside else path
    whole = file.read_bytes()
    refused = 0
    for step in range(60):
        at = step * len(whole) // 60
        flipped = bytearray(whole)
        flipped[at] ^= 1 << step % 8
        for damaged in (whole[:at], bytes(flipped)):
            file.write_bytes(damaged)
            said = outcome(path)
            refused += said is not None
            assert said is None or path.name in said
    assert refused


@given(data=st.data())
def test_damage_anywhere_never_ends_the_process(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = data.draw(st.sampled_from([save_parquet, save_plain_parquet, save_stream, save_jsonl]))(folder, TEXTS[:9])
    content = bytearray(path.read_bytes())
    from_end = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content) - 1, 600)))
        content[-1 - at if from_end else at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert outcome(path) is None or path.name in str(outcome(path))


def test_a_column_is_chosen_by_name(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one", "abstract": "two"}\n{"abstract": null, "text": "x"}\n{"abstract": ["three"]}\n')
    assert set(load_texts(lines, column="abstract").texts) == {"two", "three"}
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["one", None], "b": ["two", ""]}), table)
    assert load_texts(table, column="b").texts == ("two",)
    assert load_texts(table, column="a").texts == ("one",)


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("a.jsonl", b'"good"\n{"text": \n', Corrupt, "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'"good"\n\n17\n', Corrupt, "a.jsonl, line 3: a text is needed, not a number"),
        ("a.jsonl", b'{"x": "a", "y": "b"}\n', BadRequest, "columns with text: 'x', 'y'"),
        ("a.jsonl", b'"\xff"\n', Corrupt, "line 1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, Corrupt, "line 1: not valid JSON"),
        ("a.jsonl", b'"' + b"a" * 5_000_000, TooLarge, "line 1: longer than"),
        ("a.json", b'[{"text": "a"}, {"text": {}}]', BadRequest, "entry 2"),
        ("a.json", b"12", Corrupt, "a JSON list of texts is needed"),
        ("a.txt", b"fine\nnot \xff fine\n", Corrupt, "line 2: not UTF-8"),
        ("a.txt", b"ends within \xe6\x9d", Corrupt, "line 1: the file ends within a character"),
        ("a.txt", b"fine\n" * 2000 + b"\0", Corrupt, "line 2001: binary data"),
        ("a.txt", b"  \n ... \n", BadRequest, "no text to calibrate with"),
        ("a.bin", b"ab\0\1", Corrupt, "binary data"),
        ("a.parquet", b"no such thing at all", Corrupt, "not a Parquet file"),
        ("a.arrow", b"", Corrupt, "empty"),
        ("a.feather", b"ARROW1\0\0", BadRequest, "save it as Parquet"),
    ],
)
def test_what_is_wrong_is_said(name: str, content: bytes, kind: type[AiosError], words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        load_texts(path)
    assert words in caught.value.message
    assert name in caught.value.message


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"one": ["a"], "two": ["b"], "number": [3]}), path)
    for column in (None, "three", "number"):
        with pytest.raises(BadRequest, match="'one', 'two'"):
            load_texts(path, column=column)


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "/etc/passwd", "..", "", None, "a\\b"])
def test_a_data_set_never_points_outside_its_folder(name: str | None, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(Corrupt, match="elsewhere"):
        load_texts(tmp_path)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(Corrupt, match="elsewhere"):
        load_texts(tmp_path)


@pytest.mark.parametrize("state", [b"[", b"[]", b"{}", b'{"_data_files": []}', b'{"_data_files": [{"filename": "x"}]}'])
def test_a_damaged_description_of_a_data_set_is_refused(state: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(state)
    with pytest.raises(Corrupt, match=r"state\.json"):
        load_texts(tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="not a saved data set"):
        load_texts(tmp_path)
    with pytest.raises(NotFound):
        load_texts(tmp_path / "missing.txt")


@pytest.mark.parametrize("encode", [False, True])
def test_a_compressed_stream_is_refused(encode: bool, tmp_path: Path) -> None:
    array = pa.array(TEXTS * 100)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = write_stream(tmp_path / "a.arrow", array.dictionary_encode() if encode else array, options=options)
    with pytest.raises(BadRequest, match="compressed"):
        load_texts(path)


def test_one_large_text_that_many_rows_repeat_takes_little_memory(tmp_path: Path) -> None:
    """A file of a few kilobytes whose rows are a gigabyte together."""
    path = tmp_path / "bomb.parquet"
    indices = pa.array([0] * 500, pa.int32())
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["word " * 400_000]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    before = pa.default_memory_pool().max_memory()
    found = load_texts(path)
    assert pa.default_memory_pool().max_memory() - before < 200 * 2**20
    assert all(len(text) <= MAX_CHARACTERS for text in found.texts)


def test_a_row_group_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_CHUNK_BYTES", 2**20)
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"text": ["a" * 2**19] * 3}), path, use_dictionary=False, compression="zstd")
    with pytest.raises(TooLarge, match=r"large\.parquet.* bytes in one row group"):
        load_texts(path)


def test_long_texts_are_cut_where_words_begin() -> None:
    text = " ".join(f"word{number}" for number in range(3000))
    parts = list(pieces(text))
    assert all(len(part) <= MAX_CHARACTERS for part in parts)
    assert " ".join(parts) == text
    assert [len(part) for part in pieces("x" * 9000)] == [4096, 4096, 808]


@given(st.text(max_size=60))
def test_pieces_can_always_be_encoded(text: str) -> None:
    for piece in pieces(text + "\ud800 a"):
        assert piece.encode("utf-8").strip() == piece.encode("utf-8")


@given(parts=st.lists(st.sampled_from(["a", "é", "東", "🙂", " ", "x" * 65_533, "x" * 65_535]), min_size=1, max_size=6))
def test_lines_longer_than_what_is_read_at_once_stay_whole(
    parts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("long") / "a.txt"
    text = "".join(parts) + "end"
    path.write_text(text, "utf-8")
    joined = "".join(sorted(load_texts(path).texts, key=len)).replace(" ", "")
    expected = {character for character in text if character != " "}
    assert set(joined) == expected


@pytest.mark.parametrize("limit", [0, -1, MAX_TEXTS + 1, True, 2.0])
def test_limits_that_cannot_be_are_refused(limit: int, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="whole number"):
        load_texts(save_txt(tmp_path, TEXTS), limit=limit)


def test_an_empty_or_too_large_set_cannot_be() -> None:
    with pytest.raises(BadRequest, match="no text"):
        CalibrationSet.of([], "here")
    with pytest.raises(BadRequest, match="at most"):
        CalibrationSet.of(["a"] * (MAX_TEXTS + 1), "here")
