"""Parquet weights: what is written comes back bit by bit, here and in any other reader."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadWeights, NotFound, StorageError, TooLarge
from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor, Tensor, dtype_name, highest_code, pack
from aios_node.engine.quant.dtypes import DTYPES, raw_bytes
from aios_node.engine.quant.scales import nearest_compact
from aios_node.engine.weights import parquet
from aios_node.engine.weights.layout import SCHEMA_V1, SCHEMA_V2
from aios_node.engine.weights.manifest import tensor_hash
from aios_node.engine.weights.mapped import MappedShard
from aios_node.engine.weights.parquet import ALIGNMENT, open_shard, write_shard
from aios_node.engine.weights.rows import RowShard

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 17]), max_size=4).map(tuple)


@st.composite
def plain_tensors(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    kind = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(0, 2 if kind == np.bool_ else 256, (*shape, kind.itemsize), dtype=np.uint8)
    return raw.view(kind).reshape(shape)


@st.composite
def packed_tensors(draw: st.DrawFn) -> QuantizedTensor:
    shape = draw(SHAPES)
    axis = draw(st.integers(-1, len(shape) - 1))
    size = draw(st.sampled_from([0, 1, 4, 8, 32]))
    quant = draw(st.sampled_from(["int8", "int4", "int2"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = random.integers(0, 2 ** min(BITS[quant], 7), shape)
    grouping = Grouping.of(shape, axis, size)
    if quant != "int8" and draw(st.booleans()):
        table = random.uniform(0.1, 2, (2, grouping.channels, grouping.groups))
        compact = nearest_compact(*table, highest_code(quant))
        return QuantizedTensor.compacted(pack(codes, BITS[quant]), compact, shape, "float32", quant, axis, size)
    scales, zeros = random.normal(size=(2, grouping.channels, grouping.groups)).astype(np.float32)
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    return QuantizedTensor(pack(codes, BITS[quant]), scales, zeros, shape, dtype, quant, axis, size)


WEIGHTS = st.dictionaries(NAMES, plain_tensors() | packed_tensors(), max_size=6)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert type(found) is type(expected)
    assert (tuple(found.shape), dtype_name(found)) == (tuple(expected.shape), dtype_name(expected))
    assert tensor_hash(found) == tensor_hash(expected)


@given(WEIGHTS)
def test_everything_comes_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> None:
    path = tmp_path_factory.mktemp("shard") / "w.parquet"
    info = write_shard(path, weights)
    assert (info.file, info.bytes, info.tensors) == ("w.parquet", path.stat().st_size, tuple(weights))
    shard = open_shard(path)
    assert isinstance(shard, MappedShard)
    assert list(shard.headers) == list(weights)
    for name, expected in weights.items():
        found = shard.tensor(name)
        assert_same(found, expected)
        assert shard.hashes[name] == tensor_hash(expected)
        assert shard.headers[name].nbytes == expected.nbytes
        values = found.codes if isinstance(found, QuantizedTensor) else found
        assert not values.flags.writeable
        if values.size:
            assert place_in_file(path, values) % ALIGNMENT == 0
    shard.close()


def place_in_file(path: Path, values: np.ndarray[Any, Any]) -> int:
    """Where a view lies in the file; fails for a copy."""
    base: Any = values
    while isinstance(base.base, np.ndarray):
        base = base.base
    whole = np.frombuffer(base.base.obj if isinstance(base.base, memoryview) else base.base, np.uint8)
    assert whole.size == path.stat().st_size
    return values.ctypes.data - whole.ctypes.data


@given(WEIGHTS)
def test_any_reader_reads_the_same(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> None:
    path = tmp_path_factory.mktemp("shard") / "w.parquet"
    write_shard(path, weights)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA_V2)
    file = pq.ParquetFile(path)
    assert file.metadata.num_row_groups == len(weights)
    index = json.loads(file.metadata.metadata[b"aios.index"])
    assert file.metadata.metadata[b"aios.format"] == b"2"
    for row, (name, tensor) in zip(table.to_pylist(), weights.items(), strict=True):
        quantised = isinstance(tensor, QuantizedTensor)
        assert row == {
            "layer_name": name,
            "shape": list(tensor.shape),
            "dtype": dtype_name(tensor),
            "data": raw_bytes(tensor.codes if isinstance(tensor, QuantizedTensor) else tensor).tobytes(),
            "num_params": tensor.size,
            "quant_type": tensor.quant_type if isinstance(tensor, QuantizedTensor) else "none",
            "quant_axis": tensor.axis if isinstance(tensor, QuantizedTensor) else -1,
            "group_size": tensor.group_size if quantised and isinstance(tensor, QuantizedTensor) else 0,
            **scale_columns(tensor),
        }
        entry = index[name]
        assert file.read_row_group(entry["row_group"])["layer_name"][0].as_py() == name
        assert (entry["bytes"], entry["sha256"]) == (tensor.nbytes, tensor_hash(tensor))


def test_files_are_strict_parquet(tmp_path: Path) -> None:
    """What stricter readers look at: plain uncompressed pages, one value each, offsets in rising order."""
    write_shard(tmp_path / "w.parquet", sample())
    metadata = pq.read_metadata(tmp_path / "w.parquet")
    end = 4
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        assert group.num_rows == 1
        for place in range(group.num_columns):
            column = group.column(place)
            assert column.data_page_offset >= end
            end = column.data_page_offset + column.total_compressed_size
            assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
            assert set(column.encodings) <= {"PLAIN", "RLE"}
            assert column.total_uncompressed_size == column.total_compressed_size
            assert column.statistics is None
    scanned = dataset.dataset(tmp_path).to_table(columns=["layer_name", "data"])
    rows = pq.ParquetFile(tmp_path / "w.parquet", page_checksum_verification=True, memory_map=True).read()
    assert rows["layer_name"].to_pylist() == list(sample())
    assert scanned["data"].to_pylist() == rows["data"].to_pylist()


def sample() -> dict[str, Tensor]:
    random = np.random.default_rng(5)
    return {
        "w": random.normal(size=(8, 9)).astype(np.float32),
        "q": QuantizedTensor(
            np.arange(12, dtype=np.uint8),
            np.ones((3, 1), np.float32),
            np.zeros((3, 1), np.float32),
            (3, 4),
            "float32",
            "int8",
            0,
            0,
        ),
        "b": random.normal(size=9).astype(np.float16),
    }


def scale_columns(tensor: Tensor) -> dict[str, Any]:
    """The columns of a row that say how a tensor is scaled, as docs/formats.md has them."""
    if not isinstance(tensor, QuantizedTensor):
        return {"scales": None, "zero_points": None, "extra": None}
    if (compact := tensor.compact) is None:
        return {"scales": tensor.scales.tobytes(), "zero_points": tensor.zero_points.tobytes(), "extra": None}
    scales = compact.steps.tobytes() + compact.scale_codes.tobytes()
    return {"scales": scales, "zero_points": compact.zero_codes.tobytes(), "extra": '{"codec": "double4"}'}


def rows_of(weights: Mapping[str, Tensor]) -> pa.Table:
    """Weights as a table, made the way somebody else would."""
    table = {
        "layer_name": list(weights),
        "shape": [list(tensor.shape) for tensor in weights.values()],
        "dtype": [dtype_name(tensor) for tensor in weights.values()],
        "data": [raw_bytes(t.codes if isinstance(t, QuantizedTensor) else t).tobytes() for t in weights.values()],
        "num_params": [tensor.size for tensor in weights.values()],
        "quant_type": [getattr(tensor, "quant_type", "none") for tensor in weights.values()],
        **{
            column: [scale_columns(t)[column] for t in weights.values()]
            for column in ("scales", "zero_points", "extra")
        },
        "quant_axis": [getattr(tensor, "axis", -1) for tensor in weights.values()],
        "group_size": [getattr(tensor, "group_size", 0) for tensor in weights.values()],
    }
    return pa.table(table, schema=SCHEMA_V2)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd"},
    {"compression": "gzip", "row_group_size": 1},
    {"use_dictionary": False, "data_page_version": "2.0"},
    {"row_group_size": 2, "compression": "lz4", "data_page_size": 16},
    {"compression": "none", "use_dictionary": False, "write_page_index": True, "write_page_checksum": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@given(weights=WEIGHTS)
def test_files_of_other_writers_are_read(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "w.parquet"
    pq.write_table(rows_of(weights), path, **options)
    shard = open_shard(path)
    assert isinstance(shard, RowShard)
    for name in sorted(weights):  # another order than the file's
        assert_same(shard.tensor(name), weights[name])
    shard.close()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("dtype", ["float16", "float32", "torch.float16", "fp32"])
def test_version_1_is_read(tmp_path: Path, kind: pa.DataType, dtype: str) -> None:
    numpy = np.float16 if "16" in dtype else np.float32
    weights = {f"layer.{n}": np.full((n, 3), n, numpy) for n in range(5)}
    columns = [
        list(weights),
        [list(value.shape) for value in weights.values()],
        [dtype] * 5,
        pa.array([value.tobytes() for value in weights.values()], kind),
        [value.size for value in weights.values()],
    ]
    pq.write_table(pa.table(dict(zip(SCHEMA_V1.names, columns, strict=True))), tmp_path / "v1.parquet")
    shard = open_shard(tmp_path / "v1.parquet")
    for name, value in weights.items():
        assert_same(shard.tensor(name), value)


def test_views_outlive_the_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "w.parquet", sample())
    shard = open_shard(tmp_path / "w.parquet")
    kept = shard.tensor("w")
    shard.close()
    shard.close()
    (tmp_path / "w.parquet").unlink()
    assert_same(kept, sample()["w"])
    with pytest.raises(ValueError, match="closed"):
        shard.tensor("w")


def test_row_files_can_be_closed_too(tmp_path: Path) -> None:
    pq.write_table(rows_of(sample()), tmp_path / "w.parquet")
    shard = open_shard(tmp_path / "w.parquet")
    kept = shard.tensor("w")
    shard.close()
    assert_same(kept, sample()["w"])
    with pytest.raises(ValueError, match="closed"):
        shard.tensor("w")


def test_threads_may_share_a_row_file(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {f"w{n}": np.full((3, n + 1), n, np.float32) for n in range(30)}
    pq.write_table(rows_of(weights), tmp_path / "w.parquet", row_group_size=7)
    shard = open_shard(tmp_path / "w.parquet")
    wrong: list[str] = []

    def read(names: list[str]) -> None:
        wrong.extend(name for name in names if tensor_hash(shard.tensor(name)) != tensor_hash(weights[name]))

    threads = [threading.Thread(target=read, args=(list(weights)[:: 1 - 2 * (n % 2)],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800", "x" * 600])
def test_names_that_cannot_be_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadWeights):
        write_shard(tmp_path / "w.parquet", {name: np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_dtypes_that_cannot_be_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="complex"):
        write_shard(tmp_path / "w.parquet", {"good": np.zeros(3), "bad": np.zeros(3, complex)})
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_a_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parquet.MAX_VALUE_BYTES < 2**31
    monkeypatch.setattr(parquet, "MAX_VALUE_BYTES", 100)
    with pytest.raises(TooLarge, match=r"'w' has 104 bytes.*split it or quantise it"):
        write_shard(tmp_path / "w.parquet", {"w": np.zeros(13)})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "w.parquet").write_bytes(b"mine")
    with pytest.raises(StorageError):
        write_shard(tmp_path / "w.parquet", sample())
    assert (tmp_path / "w.parquet").read_bytes() == b"mine"


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.parquet"):
        open_shard(tmp_path / "gone.parquet")
    with pytest.raises(StorageError, match="Is a directory"):
        open_shard(tmp_path)


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    """Opened weights cost none of Arrow's memory, and every opening maps the file anew."""
    write_shard(tmp_path / "w.parquet", {"big": np.ones(2**21, np.float32)})
    before = pa.total_allocated_bytes()
    shards = [open_shard(tmp_path / "w.parquet") for _ in range(20)]
    views = [shard.tensor("big") for shard in shards]
    assert pa.total_allocated_bytes() - before < 2**20
    assert len({view.ctypes.data for view in views if isinstance(view, np.ndarray)}) == 20
    for shard in shards:
        shard.close()
