"""kill -9 in the middle of quantising: the next run goes on, and ends in the bytes of one that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import tensor_shapes
from aios_node.engine.quant.recipe import preset
from aios_node.engine.weights.folder import write_folder

KILLS = 8  # per method, spread over the whole run

OPTIONS: dict[str, dict[str, Any]] = {
    "gptq": {"texts": 32},
    "tuned": {"steps": 12, "block_steps": 4, "batch_tokens": 256, "texts": 32, "block_texts": 16},
}


class Quantizer:
    """The other end of ``quantize_crash_child.py``."""

    def __init__(self, process: subprocess.Popen[str], inputs: dict[str, str]) -> None:
        self.process, self.inputs = process, inputs

    def run(self, method: str, root: Path, kill_at: int = 0) -> tuple[int, int]:
        """Reports of a run (0 if it was killed) and its exit status."""
        recipe = {**preset("int2").to_json(), "method": method, "options": OPTIONS[method]}
        command = {**self.inputs, "recipe": recipe, "root": str(root), "kill_at": kill_at}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        reports = 0
        for line in self.process.stdout:
            answer = json.loads(line)
            if "exit" in answer:
                return reports, answer["exit"]
            reports = answer["reports"]
        raise AssertionError("the crash server itself ended")


@pytest.fixture(scope="module")
def quantizer(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quantizer]:
    root = tmp_path_factory.mktemp("source")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads((minilm_folder / "config.json").read_text()) | shape | {"max_position_embeddings": 64}
    config["aios"] = {"kind": "encoder", "pooling": "mean", "normalize": True, "max_tokens": 32}
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": (minilm_folder / "tokenizer.json").read_bytes(),
    }
    random = np.random.default_rng(0)
    shapes = tensor_shapes(EncoderConfig.from_bytes(files["config.json"]))
    weights = {name: (0.2 * random.standard_normal(one)).astype(np.float32) for name, one in shapes.items()}
    write_folder(root / "model", weights, files)
    (root / "texts.txt").write_text(
        "\n\n".join(f"paragraph {n} speaks of the number {n * n} at length" for n in range(40))
    )
    script = Path(__file__).with_name("quantize_crash_child.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Quantizer(process, {"source": str(root / "model"), "texts": str(root / "texts.txt")})
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("method", ["gptq", "tuned"])
def test_killed_anywhere_it_ends_in_the_same_bytes(quantizer: Quantizer, tmp_path: Path, method: str) -> None:
    reports, status = quantizer.run(method, tmp_path / "whole")
    assert status == 0
    wanted = (tmp_path / "whole" / "out" / "manifest.json").read_bytes()
    assert not any((tmp_path / "whole" / "scratch" / "quantizing").iterdir())  # nothing is left behind
    for kill_at in sorted({1 + place * (reports - 1) // KILLS for place in range(KILLS + 1)}):
        root = tmp_path / str(kill_at)
        assert quantizer.run(method, root, kill_at) == (0, -9)
        assert quantizer.run(method, root)[1] == 0
        assert (root / "out" / "manifest.json").read_bytes() == wanted


def test_killed_again_and_again_it_gets_there(quantizer: Quantizer, tmp_path: Path) -> None:
    """Each run is killed a little later in the work than the one before, as far as its checkpoints carry it."""
    reports, _ = quantizer.run("tuned", tmp_path / "whole")
    wanted = (tmp_path / "whole" / "out" / "manifest.json").read_bytes()
    for kill_at in range(reports // 2, reports, 3):
        quantizer.run("tuned", tmp_path / "work", kill_at)
    assert quantizer.run("tuned", tmp_path / "work")[1] == 0
    assert (tmp_path / "work" / "out" / "manifest.json").read_bytes() == wanted
