"""The columns of Parquet weights, version 1 and 2, and what a row of them says about its tensor.

Knows the names and meanings of columns and metadata keys; reads and writes no bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, Corrupt
from aios_node.engine.quant.blocks import Grouping, QuantizedTensor, QuantType, Tensor, dtype_name
from aios_node.engine.quant.dtypes import count_of, dtype_of, from_bytes
from aios_node.engine.quant.scales import CompactScales, CompactSizes, supers_of
from aios_node.engine.weights.names import check_tensor_name
from aios_node.engine.weights.stored import expected_nbytes, quant_of, scale_codec_of, stored_parts

FORMAT_KEY = b"aios.format"
WRITER_KEY = b"aios.writer"
INDEX_KEY = b"aios.index"
FORMAT = b"2"

_V1_FIELDS = [
    pa.field("layer_name", pa.string(), nullable=False),
    pa.field("shape", pa.list_(pa.int64()), nullable=False),
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("data", pa.large_binary(), nullable=False),
    pa.field("num_params", pa.int64(), nullable=False),
]
SCHEMA_V1 = pa.schema(_V1_FIELDS)
SCHEMA_V2 = pa.schema(
    [
        *_V1_FIELDS,
        pa.field("quant_type", pa.string(), nullable=False),
        pa.field("scales", pa.binary()),
        pa.field("zero_points", pa.binary()),
        pa.field("quant_axis", pa.int32(), nullable=False),
        pa.field("group_size", pa.int32(), nullable=False),
        pa.field("extra", pa.string()),
    ]
)
PAYLOADS = ("data", "scales", "zero_points")
"""Columns whose size grows with the tensor; all others are small."""

MAX_TEXT_BYTES = 2048
"""Longest value that a text column may hold."""

_ALIASES = {"fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32", "bf16": "bfloat16"}


def format_of(columns: Iterable[str], metadata: Mapping[bytes, bytes]) -> int:
    """Which version a file is: 1 or 2. Raises Corrupt when it holds no weights, or newer ones."""
    declared = metadata.get(FORMAT_KEY, FORMAT)
    if declared != FORMAT:
        raise Corrupt(f"format {declared[:20]!r} of Parquet weights is not known here; a newer node wrote it")
    present = set(columns)
    if missing := set(SCHEMA_V1.names) - present:
        raise Corrupt(f"this Parquet file holds no weights: column {min(missing)!r} is missing")
    return 2 if "quant_type" in present else 1


def check_types(schema: pa.Schema) -> None:
    """Raises Corrupt unless every known column has a type of its kind; the width of numbers does not matter."""
    for field in SCHEMA_V2:
        if field.name in schema.names and _kind(schema.field(field.name).type) != _kind(field.type):
            raise Corrupt(f"column {field.name!r} is {schema.field(field.name).type}; {field.type} is needed")


def _kind(found: pa.DataType) -> str:
    kinds = {
        "text": pa.types.is_string(found) or pa.types.is_large_string(found),
        "bytes": pa.types.is_binary(found) or pa.types.is_large_binary(found),
        "number": pa.types.is_integer(found),
        "list": pa.types.is_list(found) and pa.types.is_integer(found.value_type),
    }
    return next((kind for kind, holds in kinds.items() if holds), "other")


@dataclass(frozen=True)
class RowHeader:
    """What a row says about its tensor, checked: such a tensor can exist and has ``nbytes`` bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quant_type: str
    quant_axis: int
    group_size: int
    nbytes: int
    scale_codec: str = "float32"

    @classmethod
    def of(cls, name: str, described: Mapping[str, Any]) -> RowHeader:
        """From members named as the columns are. Raises Corrupt, BadWeights or TooLarge, naming the tensor."""
        check_tensor_name(name)
        shape = _shape(name, described.get("shape"))
        dtype = str(described.get("dtype"))
        quant_type = str(described.get("quant_type") or "none")
        plain = quant_type == "none"
        axis = -1 if plain else _whole(name, described, "quant_axis")
        group_size = 0 if plain else _whole(name, described, "group_size")
        scale_codec = str(described.get("scale_codec", "float32"))
        nbytes = expected_nbytes(dtype, shape, quant_type, axis, group_size, scale_codec)
        return cls(name, dtype, shape, quant_type, axis, group_size, nbytes, scale_codec)

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> RowHeader:
        """From the small columns of a row of either version. Raises as ``of`` does."""
        name = check_tensor_name(row["layer_name"])
        dtype = str(row["dtype"]).removeprefix("torch.")
        scale_codec = _scale_codec(name, row.get("extra"))
        header = cls.of(name, {**row, "dtype": _ALIASES.get(dtype, dtype), "scale_codec": scale_codec})
        if row["num_params"] != count_of(header.shape):
            raise Corrupt(f"tensor {name!r} of shape {header.shape} cannot have {row['num_params']} values")
        return header

    @property
    def scale_shape(self) -> tuple[int, int]:
        """[channels, groups] of scales and zero points."""
        grouping = Grouping.of(self.shape, self.quant_axis, self.group_size)
        return grouping.channels, grouping.groups

    @property
    def payload_sizes(self) -> dict[str, int]:
        """Bytes of each payload column that is not null."""
        if self.quant_type == "none":
            return {"data": self.nbytes}
        channels, groups = self.scale_shape
        if self.scale_codec == "double4":
            sizes = CompactSizes.of(channels, groups)
            scales = sizes.steps + sizes.scale_codes
            return {"data": self.nbytes - sizes.total, "scales": scales, "zero_points": sizes.zero_codes}
        part = 4 * channels * groups
        return {"data": self.nbytes - 2 * part, "scales": part, "zero_points": part}

    def assemble(self, parts: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        """The tensor whose payload columns hold these bytes; data and codes stay views where aligned.

        Raises Corrupt or BadWeights when the bytes cannot be this tensor.
        """
        data = parts["data"]
        if self.quant_type == "none":
            return from_bytes(_aligned(data, dtype_of(self.dtype)), self.dtype, self.shape)
        layout = (self.shape, self.dtype, cast("QuantType", self.quant_type), self.quant_axis, self.group_size)
        if self.scale_codec == "double4":
            compact = _compact(parts["scales"], parts["zero_points"], self.scale_shape)
            return QuantizedTensor.compacted(data, compact, *layout)
        scales, zero_points = (_floats(parts[name], self.scale_shape) for name in ("scales", "zero_points"))
        return QuantizedTensor(data, scales, zero_points, *layout)


def header_of(name: str, tensor: Tensor) -> RowHeader:
    """What a row says about this tensor."""
    quant_type, axis, group_size = quant_of(tensor)
    described = {"shape": list(tensor.shape), "dtype": dtype_name(tensor), "quant_type": quant_type}
    quantised = {"quant_axis": axis, "group_size": group_size, "scale_codec": scale_codec_of(tensor)}
    return RowHeader.of(name, {**described, **quantised})


def row_of(name: str, tensor: Tensor) -> pa.Table:
    """One row of V2 for this tensor; data or codes are not copied."""
    quant_type, axis, group_size = quant_of(tensor)
    data, scales, zero_points = _parts(tensor)
    row = {
        "layer_name": name,
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor),
        "num_params": int(tensor.size),
        "quant_type": quant_type,
        "scales": scales,
        "zero_points": zero_points,
        "quant_axis": axis,
        "group_size": group_size,
        "extra": None if scale_codec_of(tensor) == "float32" else json.dumps({"codec": scale_codec_of(tensor)}),
    }
    columns = [
        _one_value(data) if field.name == "data" else pa.array([row[field.name]], field.type) for field in SCHEMA_V2
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA_V2)


