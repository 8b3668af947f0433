"""Files that lie: each one is a documented error, before anything large is allocated."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadWeights, Corrupt, DataError, StorageFull, TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.scales import CompactScales
from aios_node.engine.weights import parquet
from aios_node.engine.weights.footer import read_row_groups
from aios_node.engine.weights.layout import SCHEMA_V1
from aios_node.engine.weights.pages import check_pages
from aios_node.engine.weights.parquet import open_shard, write_shard
from aios_node.engine.weights.shard import map_file
from aios_node.engine.weights.thrift import read_struct

SIZE = 4 * 6 * 5
COMPACT = CompactScales.of(np.array([[0.5]], np.float16), np.array([[1, 2, 3]]), np.array([[0, 1, 2]]))


def sample() -> dict[str, Tensor]:
    scales = np.ones((3, 1), np.float32), np.zeros((3, 1), np.float32)
    return {
        "w": np.arange(30, dtype=np.float32).reshape(6, 5),
        "q": QuantizedTensor(np.arange(12, dtype=np.uint8), *scales, (3, 4), "float32", "int8", 0, 0),
        "flags": np.array([True, False]),
        "d": QuantizedTensor.compacted(np.arange(5, dtype=np.uint8), COMPACT, (10,), "float32", "int4", -1, 4),
    }


def own_file(path: Path) -> None:
    write_shard(path, sample())


def foreign_file(path: Path, **options: Any) -> None:
    columns = [["a", "b"], [[6, 5], [6, 5]], ["float32"] * 2, [bytes(SIZE), b"\1" * SIZE], [30, 30]]
    pq.write_table(pa.table(dict(zip(SCHEMA_V1.names, columns, strict=True)), SCHEMA_V1), path, **options)


def compressed_file(path: Path) -> None:
    foreign_file(path, compression="zstd", row_group_size=1, data_page_version="2.0")


FILES: list[Callable[[Path], None]] = [own_file, foreign_file, compressed_file]


def read_all(path: Path) -> None:
    """Open a file and touch every tensor; it is closed in any case. Errors name the file."""
    shard = open_shard(path)
    try:
        for name in shard.headers:
            tensor = shard.tensor(name)
            assert tensor.nbytes == shard.headers[name].nbytes
    finally:
        shard.close()


@pytest.mark.parametrize("make", FILES)
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "w.parquet")
    whole = (tmp_path / "w.parquet").read_bytes()
    for length in range(0, len(whole), 13):
        (tmp_path / "w.parquet").write_bytes(whole[:length])
        with pytest.raises(Corrupt, match=r"w\.parquet"):
            read_all(tmp_path / "w.parquet")


@pytest.mark.parametrize("make", FILES)
@given(data=st.data())
def test_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], None], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "w.parquet"
    make(path)
    damaged = bytearray(path.read_bytes())
    footer = len(damaged) - 8 - int.from_bytes(damaged[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(data.draw(st.sampled_from([0, footer])), len(damaged) - 1))
        noise = data.draw(
            st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00", b"\x80" * 9]) | st.binary(max_size=5)
        )
        damaged[at : at + data.draw(st.sampled_from([0, len(noise), 3]))] = noise
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):
        read_all(path)


def with_index(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The own file with another index: rewritten by Arrow, so that everything else is in order."""
    own_file(path)
    raw = path.read_bytes()
    index = json.loads(pq.read_metadata(path).metadata[b"aios.index"])
    change(index)
    table = pq.read_table(path).replace_schema_metadata({"aios.format": "2", "aios.index": json.dumps(index)})
    assert raw[:4] == b"PAR1"
    # The offsets stay those of the original, so the data part must be the original's as well.
    rewritten = pa.BufferOutputStream()
    with pq.ParquetWriter(rewritten, table.schema, compression="none", use_dictionary=False) as writer:
        writer.write_table(table, row_group_size=1)
    tail = rewritten.getvalue().to_pybytes()
    length = int.from_bytes(tail[-8:-4], "little")
    end = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    path.write_bytes(raw[:end] + tail[-8 - length :])
    return path


