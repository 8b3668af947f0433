"""Files written long ago still read the same, and what a version is called does not change."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import QuantizationConfig, presets
from aios_node.engine.weights.manifest import build_manifest, tensor_hash
from aios_node.engine.weights.parquet import open_shard

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "weights"

VERSION = "dfa695e78017c27a885f2d745b03fa54f7bcdbc4801d02236fcac8057ded64ef"
"""The id of the golden tensors and files as a version: it must never change."""

QUANTIZED = {
    "int8": "c01e2c426ae7872b4f737fd927629c527a61a8a444a7206722c34d85ef34e243",
    "int4": "2e0b953699becad7afa7487030e734cbcd6dc0a229b60e7b19a42658272c478d",
    "int2": "b7947712f16f53677e75a2548c7f0ba929771bbaddbd4ff655d45f4f1999d3cf",
    "double4.int4": "02e06d697382cc4d494a43e507efa89980cb9b90052bd50a93d0571e0c2d0f90",
    "double4.int4.g16": "63dd545e92bc26975537702baa115abf7bea67c413f2f3efe0a2baa6666da759",
    "double4.int2": "a18f6b2366affed99df5f850bc9510dcc53c674d095f4b2b870e21a7f06d70af",
    "double4.int2.g8": "21457d9dfdd78eb1ef021cff7c8a35507402e2d3c7d0fe2485d293e6dbbf1afe",
    "double4.covering": "c4b11822826213720b24534c647a094f8783fa22ff963c21502632f1d026114c",
}
"""Hashes of a golden matrix after quantisation: the same on every machine, for ever."""


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The generator beside the golden files."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reads(path: Path, expected: dict[str, Tensor]) -> None:
    shard = open_shard(path)
    assert list(shard.headers) == list(expected)
    for name, tensor in expected.items():
        assert tensor_hash(shard.tensor(name)) == tensor_hash(tensor), name
    shard.close()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.v2.parquet")), ids=lambda path: path.name)
def test_old_version_2_files_still_read(generate: ModuleType, path: Path) -> None:
    assert_reads(path, generate.tensors())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.v1.parquet")), ids=lambda path: path.name)
def test_old_version_1_files_still_read(generate: ModuleType, path: Path) -> None:
    assert_reads(path, generate.plain())


def test_there_are_golden_files() -> None:
    assert {path.name for path in GOLDEN.glob("*.parquet")} >= {"2026-11.v1.parquet", "2026-11.v2.parquet"}


def test_the_same_weights_are_the_same_version_for_ever(generate: ModuleType) -> None:
    manifest = build_manifest(
        generate.tensors(),
        generate.FILES,
        parents=["ab" * 32],
        recipe={"quant": "int4", "max_error_ratio": 1.1},
        derived_from={"model": "minilm", "version": "cd" * 32},
    )
    assert manifest.version == VERSION


RECIPES = {
    "int8": QuantizationConfig(symmetric=False),
    "int4": QuantizationConfig("int4", symmetric=False, group_size=32, clip="mse"),
    "int2": QuantizationConfig("int2", symmetric=False, group_size=32, clip="mse"),
    "double4.int4": QuantizationConfig("int4", symmetric=False, group_size=32, clip="mse", scales="double4"),
    "double4.int4.g16": QuantizationConfig("int4", symmetric=False, group_size=16, clip="mse", scales="double4"),
    "double4.int2": QuantizationConfig("int2", symmetric=False, group_size=16, clip="mse", scales="double4"),
    "double4.int2.g8": QuantizationConfig("int2", symmetric=False, group_size=8, clip="mse", scales="double4"),
    "double4.covering": QuantizationConfig("int4", symmetric=True, group_size=16, axis=1, scales="double4"),
}


@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_the_same_weights_get_the_same_codes_on_every_machine(generate: ModuleType, name: str) -> None:
    weights: dict[str, Tensor] = {"w": generate.numbers(33, 70)}
    assert tensor_hash(ArrowQuantizer(RECIPES[name]).quantize(weights)["w"]) == QUANTIZED[name]


@pytest.mark.parametrize(
    ("preset", "recipe"), [("int8", "int8"), ("int4", "double4.int4.g16"), ("int2", "double4.int2.g8")]
)
def test_presets_are_these_recipes(preset: str, recipe: str) -> None:
    assert replace(presets()[preset], overrides=()) == RECIPES[recipe]
