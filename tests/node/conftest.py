"""Real nodes for tests: ``aios-node run`` processes in temporary folders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios_node.node.demo.processes import DemoNode

SUPPORT = str(Path(__file__).resolve().parent.parent / "delta" / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)  # peers in memory, for the tests of the sync driver

MakeNode = Callable[..., DemoNode]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Make (and start) nodes; whatever still runs at the end is stopped."""
    nodes: list[DemoNode] = []

    def make(name: str = "alpha", *, tls: str = "off", start: bool = True, config: str = "") -> DemoNode:
        node = DemoNode(name, "local", tmp_path / name)
        node.init(tls)
        with node.config.open("a", encoding="utf-8") as file:
            file.write(config)
        nodes.append(node)
        if start:
            node.start()
        return node

    yield make
    for node in nodes:
        node.stop()


@pytest.fixture
def weights_file(tmp_path: Path) -> Callable[[str, int, float], Path]:
    """Write a small safetensors model; ``shift`` changes one of its tensors."""

    def write(name: str, seed: int, shift: float) -> Path:
        random = np.random.default_rng(seed)
        tensors = {f"layer.{index}.weight": random.normal(size=(64, 256)).astype(np.float32) for index in range(6)}
        tensors["layer.3.weight"] += np.float32(shift)
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write