def test_an_index_that_tells_the_truth_is_believed(tmp_path: Path) -> None:
    read_all(with_index(tmp_path / "w.parquet", lambda index: None))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda i: i["w"].update(bytes=121), Corrupt),
        (lambda i: i["w"].update(shape=[6, 6], bytes=144), Corrupt),
        (lambda i: i["w"].update(shape=[2**40, 2**40]), TooLarge),
        (lambda i: i["w"].update(shape=[-6, -5]), DataError),
        (lambda i: i["w"].update(shape="65"), Corrupt),
        (lambda i: i["w"].update(shape=[6.0, 5]), Corrupt),
        (lambda i: i["w"].update(dtype="complex64"), DataError),
        (lambda i: i["w"].update(dtype=["f4"]), DataError),
        (lambda i: i["w"].update(quant_type=["int8"]), DataError),
        (lambda i: i["w"].update(quant_type="int8", quant_axis=0, group_size=0), Corrupt),
        (lambda i: i["w"].update(sha256="../../etc/passwd"), Corrupt),
        (lambda i: i["w"].update(offsets={"data": 2**40}), Corrupt),
        (lambda i: i["w"].update(offsets={"data": -64}), Corrupt),
        (lambda i: i["w"].update(offsets={"data": 0}), Corrupt),
        (lambda i: i["w"].update(offsets={"data": 64}), Corrupt),
        (lambda i: i["w"].update(offsets={"data": "128"}), Corrupt),
        (lambda i: i["w"].update(offsets={}), Corrupt),
        (lambda i: i["w"].update(offsets=None), Corrupt),
        (lambda i: i["q"].pop("quant_axis"), Corrupt),
        (lambda i: i["q"]["offsets"].pop("scales"), Corrupt),
        (lambda i: i["q"]["offsets"].update(scales=i["q"]["offsets"]["zero_points"]), Corrupt),
        (lambda i: i["d"].pop("scale_codec"), Corrupt),
        (lambda i: i["d"].update(scale_codec="rans"), BadWeights),
        (lambda i: i["d"].update(scale_codec=["double4"]), BadWeights),
        (lambda i: i["d"].update(scale_codec=None), BadWeights),
        (lambda i: i["w"].update(scale_codec="double4"), BadWeights),
        (lambda i: i["q"].update(scale_codec="double4"), BadWeights),
        (lambda i: i["d"].update(group_size=1), Corrupt),
        (lambda i: i["d"]["offsets"].update(scales=i["d"]["offsets"]["zero_points"]), Corrupt),
        (lambda i: i.update(x=dict(i["w"])), Corrupt),
        (lambda i: i.update({"a\nb": i.pop("w")}), DataError),
        (lambda i: i.update({"": i.pop("w")}), DataError),
        (lambda i: i.update(w=5), Corrupt),
        (lambda i: i.update(w=None), Corrupt),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], error: type[DataError]
) -> None:
    path = with_index(tmp_path / "w.parquet", change)
    with pytest.raises(error) as caught:
        read_all(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("index", ["{", "[]", "3", "null", "[" * 100_000, '"x"'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    table = pa.table({name: [] for name in SCHEMA_V1.names}, SCHEMA_V1).replace_schema_metadata({"aios.index": index})
    pq.write_table(table, tmp_path / "w.parquet")
    with pytest.raises(Corrupt, match="not an index"):
        read_all(tmp_path / "w.parquet")


def test_a_bool_tensor_holds_bools_only(tmp_path: Path) -> None:
    own_file(tmp_path / "w.parquet")
    raw = bytearray((tmp_path / "w.parquet").read_bytes())
    at = json.loads(pq.read_metadata(tmp_path / "w.parquet").metadata[b"aios.index"])["flags"]["offsets"]["data"]
    raw[at] = 7
    (tmp_path / "w.parquet").write_bytes(raw)
    with pytest.raises(DataError, match="other than 0 and 1"):
        read_all(tmp_path / "w.parquet")


DOUBLE4: dict[str, Any] = {
    "quant_type": ["int2"], "quant_axis": [-1], "group_size": [4], "extra": ['{"codec": "double4"}'],
    "data": [bytes(2)], "scales": [bytes.fromhex("003811")], "zero_points": [bytes(1)],
}  # fmt: skip
"""A row of 6 values in two groups that can be read; with shape [2, 3]."""


def test_rows_of_compact_scales_are_read(tmp_path: Path) -> None:
    read_all(write_rows(tmp_path / "w.parquet", DOUBLE4))


def write_rows(path: Path, change: dict[str, Any], schema: pa.Schema | None = None, **options: Any) -> Path:
    columns: dict[str, Any] = {
        "layer_name": ["a"],
        "shape": [[2, 3]],
        "dtype": ["float32"],
        "data": [bytes(24)],
        "num_params": [6],
    }
    columns.update(change)
    pq.write_table(
        pa.table({key: value for key, value in columns.items() if value is not ...}, schema), path, **options
    )
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_name": ["a", "a"], "shape": [[2, 3]] * 2, "dtype": ["float32"] * 2, "data": [bytes(24)] * 2,
          "num_params": [6, 6]}, "twice"),
        ({"layer_name": ["a\tb"]}, "control characters"),
        ({"layer_name": ["x" * 1000]}, "longer than 512"),
        ({"layer_name": ["x" * 10_000]}, "a text of 10000 bytes"),
        ({"layer_name": pa.array([None], pa.string())}, "no name"),
        ({"layer_name": [7]}, "column 'layer_name' is int64; string is needed"),
        ({"layer_name": pa.array(["a"]).dictionary_encode()}, "string is needed"),
        ({"num_params": ["6"]}, "column 'num_params' is string; int64 is needed"),
        ({"data": ["text"]}, "large_binary is needed"),
        ({"shape": [3]}, "is needed"),
        ({"shape": [[2**40, 2**40]]}, "would need more"),
        ({"shape": [[-2, -3]]}, "negative side"),
        ({"shape": [[None, 3]]}, "not a list of numbers"),
        ({"shape": ["23"]}, "is needed"),
        ({"shape": [["2", "3"]]}, "is needed"),
        ({"shape": [[1] * 32 + [6]]}, "33 dimensions"),
        ({"shape": [[1] * 5000 + [6]]}, "values"),
        ({"num_params": [7]}, "cannot have 7 values"),
        ({"dtype": ["object"]}, "not supported"),
        ({"data": [bytes(23)]}, "24 bytes of data are needed; the file holds 23"),
        ({"data": pa.array([None], pa.binary())}, "holds none"),
        ({"data": [[1, 2]]}, "is needed"),
        ({"data": ...}, "column 'data' is missing"),
        ({"quant_type": ["int8"]}, "its quant_axis is 'None'"),
        ({"quant_type": ["int8"], "quant_axis": [0], "group_size": [0], "data": [bytes(6)]}, "bytes of scales"),
        ({"quant_type": ["nf4"], "quant_axis": [0], "group_size": [0]}, "no quantisation 'nf4'"),
        ({"quant_type": ["none"], "extra": ['{"codec": "rans"}']}, "encoded as 'rans'"),
        ({"quant_type": ["none"], "extra": ["[]"]}, "no JSON object"),
        ({"quant_type": ["none"], "extra": ['{"codec": ["double4"]}']}, "encoded as"),
        ({"quant_type": ["none"], "extra": ['{"codec": "double4"}']}, "'none' has no scales of 4 bits"),
        ({**DOUBLE4, "quant_type": ["int8"]}, "'int8' has no scales of 4 bits"),
        ({**DOUBLE4, "extra": ["{}"]}, "8 bytes of scales are needed; the file holds 3"),
        ({**DOUBLE4, "scales": [bytes(4)]}, "3 bytes of scales are needed; the file holds 4"),
        ({**DOUBLE4, "zero_points": [b""]}, "1 bytes of zero_points are needed; the file holds"),
        ({**DOUBLE4, "group_size": [1]}, "bytes of scales are needed; the file holds 3"),
        ({**DOUBLE4, "scales": [bytes.fromhex("003810")]}, "a scale code is 0"),
        ({**DOUBLE4, "scales": [bytes.fromhex("000011")]}, "a step of scales is not"),
        ({**DOUBLE4, "scales": [bytes.fromhex("007c11")]}, "a step of scales is not"),
        ({**DOUBLE4, "scales": [bytes.fromhex("01fe11")]}, "a step of scales is not"),
        ({**DOUBLE4, "data": [bytes.fromhex("0010")]}, "padding bits after the last of the codes"),
    ],
)  # fmt: skip
def test_rows_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "w.parquet", change)
    with pytest.raises(DataError, match=message):
        read_all(path)


