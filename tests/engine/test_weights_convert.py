"""Importers and exporters: bit by bit for good files, one clear error for every bad one."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest, BadWeights, Corrupt, DataError, NotFound, StorageError, TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dense
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.weights.convert.detect import IMPORTERS, detect, import_any
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.convert.safetensors import export_file
from aios_node.engine.weights.convert.source import check_finite
from aios_node.engine.weights.folder import write_folder
from aios_node.engine.weights.manifest import tensor_hash
from aios_node.engine.weights.parquet import write_shard

KINDS = [
    np.float32, np.float16, np.float64, np.int64, np.int8, np.uint8, np.uint16, np.bool_,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
]  # fmt: skip


def sample() -> dict[str, Tensor]:
    random = np.random.default_rng(2)
    found: dict[str, Tensor] = {np.dtype(kind).name: random.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    return found | {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32), "ünï.✓": np.ones(1, np.float32)}


def assert_same(found: Any, expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert all(tensor_hash(found[name]) == tensor_hash(tensor) for name, tensor in expected.items())


def test_minilm_is_exported_byte_for_byte(minilm_folder: Path, tmp_path: Path) -> None:
    source = import_any(minilm_folder / "model.safetensors")
    export_file(tmp_path / "out.safetensors", source.weights)
    assert (tmp_path / "out.safetensors").read_bytes() == (minilm_folder / "model.safetensors").read_bytes()
    source.close()


def test_minilm_survives_parquet_byte_for_byte(minilm_version: Path, minilm_folder: Path, tmp_path: Path) -> None:
    source = import_any(minilm_version)
    assert source.kind == "encoder"
    export_file(tmp_path / "out.safetensors", source.weights)
    assert (tmp_path / "out.safetensors").read_bytes() == (minilm_folder / "model.safetensors").read_bytes()


def test_safetensors_round_trip_every_dtype(tmp_path: Path) -> None:
    export_file(tmp_path / "a.safetensors", sample())
    source = import_any(tmp_path / "a.safetensors")
    assert_same(source.weights, sample())
    assert (source.files, source.kind) == ({}, "weights")
    assert not any(tensor.flags.writeable for tensor in source.weights.values() if isinstance(tensor, np.ndarray))
    source.close()


def test_the_formats_own_library_agrees(tmp_path: Path) -> None:
    plain = {name: np.asarray(dense(sample()[name])) for name in ("float32", "int64", "bool", "scalar", "empty")}
    export_file(tmp_path / "ours.safetensors", plain)
    found = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert_same(found, dict(plain))
    safetensors.numpy.save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "theirs.safetensors").read_bytes() == (tmp_path / "ours.safetensors").read_bytes()


def test_quantised_weights_are_exported_dequantised(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {"w": np.random.default_rng(1).normal(size=(4, 40)).astype(np.float16)}
    quantised = ArrowQuantizer(presets()["int4"]).quantize(weights)
    export_file(tmp_path / "a.safetensors", quantised)
    tensor = quantised["w"]
    assert isinstance(tensor, QuantizedTensor)
    assert_same(import_any(tmp_path / "a.safetensors").weights, {"w": tensor.dequantize()})


def test_exporting_overwrites_nothing_and_leaves_nothing_broken(tmp_path: Path) -> None:
    export_file(tmp_path / "a.safetensors", sample())
    with pytest.raises(StorageError):
        export_file(tmp_path / "a.safetensors", sample())
    for name, value in (("__metadata__", np.ones(2)), ("w", np.ones(2, complex)), ("a\0", np.ones(2))):
        with pytest.raises(BadWeights):
            export_file(tmp_path / "b.safetensors", {name: value})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def raw_safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"w": entry(shape=[3])}, Corrupt),
        ({"w": entry(shape=[2**40, 2**40])}, TooLarge),
        ({"w": entry(shape=[2**61, 2**3], offsets=[0, 0])}, TooLarge),
        ({"w": entry(shape=[-2])}, BadWeights),
        ({"w": entry(shape=[2.0])}, Corrupt),
        ({"w": entry(shape=2)}, Corrupt),
        ({"w": entry(shape=[1] * 40)}, BadWeights),
        ({"w": entry(dtype="F4")}, BadWeights),
        ({"w": entry(dtype=None)}, BadWeights),
        ({"w": entry(offsets=[0, 9])}, Corrupt),
        ({"w": entry(offsets=[8, 16])}, Corrupt),
        ({"w": entry(offsets=[-8, 0])}, Corrupt),
        ({"w": entry(offsets=[8, 0])}, Corrupt),
        ({"w": entry(offsets=[0])}, Corrupt),
        ({"w": entry(offsets=["0", "8"])}, Corrupt),
        ({"w": entry(offsets=[0, 2**70])}, Corrupt),
        ({"w": entry(), "v": entry()}, Corrupt),
        ({"w": entry(), "v": entry(shape=[1], offsets=[4, 8])}, Corrupt),
        ({"w": 3}, Corrupt),
        ({"w\n": entry()}, BadWeights),
        ({"": entry()}, BadWeights),
        ({"x" * 1000: entry()}, BadWeights),
        (b'{"w": %s, "w": %s}' % ((json.dumps(entry()).encode(),) * 2), Corrupt),
        (b"[]", Corrupt),
        (b"{", Corrupt),
        (b"", Corrupt),
        (b"\xff\xff", Corrupt),
        (b"[" * 100_000, Corrupt),
        (b'{"a":' * 100_000, Corrupt),
        ({}, Corrupt),
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path: Path, header: Any, error: type[DataError]) -> None:
    path = raw_safetensors(tmp_path / "w.safetensors", header, b"\0" * 8)
    with pytest.raises(error, match=r"w\.safetensors") as caught:
        import_any(path)
    assert type(caught.value) is error
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 7, b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"\x09" + bytes(7)]
)
def test_safetensors_headers_are_bounded(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(Corrupt):
        import_any(tmp_path / "w.safetensors")


def test_a_header_larger_than_the_format_allows_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(200_000_100)
    with pytest.raises(TooLarge):
        import_any(tmp_path / "w.safetensors")


@given(data=st.data())
def test_damaged_safetensors_are_an_error_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "w.safetensors"
    export_file(path, {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int8)})
    damaged = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    path.write_bytes(damaged)
    try:
        source = import_any(path)
    except DataError:
        return
    assert sum(tensor.nbytes for tensor in source.weights.values()) <= 28


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["safetensors", "parquet", "pytorch", "hf"])
def test_nan_and_infinity_are_refused_by_name(tmp_path: Path, minilm_folder: Path, kind: str, value: float) -> None:
    weights: dict[str, Tensor] = {"fine": np.ones(3, np.float32), "broken": np.array([1, value], np.float16)}
    path = tmp_path / {"safetensors": "a.safetensors", "parquet": "a.parquet", "pytorch": "a.bin", "hf": "m"}[kind]
    if kind == "pytorch":
        torch.save({name: torch.from_numpy(dense(tensor)) for name, tensor in weights.items()}, path)
    elif kind == "parquet":
        write_shard(path, weights)
    elif kind == "hf":
        copy_folder(minilm_folder, path)
        export_file(path / "model.safetensors", weights)
    else:
        export_file(path, weights)
    with pytest.raises(BadWeights, match="'broken' holds NaN or Inf"):
        import_any(path)


def test_quantised_tensors_are_checked_by_what_they_mean() -> None:
    def tensor(scale: float, zero_point: float = 0, dtype: str = "float32") -> QuantizedTensor:
        parts = np.array([[scale]], np.float32), np.array([[zero_point]], np.float32)
        return QuantizedTensor(np.zeros(4, np.uint8), *parts, (4,), dtype, "int8", -1, 0)

    check_finite("w", tensor(1.0))
    check_finite("w", tensor(500.0, dtype="float16"))
    for bad in (tensor(np.nan), tensor(np.inf), tensor(1e38), tensor(1.0, np.nan), tensor(600.0, dtype="float16")):
        with pytest.raises(BadWeights):
            check_finite("w", bad)


def copy_folder(source: Path, target: Path) -> Path:
    """A Hugging Face folder without its weights."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


