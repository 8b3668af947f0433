"""Calibration texts from a file or folder of any common kind, recognised by what it is.

Every path is one that a user named; what lies there may be damaged or hostile: sizes are checked first, and
whatever is wrong is said with the file and, where there is one, the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from aios_node.engine.calibration.arrow import MAGIC as ARROW_MAGIC
from aios_node.engine.calibration.arrow import dataset_files, stream_texts
from aios_node.engine.calibration.json_texts import json_texts, line_texts
from aios_node.engine.calibration.parquet import parquet_texts
from aios_node.engine.calibration.plain import plain_texts
from aios_node.engine.calibration.sets import CalibrationSet, Sample
from aios_node.engine.errors import BadRequest, Corrupt, NotFound, TooLarge
from aios_node.engine.weights.disk import disk_errors

MAX_FILE_BYTES = 4 * 2**30
"""Bytes that are looked through, all files of a data set together."""

_PEEK_BYTES = 4096
_PARQUET_MAGIC = b"PAR1"
_FEATHER_MAGIC = b"ARROW1"

Reader = Callable[[Path], Iterator[str]]


def load_texts(path: Path, *, limit: int | None = None, column: str | None = None, seed: int = 0) -> CalibrationSet:
    """Read calibration texts: a sample of ``limit`` of all that the file holds (see sets), or all for None.

    Understood are plain text (a text is a paragraph), JSON lines and JSON lists (strings, or objects with
    ``column``, else ``text``, ``sentence``, ``content``, ...), Parquet and Arrow streams (a column of strings,
    named likewise), and folders that Hugging Face's datasets saved (split ``train``, else the first one).
    Raises NotFound, BadRequest (a kind that is not understood, a column that is not there, no text at all),
    Corrupt, TooLarge, StorageError.
    """
    path = Path(path)
    sample = Sample(limit, seed)
    for file, reader in _readers(path, column):
        for text in reader(file):
            sample.add(text)
    return CalibrationSet.of(sample.texts(), str(path))


def _readers(path: Path, column: str | None) -> list[tuple[Path, Reader]]:
    if not path.exists():
        raise NotFound(f"there is no calibration file {path}")
    if path.is_dir():
        files = dataset_files(path)
        _check_size(path, files)
        return [(file, partial(stream_texts, column=column)) for file in files]
    if not path.is_file():
        raise BadRequest(f"{path} is neither a file nor a folder")
    _check_size(path, [path])
    return [(path, _reader(path, column))]


def _check_size(path: Path, files: list[Path]) -> None:
    with disk_errors(path, "read"):
        size = sum(file.stat().st_size for file in files)
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are looked through: use a part of it")


def _reader(path: Path, column: str | None) -> Reader:
    """The reader for a file: by its first bytes, then by its ending, then by what its text looks like."""
    with disk_errors(path, "read"), path.open("rb") as file:
        head = file.read(_PEEK_BYTES)
    ending = path.suffix.lower()
    if head.startswith(_PARQUET_MAGIC) or ending == ".parquet":
        return partial(parquet_texts, column=column)
    if head.startswith(_FEATHER_MAGIC):
        raise BadRequest(f"{path} is an Arrow file of the random-access form; save it as Parquet or as JSON lines")
    if head.startswith(ARROW_MAGIC) or ending == ".arrow":
        return partial(stream_texts, column=column)
    if b"\0" in head:
        raise Corrupt(f"{path} holds binary data; give plain text, JSON lines, JSON, Parquet or a saved data set")
    if ending in (".jsonl", ".ndjson"):
        return partial(line_texts, column=column)
    if ending == ".json":
        return partial(json_texts, column=column)
    if ending not in (".txt", ".md") and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b'{"', b'["', b'[{"')):
        return partial(json_texts, column=column)
    return plain_texts