def test_newer_formats_are_refused_by_name(tmp_path: Path) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"aios.format": "3"})
    pq.write_table(table, tmp_path / "w.parquet")
    with pytest.raises(Corrupt, match="newer"):
        open_shard(tmp_path / "w.parquet")


BOMBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zeros that decompress to 100 MB": (
        {"data": [bytes(100_000_000)], "shape": [[25_000_000]], "num_params": [25_000_000]},
        {"compression": "zstd", "use_dictionary": False},
    ),
    "one name in a dictionary, a hundred thousand times": (
        {
            "layer_name": ["x" * 1_000_000] * 100_000,
            "shape": [[1]] * 100_000,
            "dtype": ["float32"] * 100_000,
            "data": [bytes(4)] * 100_000,
            "num_params": [1] * 100_000,
        },
        {"compression": "none", "store_schema": False},
    ),
}


@pytest.fixture(scope="module", params=list(BOMBS))
def bomb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file that becomes very large when read without looking; made by another process."""
    path = tmp_path_factory.mktemp("bomb") / "w.parquet"
    change, options = BOMBS[request.param]
    names = change.get("layer_name")
    if names:
        change = change | {"layer_name": pa.DictionaryArray.from_arrays(np.zeros(len(names), np.int32), names[:1])}
    return write_rows(path, change, **options)


def test_small_files_do_not_become_large(bomb: Path) -> None:
    """In a process of its own, because Arrow counts the most memory that a process ever had."""
    program = (
        "import sys, pyarrow as pa\n"
        "from pathlib import Path\n"
        "from aios_node.engine.errors import DataError\n"
        "from aios_node.engine.weights.parquet import open_shard\n"
        "try:\n"
        "    open_shard(Path(sys.argv[1]))\n"
        "except DataError as error:\n"
        "    print(type(error).__name__, pa.default_memory_pool().max_memory())\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(bomb)], capture_output=True, text=True, check=True)
    name, most = run.stdout.split()
    assert name in ("TooLarge", "Corrupt")
    assert int(most) < 2**26


def test_rows_have_a_largest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_file(tmp_path / "w.parquet")
    monkeypatch.setattr("aios_node.engine.weights.footer.MAX_TENSORS", 1)
    with pytest.raises(TooLarge, match="more than 1 rows"):
        open_shard(tmp_path / "w.parquet")


PAGE = bytes([0x15, 0, 0x15, 8, 0x15, 8, 0x2C, 0x15, 2, 0, 0])
"""A data page header: type 0, 4 bytes decompressed, 4 stored, one value."""


def test_pages_are_counted() -> None:
    check_pages(memoryview(PAGE + b"abcd" + PAGE + b"efgh"), 2, 8)
    for values, size in [(1, 8), (2, 7)]:
        with pytest.raises(Corrupt, match="pages claim"):
            check_pages(memoryview(PAGE + b"abcd" + PAGE + b"efgh"), values, size)


@pytest.mark.parametrize(
    "data",
    [
        PAGE, PAGE + b"abc", PAGE[:5], b"\0", b"\x15", b"\x15" + b"\xff" * 20, b"\x1f\x00", b"\x18\xff\xff\xff\x7f",
        b"\x1c" * 50, b"\x19\xfc\xff\xff\xff\x7f", b"\x19" * 40, bytes([0x15, 0, 0x15, 7, 0x15, 8, 0]),
        bytes([0x15, 0, 0x05, 2, 0, 0]), b"\x17\x00",
    ],
)  # fmt: skip
def test_page_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        check_pages(memoryview(data), 100, 100)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_corrupt(data: bytes) -> None:
    try:
        _, length = read_struct(data)
    except Corrupt:
        return
    assert length <= len(data)


def test_footers_of_others_are_walked_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_file(tmp_path / "w.parquet")
    assert [group.rows for group in read_row_groups(map_file(tmp_path / "w.parquet"))] == [2]
    monkeypatch.setattr("aios_node.engine.weights.footer.MAX_WALKED_BYTES", 10)
    with pytest.raises(TooLarge, match="footer"):
        open_shard(tmp_path / "w.parquet")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """With a limit on the size of files, which the kernel enforces as it would a full disk."""
    program = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from aios_node.engine.errors import StorageFull\n"
        "from aios_node.engine.weights.parquet import write_shard\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_shard(Path(sys.argv[1]), {'w': np.ones(10**6)})\n"
        "except StorageFull as error:\n"
        "    print(error.message)\n"
    )
    path = tmp_path / "w.parquet"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert "free some space" in run.stdout
    assert str(path) in run.stdout
    assert (run.stderr, list(tmp_path.iterdir())) == ("", [])
    assert StorageFull.retryable


def test_a_failing_write_closes_and_removes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, tensor: Tensor) -> None:
        raise Corrupt("a lazily read source ended early")

    monkeypatch.setattr(parquet, "row_of", broken)
    with pytest.raises(Corrupt, match="tensor 'w': a lazily"):
        write_shard(tmp_path / "w.parquet", sample())
    assert list(tmp_path.iterdir()) == []