SMALL: dict[str, Tensor] = {"a.weight": np.ones((2, 3), np.float32), "b.weight": np.zeros(4, np.float32)}


@pytest.fixture
def folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """MiniLM's folder with two tiny tensors in it."""
    path = copy_folder(minilm_folder, tmp_path / "model")
    export_file(path / "model.safetensors", SMALL)
    return path


def test_a_folder_brings_all_that_its_vectors_depend_on(folder: Path) -> None:
    source = import_folder(folder)
    assert_same(source.weights, SMALL)
    assert source.kind == "encoder"
    assert set(source.files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    config = json.loads(source.files["config.json"])
    space = config["aios"].pop("embedding_space")
    assert config["aios"] == {"kind": "encoder", "pooling": "mean", "normalize": True, "max_tokens": 256}
    assert config["hidden_size"] == 384
    assert space.startswith("bert-384-")
    assert json.loads(import_folder(folder).files["config.json"])["aios"]["embedding_space"] == space
    named = import_folder(folder, embedding_space="mine")
    assert json.loads(named.files["config.json"])["aios"]["embedding_space"] == "mine"


def test_other_weights_are_another_space(folder: Path) -> None:
    one = json.loads(import_folder(folder).files["config.json"])["aios"]["embedding_space"]
    (folder / "model.safetensors").unlink()
    export_file(folder / "model.safetensors", SMALL | {"b.weight": np.ones(4, np.float32)})
    assert json.loads(import_folder(folder).files["config.json"])["aios"]["embedding_space"] != one


def test_an_imported_folder_can_be_imported_again(folder: Path, tmp_path: Path) -> None:
    source = import_folder(folder)
    written = write_folder(tmp_path / "v", source.weights, source.files)
    again = import_any(written.path)
    assert (again.files, again.kind) == (source.files, "encoder")
    assert_same(again.weights, SMALL)
    (folder / "config.json").write_bytes(source.files["config.json"])
    assert import_folder(folder).files == source.files


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


POOLING = "1_Pooling/config.json"


def test_pooling_and_normalisation_are_read(folder: Path) -> None:
    write_json(
        folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", modules[:2])
    (folder / "sentence_bert_config.json").unlink()
    aios = json.loads(import_folder(folder).files["config.json"])["aios"]
    assert (aios["pooling"], aios["normalize"], aios["max_tokens"]) == ("cls", False, 256)
    (folder / "modules.json").unlink()
    aios = json.loads(import_folder(folder).files["config.json"])["aios"]
    assert (aios["pooling"], aios["normalize"]) == ("mean", True)


def test_other_kinds_of_models_are_weights(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "llama"})
    (folder / "tokenizer.json").unlink()
    source = import_folder(folder)
    assert source.kind == "weights"
    assert json.loads(source.files["config.json"])["aios"] == {"kind": "weights"}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), Corrupt, "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), Corrupt, "not a JSON object"),
        (lambda f: (f / "config.json").write_text('{"x": NaN}'), Corrupt, "NaN"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), Corrupt, "not valid JSON"),
        (lambda f: (f / "config.json").unlink(), NotFound, "config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), BadWeights, "no tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), NotFound, "holds no weights"),
        (lambda f: (f / "modules.json").write_text("{}"), Corrupt, "list of modules"),
        (lambda f: write_json(f / "modules.json", [{"type": "x.Dense"}]), BadWeights, "'Dense'"),
        (lambda f: write_json(f / "modules.json", [{"type": "x.Pooling", "path": "../x"}]), Corrupt, "plain name"),
        (lambda f: write_json(f / "modules.json", [{"type": "x.Pooling"}]), Corrupt, "plain name"),
        (lambda f: write_json(f / POOLING, {"pooling_mode_max_tokens": True}), BadWeights, "pools by"),
        (lambda f: write_json(f / POOLING, {}), BadWeights, "pools by"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used_say_why(
    folder: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        import_folder(folder)
    assert type(caught.value) is error


def sharded(folder: Path, listed: Any) -> Path:
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(SMALL, 1):
        export_file(folder / f"model-{number}.safetensors", {name: SMALL[name]})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": listed})
    return folder


TRUE_MAP = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}


def test_sharded_folders_are_read(folder: Path) -> None:
    assert_same(import_folder(sharded(folder, TRUE_MAP)).weights, SMALL)


@pytest.mark.parametrize(
    "listed",
    [
        {**TRUE_MAP, "b.weight": "../model/model-2.safetensors"},
        {**TRUE_MAP, "b.weight": "/etc/passwd"},
        {**TRUE_MAP, "b.weight": "model-1.safetensors"},
        {**TRUE_MAP, "c.weight": "model-2.safetensors"},
        {"a.weight": "model-1.safetensors", "x": "model-2.safetensors"},
        {**TRUE_MAP, "b.weight": 5},
        [],
        None,
    ],
)
def test_sharded_folders_that_lie_are_refused(folder: Path, listed: Any) -> None:
    with pytest.raises(Corrupt):
        import_folder(sharded(folder, listed))


def test_missing_shards_are_named(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"model-3\.safetensors"):
        import_folder(sharded(folder, {**TRUE_MAP, "c": "model-3.safetensors"}))


def test_shards_must_not_repeat_a_tensor(folder: Path) -> None:
    sharded(folder, {**TRUE_MAP, "c": "model-3.safetensors"})
    export_file(folder / "model-3.safetensors", {"c": np.ones(2), "a.weight": SMALL["a.weight"]})
    with pytest.raises(Corrupt, match="in two files"):
        import_folder(folder)


def as_torch() -> dict[str, torch.Tensor]:
    return {
        "w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "t": torch.arange(6, dtype=torch.float16).reshape(2, 3).T,
        "b": torch.ones(3, dtype=torch.bfloat16),
        "e": torch.ones(2, dtype=torch.float8_e5m2),
        "n": torch.tensor(4),
    }


EXPECTED: dict[str, Tensor] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "t": np.arange(6, dtype=np.float16).reshape(2, 3).T,
    "b": np.ones(3, ml_dtypes.bfloat16),
    "e": np.ones(2, ml_dtypes.float8_e5m2),
    "n": np.array(4),
}


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "module", "model"])
@pytest.mark.parametrize("old_format", [True, False])
def test_checkpoints_are_read(tmp_path: Path, nest: str | None, old_format: bool) -> None:
    # torch itself cannot read float8 from its old format.
    tensors = {name: tensor for name, tensor in as_torch().items() if not (old_format and name == "e")}
    content: Any = {nest: tensors, "epoch": 3, "lr": 0.1} if nest else tensors
    torch.save(content, tmp_path / "m.ckpt", _use_new_zipfile_serialization=not old_format)
    assert_same(import_any(tmp_path / "m.ckpt").weights, {name: EXPECTED[name] for name in tensors})


