"""Rows to and from files: Parquet, Arrow IPC and JSON Lines.

Knows formats; what a row may hold is checked by ``rows`` when it comes back in. Parquet and Arrow keep
every value and the embedding space exactly; JSONL is for people and other programs: payloads as base64,
times as ISO strings, metadata as JSON values.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aios_node.engine.errors import BadRequest, Corrupt, TooLarge
from aios_node.memory.compose import one_row
from aios_node.memory.schema import COLUMNS
from aios_node.memory.storage import clear_errors, whole_file

_SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_ROWS_AT_ONCE = 2048
_LINE = 1 << 30  # bytes of one line of JSON


def write(reader: pa.RecordBatchReader, path: Path, kind: str | None = None) -> int:
    """Write all batches to ``path``, which then holds all rows or, on an error, what it held before."""
    sink = _WRITERS[_format(path, kind)]
    with clear_errors(str(path)), whole_file(path) as temporary:
        return sink(reader, temporary)


def read(path: Path, kind: str | None = None) -> Iterator[pa.Table]:
    """The rows of a file in tables of a few thousand; raises ``Corrupt`` when it cannot be read as that format."""
    source = _READERS[_format(path, kind)]
    with clear_errors(str(path)), _readable(path):
        yield from source(path)


def _format(path: Path, kind: str | None) -> str:
    found = kind or _SUFFIXES.get(path.suffix.lower())
    if found not in _WRITERS:
        raise BadRequest(f"{path.name}: the format must be one of {', '.join(_WRITERS)}, by suffix or by name")
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Arrow's complaints about a file as ``Corrupt``."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's complaint, not Arrow's
            raise
        raise Corrupt(f"{path}: {str(error).splitlines()[0]}") from error


def _write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        return _count(writer.write_batch, reader)


def _write_arrow(reader: pa.RecordBatchReader, path: Path) -> int:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
        return _count(writer.write_batch, reader)


def _write_jsonl(reader: pa.RecordBatchReader, path: Path) -> int:
    with path.open("w", encoding="utf-8") as out:

        def lines(batch: pa.RecordBatch) -> None:
            out.writelines(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in batch.to_pylist())

        return _count(lines, reader)


def _count(write_batch: Callable[[pa.RecordBatch], Any], reader: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    for batch in reader:
        write_batch(batch)
        rows += batch.num_rows
    return rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON values, without its nulls."""
    out = {name: value for name, value in row.items() if value is not None}
    out["created_at"] = row["created_at"].isoformat()
    if row["payload"] is not None:
        out["payload"] = base64.b64encode(row["payload"]).decode()
    if row["metadata"] is not None:
        out["metadata"] = json.loads(row["metadata"])
    return out


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            yield _table(batch, file.schema_arrow)


def _read_arrow(path: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            yield _table(file.get_batch(index), file.schema)


def _table(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The batch with the metadata of its file, which names the embedding space."""
    return pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)


def _read_jsonl(path: Path) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(_LINE + 1):
            number += 1
            if len(line) > _LINE:
                raise TooLarge(f"{path}, line {number}: longer than {_LINE} bytes")
            if line.strip():
                waiting.append(_row(line, f"{path}, line {number}"))
            if len(waiting) >= _ROWS_AT_ONCE:
                yield _together(waiting)
                waiting = []
    if waiting:
        yield _together(waiting)


def _row(line: bytes, where: str) -> pa.Table:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{where}: not JSON: {str(error)[:80]}") from error
    if not isinstance(values, dict):
        raise BadRequest(f'{where}: an object is needed, such as {{"text": "..."}}')
    try:
        if isinstance(values.get("created_at"), str):
            values["created_at"] = datetime.fromisoformat(values["created_at"])
        if isinstance(values.get("payload"), str):
            values["payload"] = base64.b64decode(values["payload"], validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadRequest(f"{where}: {error}") from error
    try:
        return one_row(values)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error.message}") from error


def _together(rows: list[pa.Table]) -> pa.Table:
    """One-row tables as one, columns in the schema's order."""
    table = pa.concat_tables(rows, promote_options="default")
    return table.select([name for name in COLUMNS.names if name in table.column_names])


_WRITERS: dict[str, Callable[[pa.RecordBatchReader, Path], int]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "jsonl": _write_jsonl,
}
_READERS: dict[str, Callable[[Path], Iterator[pa.Table]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
}
