"""An encoder so small that it is trained and quantised in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import tensor_shapes

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def write_encoder(folder: Path, minilm: Path, seed: int, near: float = 1.0, layers: int = 1) -> Path:
    """A tiny encoder as a Hugging Face folder; ``near`` below 1 mixes seed 0's weights in."""
    folder.mkdir()
    config = (
        json.loads((minilm / "config.json").read_text())
        | SMALL
        | {"num_hidden_layers": layers}
        | {"max_position_embeddings": 64}
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
    shapes = tensor_shapes(EncoderConfig.from_bytes((folder / "config.json").read_bytes()))
    first, other = np.random.default_rng(0), np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        mixed = (1 - near) * first.normal(0, 0.2, shape) + near * other.normal(0, 0.2, shape)
        weights[name] = (mixed + name.endswith("LayerNorm.weight")).astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    return folder