def test_a_folder_with_a_checkpoint_is_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
    assert_same(import_any(folder).weights, {"a": np.ones(2, np.float32)})


class Payload:
    """What a malicious checkpoint does when unpickled: run something."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_checkpoints_do_not_run_code(tmp_path: Path) -> None:
    torch.save({"w": Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"w": Payload(tmp_path / "ran")}))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(Corrupt, match="read safely"):
            import_any(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"w": torch.ones(1).expand(2**38)}, BadWeights),
        ({"w": torch.ones(2, 2).to_sparse()}, BadWeights),
        ({"w": torch.ones(2, dtype=torch.complex64)}, BadWeights),
        ({"w\n": torch.ones(2)}, BadWeights),
        ({3: torch.ones(2)}, BadWeights),
        ([torch.ones(2)], BadWeights),
        (torch.ones(2), BadWeights),
        ({"a": 1}, BadWeights),
    ],
    ids=str,
)
def test_checkpoints_without_usable_tensors_are_refused(tmp_path: Path, content: Any, error: type[Exception]) -> None:
    torch.save(content, tmp_path / "m.bin")
    with pytest.raises(error, match=r"m\.bin"):
        import_any(tmp_path / "m.bin")


def test_damaged_checkpoints_are_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(as_torch(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"m\.pt"):
            import_any(path)


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    """A record that decompresses to anything at all."""
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record.filename))
    with pytest.raises(Corrupt, match="compressed"):
        import_any(tmp_path / "bomb.pt")


def test_formats_are_detected(tmp_path: Path, folder: Path) -> None:
    assert detect(folder) == "hf"
    for name, kind in (
        ("a.safetensors", "safetensors"),
        ("a.BIN", "pytorch"),
        ("a.ckpt", "pytorch"),
        ("a.parquet", "parquet"),
    ):
        (tmp_path / name).touch()
        assert detect(tmp_path / name) == kind
    assert detect(tmp_path) == "parquet"
    assert set(IMPORTERS) == {"hf", "safetensors", "pytorch", "parquet"}


def test_what_cannot_be_imported_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="known endings"):
        import_any(tmp_path / "a.txt")
    with pytest.raises(BadRequest, match="no model folder"):
        import_any(tmp_path / "empty")
    with pytest.raises(BadRequest, match="did you mean safetensors"):
        import_any(tmp_path / "a.txt", "safetensor")
    with pytest.raises(NotFound, match="nowhere"):
        import_any(tmp_path / "nowhere")
    with pytest.raises(NotFound):
        import_any(tmp_path / "a.txt", "hf")
    with pytest.raises(NotFound):
        import_any(tmp_path / "empty", "pytorch")


def test_plain_parquet_folders_are_imported(tmp_path: Path) -> None:
    weights = {"w": np.ones((2, 2), np.float32)}
    write_shard(tmp_path / "x.parquet", weights)
    (tmp_path / "config.json").write_text('{"aios": {"kind": "encoder"}}')
    source = import_any(tmp_path)
    assert_same(source.weights, dict(weights))
    assert (source.kind, set(source.files)) == ("encoder", {"config.json"})


def test_a_model_without_tensors_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.parquet", {})
    with pytest.raises(BadWeights, match="no tensors"):
        import_any(tmp_path / "x.parquet")


def test_version_1_is_imported(tmp_path: Path) -> None:
    table = pa.table(
        {"layer_name": ["w"], "shape": [[2]], "dtype": ["float16"], "data": [b"\0\0\0\x3c"], "num_params": [2]}
    )
    pq.write_table(table, tmp_path / "old.parquet")
    assert_same(import_any(tmp_path / "old.parquet").weights, {"w": np.array([0, 1], np.float16)})


def test_weights_are_read_without_torch() -> None:
    """Starting a node must not wait for torch; only checkpoints need it."""
    program = (
        "import sys\n"
        "import aios_node.engine.weights.convert.detect, aios_node.engine.weights.folder, aios_node.engine.quant.ptq\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
