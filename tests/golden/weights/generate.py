"""Writes the golden files beside it: run it once per format, never to make a failing test pass.

Files that were written long ago must read the same for ever. `python tests/golden/weights/generate.py NAME`
adds ``NAME.v2.parquet`` and ``NAME.v1.parquet``; existing files are never replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, pack
from aios_node.engine.weights.layout import SCHEMA_V1
from aios_node.engine.weights.parquet import write_shard

HERE = Path(__file__).resolve().parent
FILES = {"config.json": b'{"aios": {"kind": "encoder"}}\n', "tokenizer.json": b"{}\n"}


def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Numbers that look random and are exact in float32: from integers alone, the same everywhere."""
    count = int(np.prod(shape, dtype=np.int64))
    spread = (np.arange(count, dtype=np.int64) * 2654435761 + 12345) % 65536 - 32768
    return (spread.astype(np.float32) / np.float32(4096)).reshape(shape)


def packed(quant: str, bits: int, shape: tuple[int, ...], axis: int, group_size: int) -> QuantizedTensor:
    """A quantised tensor with codes, scales and zero points of the same kind of numbers."""
    low = -128 if bits == 8 else 0
    codes = np.arange(int(np.prod(shape))) * 7 % 2**bits + low
    channels = 1 if axis == -1 else shape[axis]
    rest = int(np.prod(shape)) // channels
    groups = -(-rest // group_size) if group_size else 1
    scales = np.abs(numbers(channels, groups)) + np.float32(0.5)
    parts = pack(codes, bits), scales, numbers(channels, groups)
    return QuantizedTensor(*parts, shape, "float32", quant, axis, group_size)  # type: ignore[arg-type]


def plain() -> dict[str, Tensor]:
    """What version 1 can hold."""
    return {"encoder.weight": numbers(5, 7), "encoder.bias": numbers(5).astype(np.float16)}


def tensors() -> dict[str, Tensor]:
    """One of each kind that version 2 can hold."""
    kinds: dict[str, Tensor] = {
        "brain": numbers(3, 3).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([[True, False], [False, True]]),
        "ids": np.arange(6, dtype=np.int64).reshape(1, 6),
        "scalar": np.array(0.25),
        "tiny": numbers(4).astype(ml_dtypes.float8_e4m3fn),
        "wörter.✓": numbers(2, 2),
        "q8.rows": packed("int8", 8, (4, 6), 0, 0),
        "q8.columns": packed("int8", 8, (4, 6), 1, 3),
        "q4.groups": packed("int4", 4, (3, 35), 0, 32),
        "q2.tensor": packed("int2", 2, (3, 3, 3), -1, 0),
    }
    return plain() | kinds


def write_v1(path: Path) -> None:
    """As the first format was written: all tensors in one row group, no metadata of ours."""
    weights = {name: np.asarray(tensor) for name, tensor in plain().items()}
    columns = {
        "layer_name": list(weights),
        "shape": [list(array.shape) for array in weights.values()],
        "dtype": [array.dtype.name for array in weights.values()],
        "data": [array.tobytes() for array in weights.values()],
        "num_params": [array.size for array in weights.values()],
    }
    pq.write_table(pa.table(columns, SCHEMA_V1), path)


if __name__ == "__main__":
    name = sys.argv[1]
    for version in ("v1", "v2"):
        if (HERE / f"{name}.{version}.parquet").exists():
            sys.exit(f"{name}.{version}.parquet exists: golden files are never replaced")
    write_v1(HERE / f"{name}.v1.parquet")
    write_shard(HERE / f"{name}.v2.parquet", tensors())
