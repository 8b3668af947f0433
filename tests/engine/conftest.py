"""Encoders for the engine's tests: the real MiniLM as a version folder, and a tiny one with the same tokeniser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import tensor_shapes
from aios_node.engine.weights.folder import write_folder

AIOS = {"kind": "encoder", "pooling": "mean", "normalize": True, "max_tokens": 256, "embedding_space": "minilm"}


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_test_process() -> Iterator[None]:
    """Test processes share the cores; torch's threads wait for each other actively and would fight for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def minilm_weights(minilm_folder: Path) -> dict[str, Any]:
    """MiniLM's tensors, as they are in its safetensors file."""
    return load_file(minilm_folder / "model.safetensors")


@pytest.fixture(scope="session")
def minilm_files(minilm_folder: Path) -> dict[str, bytes]:
    """The small files of a MiniLM version."""
    config = json.loads((minilm_folder / "config.json").read_text()) | {"aios": AIOS}
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": (minilm_folder / "tokenizer.json").read_bytes(),
    }


@pytest.fixture(scope="session")
def minilm_version(
    minilm_weights: dict[str, Any], minilm_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """MiniLM in FP32 as a version folder."""
    return write_folder(tmp_path_factory.mktemp("minilm") / "fp32", minilm_weights, minilm_files).path


@pytest.fixture(scope="session")
def tiny_files(minilm_files: dict[str, bytes]) -> dict[str, bytes]:
    """A two-layer encoder's configuration, with MiniLM's tokeniser."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads(minilm_files["config.json"]) | shape | {"max_position_embeddings": 64}
    config["aios"] = AIOS | {"max_tokens": 32, "embedding_space": "tiny"}
    return minilm_files | {"config.json": json.dumps(config).encode()}


@pytest.fixture(scope="session")
def tiny_weights(tiny_files: dict[str, bytes]) -> Callable[[int], dict[str, Any]]:
    """Makes random weights of the tiny encoder from a seed."""

    def make(seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        shapes = tensor_shapes(EncoderConfig.from_bytes(tiny_files["config.json"]))
        weights = {name: (random.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
        norms = (name for name in weights if name.endswith("LayerNorm.weight"))
        return weights | {name: weights[name] + np.float32(1) for name in norms}

    return make


@pytest.fixture(scope="session")
def tiny_versions(
    tiny_weights: Callable[[int], dict[str, Any]],
    tiny_files: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Two versions of the tiny encoder."""
    root = tmp_path_factory.mktemp("tiny")
    old, new = (write_folder(root / str(seed), tiny_weights(seed), tiny_files).path for seed in (1, 2))
    return old, new
