"""What every preset makes can be stored, opened in every mode, and sent as a delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node import delta
from aios_node.engine.nets.packed import PackedMatrix
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.runtime.compare import open_stored
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.weights.folder import read_folder, write_folder
from aios_node.engine.weights.manifest import tensor_hash

TEXTS = ["water", "a house by the bridge", "the engine of the old ship stood still all winter long"]
Weights = Callable[[int], dict[str, Any]]


def hashes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: tensor_hash(tensor) for name, tensor in weights.items()}


@pytest.fixture(params=sorted(presets()))
def preset_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(preset_name: str, tiny_weights: Weights) -> dict[str, Tensor]:
    return ArrowQuantizer(presets()[preset_name]).quantize(tiny_weights(1))


def test_two_bits_have_groups_of_eight(tiny_weights: Weights) -> None:
    made = ArrowQuantizer(presets()["int2"]).quantize(tiny_weights(1))
    tensor = made["encoder.layer.0.output.dense.weight"]
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.quant_type, tensor.group_size, tensor.compact is not None) == ("int2", 8, True)
    matrix = PackedMatrix.of(tensor)
    assert matrix is not None
    assert matrix.has_loops


def test_it_comes_back_from_disk_as_it_was(
    small: dict[str, Tensor], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "version", small, tiny_files).path
    with read_folder(folder).weights() as found:
        assert hashes(found) == hashes(small)


@pytest.mark.parametrize("mode", ["int8", "packed", "float32", "auto"])
def test_it_answers_as_its_weights_say_in_every_mode(
    small: dict[str, Tensor], tiny_files: dict[str, bytes], tmp_path: Path, mode: str
) -> None:
    folder = write_folder(tmp_path / "version", small, tiny_files).path
    expected = open_stored(folder).encode(TEXTS)
    with ArrowEngine.open(folder, device="cpu", mode=mode) as engine:
        found = np.concatenate([engine.encode(TEXTS), engine.encode(TEXTS[:1])])
    assert (found * np.concatenate([expected, expected[:1]])).sum(axis=1).min() > 0.995


def test_a_new_version_travels_as_a_delta(preset_name: str, small: dict[str, Tensor], tiny_weights: Weights) -> None:
    """Scales frozen, as for a source that changed a little, and a version with scales of its own."""
    first, other = tiny_weights(1), tiny_weights(2)
    moved = {name: one + np.float32(0.01) * (other[name] - one) for name, one in first.items()}
    quantizer = ArrowQuantizer(presets()[preset_name])
    for target in (quantizer.quantize(moved, previous=small), quantizer.quantize(other)):
        assert hashes(target) != hashes(small)
        assert hashes(delta.apply(small, delta.encode(small, target))) == hashes(target)
