"""Texts from Arrow streams, and the folders in which Hugging Face's datasets keep them.

Formats: https://arrow.apache.org/docs/format/Columnar.html (IPC streaming format);
https://huggingface.co/docs/datasets (``save_to_disk``: state.json beside data-*.arrow, dataset_dict.json above).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from aios_node.engine.calibration.columns import text_column
from aios_node.engine.calibration.sets import MAX_CHARACTERS
from aios_node.engine.errors import BadRequest, Corrupt
from aios_node.engine.weights.disk import read_file
from aios_node.engine.weights.shard import map_file, naming, release

MAGIC = b"\xff\xff\xff\xff"
MAX_FILES = 10_000

_DESCRIPTION_BYTES = 4 * 2**20
_LONGEST_BYTES = 64 * MAX_CHARACTERS
"""Of a text that is longer, the beginning is used."""


def dataset_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, in its order; of a saved dictionary of splits, ``train`` or the first.

    Raises BadRequest when the folder is no saved data set, Corrupt when its description is damaged.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits:
            raise Corrupt(f"{folder / 'dataset_dict.json'} names no splits")
        folder = folder / _plain_name("train" if "train" in splits else splits[0], folder)
    if not (folder / "state.json").is_file():
        raise BadRequest(f"{folder} is not a saved data set: it has no state.json; give a file or such a folder")
    listed = _described(folder / "state.json").get("_data_files")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_FILES:
        raise Corrupt(f"{folder / 'state.json'} names no data files, or more than {MAX_FILES}")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    files = [folder / _plain_name(name, folder) for name in names]
    for file in files:
        if not file.is_file():
            raise Corrupt(f"{folder / 'state.json'} names {file.name!r}, which is not in the folder")
    return files


def stream_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The texts of one column of an Arrow stream; empty rows do not count.

    Raises Corrupt, BadRequest (no column of texts, or several without a usual name), NotFound.
    """
    mapped = map_file(path)
    try:
        buffer = pa.py_buffer(mapped)
        with naming(path):
            _check_messages(buffer)
            yield from _stream_texts(path, buffer, column)
    finally:
        release(mapped)


def text_columns(schema: pa.Schema) -> list[str]:
    """The names of columns that hold strings, plain or as a dictionary; a name that comes twice is left out."""
    names = [field.name for field in schema if _is_text(field.type)]
    return [name for name in names if schema.names.count(name) == 1]


def array_texts(array: pa.Array) -> Iterator[str]:
    """The texts of a column, one after the other. Raises Corrupt."""
    try:
        array.validate(full=True)
        values, rows = array, iter(range(len(array)))
        if isinstance(array, pa.DictionaryArray):
            values = array.dictionary
            rows = (row for row in array.indices.to_pylist() if row is not None)
        for row in rows:
            text = values[row].as_buffer()  # nothing is copied before its size is known
            if text is not None:
                yield bytes(memoryview(text)[:_LONGEST_BYTES]).decode("utf-8", "ignore")
    except (pa.ArrowException, IndexError, OverflowError, ValueError) as error:
        raise _damaged(error) from None


def _stream_texts(path: Path, buffer: pa.Buffer, column: str | None) -> Iterator[str]:
    try:
        reader = pa.ipc.open_stream(pa.BufferReader(buffer))
        schema = reader.schema
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _damaged(error) from None
    place = schema.names.index(text_column(str(path), text_columns(schema), column))
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise _damaged(error) from None
        yield from array_texts(batch.column(place))


def _check_messages(buffer: pa.Buffer) -> None:
    """Refuse compressed data: a few bytes of it can become gigabytes, and data sets are not saved like that."""
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer))
        compressed = [_is_compressed(bytes(message.metadata), str(message.type)) for message in messages]
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise _damaged(error) from None
    if any(compressed):
        raise BadRequest("a compressed Arrow stream; save the data set uncompressed, or as Parquet")


def _is_compressed(message: bytes, kind: str) -> bool:
    """Whether a message's record batch states a compression (Message.fbs: header 2, data 1, compression 3)."""
    if kind not in ("record batch", "dictionary"):
        return False
    batch = _table(message, 0, None)
    for field in (2, 1) if kind == "dictionary" else (2,):
        batch = _table(message, batch, field)
    return _slot(message, batch, 3) != 0


def _table(message: bytes, at: int, field: int | None) -> int:
    """Where the table begins that a flatbuffer refers to from here, or from this table's field."""
    if field is not None:
        at += _slot(message, at, field)
    (offset,) = struct.unpack_from("<I", message, at)
    return at + int(offset)


def _slot(message: bytes, table: int, field: int) -> int:
    """Where in a flatbuffer's table a field is; 0 when it is left out."""
    (back,) = struct.unpack_from("<i", message, table)
    length, _ = struct.unpack_from("<HH", message, table - back)
    if 4 + 2 * field >= length:
        return 0
    (offset,) = struct.unpack_from("<H", message, table - back + 4 + 2 * field)
    return int(offset)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _described(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_file(path, _DESCRIPTION_BYTES))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path}: not valid JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise Corrupt(f"{path}: a JSON object is needed")
    return value


def _plain_name(name: Any, folder: Path) -> str:
    """The name itself. Raises Corrupt for anything that is no name of an entry of this folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise Corrupt(f"{folder} describes a data set that lies elsewhere: {str(name)[:80]!r}")
    return name


def _damaged(error: BaseException) -> Corrupt:
    return Corrupt(f"not a readable column of texts: {str(error)[:160]}")
