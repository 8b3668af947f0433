"""Against Flower's own strategies, as ``tests/golden/merge/generate.py`` recorded them."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging import merged

GOLDEN = Path(__file__).parent.parent / "golden" / "merge"
FLOWER = json.loads((GOLDEN / "flwr.json").read_text())


def recorded() -> Any:
    """The generator, for its inputs; it needs Flower only to be run."""
    spec = importlib.util.spec_from_file_location("merge_golden", GOLDEN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INPUTS = recorded()


def ours(weights: dict[str, Any], number: int, strategy: str, **options: Any) -> dict[str, Any]:
    heads = [{"w": head} for head in INPUTS.heads(weights["w"], number)]
    return merged(weights, heads, strategy, INPUTS.samples(number), **options).weights


@pytest.mark.parametrize("name", ["fedavg", "median", "trimmed_mean", "krum", "multi_krum"])
def test_strategies_without_state(name: str) -> None:
    options = {} if name in {"fedavg", "median"} else {"faulty": INPUTS.FAULTY}
    found = ours({"w": INPUTS.numbers(0)}, 1, name, **options)["w"]
    np.testing.assert_allclose(found, FLOWER[name], rtol=1e-13)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_optimisers(name: str) -> None:
    """Flower begins with v = 0, and its FedAdam corrects the learning rate for that: we are told the corrected one."""
    weights: dict[str, Any] = {"w": INPUTS.numbers(0)}
    for number, expected in enumerate(FLOWER[name], 1):
        rate = 0.01
        if name == "fedadam":
            rate *= math.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        weights = ours(weights, number, name, learning_rate=rate, initial=0.0)
        np.testing.assert_allclose(weights["w"], expected, rtol=1e-7, atol=1e-9)  # our state is float32
        weights["w"] = np.array(expected)
