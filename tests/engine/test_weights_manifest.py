"""Manifests: one spelling, one hash, and no way to smuggle anything in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadWeights, Corrupt, DataError, TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.scales import CompactScales
from aios_node.engine.weights import manifest as module
from aios_node.engine.weights.manifest import FileEntry, Manifest, TensorEntry, build_manifest, tensor_hash

PARENT = "ab" * 32


def quantized() -> QuantizedTensor:
    parts = np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32)
    return QuantizedTensor(np.arange(6, dtype=np.uint8), *parts, (2, 3), "float32", "int8", 0, 0)


def example() -> Manifest:
    weights = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": quantized(), "c": np.array(1.5)}
    return build_manifest(
        weights,
        {"config.json": b"{}", "tokenizer.json": b"[]"},
        parents=("cd" * 32, PARENT),
        recipe={"quant": "int8", "ratio": 1.1},
        derived_from={"model": "minilm", "version": PARENT},
    )


def test_a_manifest_round_trips_and_its_version_is_its_hash() -> None:
    manifest = example()
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert manifest.version == hashlib.sha256(data).hexdigest()
    assert [entry.name for entry in manifest.tensors] == ["a", "b", "c"]
    assert manifest.parents == (PARENT, "cd" * 32)
    assert (manifest.quant, manifest.nbytes) == ("int8", 6 + 16 + 24 + 8)
    assert json.loads(data)["format"] == 1


def test_the_order_in_which_things_are_given_does_not_matter() -> None:
    one = example()
    other = Manifest(
        one.tensors[::-1], one.parents[::-1], one.recipe, one.derived_from, dict(reversed(one.files.items()))
    )
    assert other.version == one.version


def test_the_hash_is_of_the_meaning() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = tensor_hash(values)
    header = b'{"dtype":"float32","group_size":0,"quant_axis":-1,"quant_type":"none","shape":[2,3]}\n'
    assert base == hashlib.sha256(header + values.tobytes()).hexdigest()
    assert tensor_hash(np.asfortranarray(values)) == base
    assert tensor_hash(values.astype(">f4")) == base
    different = [values.reshape(3, 2), values.astype(np.float64), values + 1, values.view(np.int32), values[:, ::-1]]
    assert base not in {tensor_hash(each) for each in different}


@pytest.mark.parametrize("part", ["codes", "scales", "zero_points", "dtype", "axis"])
def test_every_part_of_a_quantised_tensor_enters_its_hash(part: str) -> None:
    tensor = quantized()
    parts = dict(tensor.__dict__)
    change = {"dtype": "float16", "axis": 0}.get(part)
    if part == "axis":
        parts |= {"shape": (2, 1, 3)}
    elif change is not None:
        parts[part] = change
    else:
        parts[part] = parts[part] + parts[part].dtype.type(1)
    assert tensor_hash(QuantizedTensor(**parts)) != tensor_hash(tensor)


def compacted() -> QuantizedTensor:
    compact = CompactScales.of(np.array([[0.5]], np.float16), np.array([[2, 3]]), np.array([[4, 15]]))
    return QuantizedTensor.compacted(np.array([0xE4, 0x1B], np.uint8), compact, (8,), "float32", "int2", -1, 4)


def test_compact_scales_are_hashed_as_they_are_stored() -> None:
    header = (
        b'{"dtype":"float32","group_size":4,"quant_axis":-1,"quant_type":"int2","scale_codec":"double4","shape":[8]}\n'
    )
    stored = bytes.fromhex("e41b 0038 32 f4")
    assert tensor_hash(compacted()) == hashlib.sha256(header + stored).hexdigest()
    assert tensor_hash(replace(compacted(), compact=None)) != tensor_hash(compacted())


def test_entries_say_how_scales_are_kept_where_they_are_compact() -> None:
    entry = TensorEntry.of("a", compacted())
    assert (entry.nbytes, entry.scale_codec) == (2 + 2 + 1 + 1, "double4")
    assert entry.to_json()["scale_codec"] == "double4"
    assert "scale_codec" not in TensorEntry.of("a", quantized()).to_json()
    manifest = build_manifest({"a": compacted(), "b": quantized()}, {})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    ("codec", "error"),
    [("float32", Corrupt), ("double5", BadWeights), (None, Corrupt), (["double4"], Corrupt), (..., Corrupt)],
)
def test_entries_that_lie_about_their_scales_are_refused(codec: Any, error: type[Exception]) -> None:
    raw = json.loads(build_manifest({"a": compacted()}, {}).to_bytes())
    with pytest.raises(error):
        Manifest.from_bytes(change(raw, "tensors/0/scale_codec", codec))


@pytest.mark.parametrize("tensor", [np.ones(3, np.float32), quantized()], ids=["plain", "int8"])
def test_what_has_no_compact_scales_cannot_claim_them(tensor: Tensor) -> None:
    raw = json.loads(build_manifest({"a": tensor}, {}).to_bytes())
    with pytest.raises(BadWeights, match="no scales of 4 bits"):
        Manifest.from_bytes(change(raw, "tensors/0/scale_codec", "double4"))


def change(manifest: dict[str, Any], path: str, value: Any) -> bytes:
    at: Any = manifest
    *steps, last = path.split("/")
    for step in steps:
        at = at[int(step) if step.isdigit() else step]
    if value is ...:
        del at[last]
    else:
        at[int(last) if last.isdigit() else last] = value
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("format", 2, Corrupt),
        ("format", ..., Corrupt),
        ("extra", 1, Corrupt),
        ("parents", ["xyz"], Corrupt),
        ("parents", [PARENT, PARENT], Corrupt),
        ("parents", ["cd" * 32, PARENT], Corrupt),
        ("parents", {}, Corrupt),
        ("parents", ["0" * 62 + f"{n:02x}" for n in range(65)], TooLarge),
        ("recipe", [], Corrupt),
        ("recipe", 3, Corrupt),
        ("derived_from", {"model": "m"}, Corrupt),
        ("derived_from", {"model": "m\n", "version": PARENT}, Corrupt),
        ("derived_from", {"model": "m", "version": "1"}, Corrupt),
        ("derived_from", 7, Corrupt),
        ("tensors", {}, Corrupt),
        ("tensors", 5, Corrupt),
        ("tensors/0", None, Corrupt),
        ("tensors/0/name", "", BadWeights),
        ("tensors/0/name", "a\nb", BadWeights),
        ("tensors/0/name", "\ud800", BadWeights),
        ("tensors/0/name", "x" * 600, BadWeights),
        ("tensors/0/name", "ü" * 300, BadWeights),
        ("tensors/0/name", "b", Corrupt),
        ("tensors/0/name", 5, BadWeights),
        ("tensors/0/more", 5, Corrupt),
        ("tensors/0/sha256", "AB" * 32, Corrupt),
        ("tensors/0/nbytes", 23, Corrupt),
        ("tensors/0/nbytes", 22.0, Corrupt),
        ("tensors/0/nbytes", True, Corrupt),
        ("tensors/0/dtype", "object", BadWeights),
        ("tensors/0/dtype", ["f4"], Corrupt),
        ("tensors/0/quant_type", "int3", BadWeights),
        ("tensors/0/quant_axis", 5, BadWeights),
        ("tensors/0/group_size", -1, BadWeights),
        ("tensors/1/quant_axis", 0, BadWeights),
        ("tensors/0/shape", [2**40, 2**40], TooLarge),
        ("tensors/0/shape", [-2, -3], BadWeights),
        ("tensors/0/shape", [1] * 50, BadWeights),
        ("tensors/0/shape", "23", Corrupt),
        ("tensors/0/shape", [int("9" * 4000)], TooLarge),
        ("files", [], Corrupt),
        ("files", {f"f{n}": {"bytes": 0, "sha256": PARENT} for n in range(65)}, TooLarge),
        ("files/config.json", {"bytes": 2}, Corrupt),
        ("files/config.json/bytes", 2**40, TooLarge),
        ("files/config.json/bytes", -1, TooLarge),
        ("files/config.json/bytes", "2", TooLarge),
        ("files/config.json/sha256", "x", Corrupt),
        ("files/Config.json", {"bytes": 0, "sha256": PARENT}, Corrupt),
    ],
)
def test_manifests_that_cannot_be_are_refused(path: str, value: Any, error: type[DataError]) -> None:
    raw = json.loads(example().to_bytes())
    with pytest.raises(error) as caught:
        Manifest.from_bytes(change(raw, path, value))
    assert type(caught.value) is error
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "../config.json", "a/b", "a\\b", "..", ".", ".hidden", "", "/etc/passwd", "a\0b", "a\nb", "weights.parquet",
        "W.PARQUET", "manifest.json", "Manifest.json", "shards.json", "envelope.json", "x" * 200, "ü.json", "C:x",
    ],
)  # fmt: skip
def test_file_names_are_plain(name: str) -> None:
    raw = json.loads(example().to_bytes())
    raw["files"][name] = {"bytes": 0, "sha256": PARENT}
    with pytest.raises(Corrupt, match="file name"):
        Manifest.from_bytes(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(Corrupt, match="file name"):
        build_manifest({}, {name: b""})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b"3", b"\xff\xfe", b"[" * 200_000, b'{"format":1}', b'{"a":' * 100_000,
        b'{"format":1,"format":1}', b"NaN", b"1" * 5000,
    ],
)  # fmt: skip
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Manifest.from_bytes(data)


def test_only_the_canonical_spelling_is_read() -> None:
    data = example().to_bytes()
    for other in (data + b"\n", data.replace(b'"format":1', b'"format": 1'), data.replace(b"1.1", b"1.10")):
        with pytest.raises(Corrupt, match="canonical"):
            Manifest.from_bytes(other)


def test_a_manifest_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = example().to_bytes()
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", len(data) - 1)
    with pytest.raises(TooLarge):
        Manifest.from_bytes(data)
    with pytest.raises(TooLarge):
        example().to_bytes()


@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 40))
def test_damaged_manifests_are_refused(noise: bytes, at: int, cut: int) -> None:
    data = example().to_bytes()
    place = at % len(data)
    damaged = data[:place] + noise + data[place + cut :]
    if damaged != data:
        try:
            read = Manifest.from_bytes(damaged)
        except DataError:
            return
        # Whatever is read was written like that: another manifest, with another version.
        assert read.to_bytes() == damaged
        assert read.version != example().version


def test_entries_describe_their_tensor() -> None:
    entry = TensorEntry.of("a", quantized())
    assert (entry.nbytes, entry.quant_type, entry.shape) == (22, "int8", (2, 3))
    assert FileEntry(PARENT, 3).bytes == 3
