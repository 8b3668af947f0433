"""An encoder in the format of PULSE (arXiv 2602.03839), as its public code writes it (one-covenant/grail, version 3.1).

Changed places and their new values, no differences of values:

    zstd level 1 over: header length (4 bytes, little endian) | header (JSON) | per tensor: rows, columns, values

A tensor counts as a matrix: its first axis by all others; a vector is one row per number... of one column. Places
are sorted; rows are stored as differences from the place before, columns as differences inside a row and as they are
at its first place. Rows take 1 byte if all fit, else 2, else 4; columns 2, else 4. Values are the new numbers. Written
from that description; no code of theirs is used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

VERSION = 31
LEVEL = 1

Words = NDArray[Any]
"""A tensor's numbers as unsigned integers of their width, in its shape."""


def encode(base: Mapping[str, Words], target: Mapping[str, Words]) -> bytes:
    """The tensors that changed. Both mappings hold the same names, shapes and widths."""
    described: list[dict[str, Any]] = []
    body: list[bytes] = []
    offset = 0
    for name in sorted(target):
        places = np.flatnonzero(base[name] != target[name])
        if not places.size:
            continue
        rows, columns = _gaps(places, _columns(target[name].shape))
        values = target[name].reshape(-1)[places].tobytes()
        pieces = _narrow(rows, (np.uint8, np.uint16)), _narrow(columns, (np.uint16,))
        described.append(_describe(name, target[name], places.size, pieces, offset))
        body += [*(piece.tobytes() for piece in pieces), values]
        offset += sum(piece.nbytes for piece in pieces) + len(values)
    header = json.dumps({"version": VERSION, "tensors": described}, separators=(",", ":")).encode()
    plain = b"".join([struct.pack("<I", len(header)), header, *body])
    return zstandard.ZstdCompressor(level=LEVEL).compress(plain)


def decode(base: Mapping[str, Words], data: bytes) -> dict[str, Words]:
    """The target; tensors that did not change are the base's own."""
    plain = zstandard.ZstdDecompressor().decompress(data)
    (length,) = struct.unpack_from("<I", plain)
    result = dict(base)
    for told in json.loads(plain[4 : 4 + length])["tensors"]:
        at, count = 4 + length + told["indices_offset"], told["num_nonzero"]
        rows = np.frombuffer(plain, told["row_dtype"], count, at)
        columns = np.frombuffer(plain, told["col_dtype"], count, at + told["rows_size"])
        changed = base[told["name"]].copy()
        values = np.frombuffer(plain, changed.dtype, count, 4 + length + told["values_offset"])
        changed.reshape(-1)[_places(rows, columns, _columns(changed.shape))] = values
        result[told["name"]] = changed
    return result


def _columns(shape: tuple[int, ...]) -> int:
    return max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1


def _gaps(places: Words, columns: int) -> tuple[Words, Words]:
    row, column = np.divmod(places, columns)
    rows = np.diff(row, prepend=0)
    within = np.diff(column, prepend=0)
    first = rows != 0
    first[0] = True
    return rows, np.where(first, column, within)


def _places(rows: Words, columns: Words, width: int) -> Words:
    row = np.cumsum(rows.astype(np.int64))
    first = rows != 0
    first[0] = True
    steps = np.cumsum(columns.astype(np.int64))
    starts = np.flatnonzero(first)
    before = (steps[starts] - columns[starts])[np.cumsum(first) - 1]
    return row * width + steps - before


def _narrow(gaps: Words, kinds: tuple[type, ...]) -> Words:
    """In the first kind that holds all, else 4 bytes."""
    highest = gaps.max()
    return gaps.astype(next((kind for kind in kinds if highest <= np.iinfo(kind).max), np.int32))


def _describe(name: str, tensor: Words, count: int, pieces: tuple[Words, Words], offset: int) -> dict[str, Any]:
    rows, columns = pieces
    indices = rows.nbytes + columns.nbytes
    return {
        "name": name,
        "shape": list(tensor.shape),
        "num_nonzero": count,
        "value_dtype": f"{tensor.dtype.itemsize * 8} bits",
        "row_dtype": rows.dtype.name,
        "col_dtype": columns.dtype.name,
        "indices_offset": offset,
        "indices_size": indices,
        "rows_size": rows.nbytes,
        "cols_size": columns.nbytes,
        "values_offset": offset + indices,
        "values_size": count * tensor.dtype.itemsize,
    }