def _parts(tensor: Tensor) -> tuple[NDArray[np.uint8], bytes | None, bytes | None]:
    """The payload columns of a tensor: the last column takes the last part, ``scales`` what lies between."""
    data, *scales = stored_parts(tensor)
    if not scales:
        return data, None, None
    return data, b"".join(part.tobytes() for part in scales[:-1]), scales[-1].tobytes()


def _one_value(data: NDArray[np.uint8]) -> pa.Array:
    offsets = np.array([0, data.nbytes], np.int64)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _aligned(data: NDArray[np.uint8], kind: np.dtype[Any]) -> NDArray[np.uint8]:
    """The same bytes at an address that the dtype may have (torch reads odd ones as something else)."""
    return data if data.ctypes.data % kind.alignment == 0 else data.copy()


def _floats(data: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    return from_bytes(_aligned(data, np.dtype(np.float32)), "float32", shape)


def _compact(scales: NDArray[np.uint8], zero_codes: NDArray[np.uint8], shape: tuple[int, int]) -> CompactScales:
    channels, groups = shape
    size = CompactSizes.of(channels, groups).steps
    steps = from_bytes(_aligned(scales[:size], np.dtype(np.float16)), "float16", (channels, supers_of(groups)))
    return CompactScales(steps, scales[size:], zero_codes, groups)


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(side) is int for side in value):
        raise Corrupt(f"the shape of tensor {name!r} is not a list of numbers")
    return tuple(value)


def _whole(name: str, row: Mapping[str, Any], column: str) -> int:
    value = row.get(column)
    if type(value) is not int:
        raise Corrupt(f"tensor {name!r} is quantised but its {column} is {str(value)[:40]!r}")
    return value


def _scale_codec(name: str, extra: str | None) -> str:
    """How ``extra`` says that scales are kept. Refuses codecs that came after this reader; anything else in
    ``extra`` is for others."""
    if extra is None:
        return "float32"
    try:
        codec = json.loads(extra).get("codec", "plain")
    except (ValueError, AttributeError, RecursionError):
        raise Corrupt(f"tensor {name!r} has a column 'extra' that is no JSON object") from None
    if codec not in ("plain", "double4"):
        raise BadWeights(f"tensor {name!r} is encoded as {str(codec)[:40]!r}, which this version cannot read")
    return "float32" if codec == "plain" else "double4"
