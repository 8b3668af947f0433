"""Tensors on their way to codes: what is trained is what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings
from aios_node.engine.tuning.fakequant import TrainableTensor, can_learn
from aios_node.engine.weights.manifest import tensor_hash

LAYOUTS = [
    Settings("int2", symmetric=False, group_size=8, clip="mse", scales="double4"),
    Settings("int2", symmetric=False, group_size=16, clip="mse", scales="double4"),
    Settings("int4", symmetric=False, group_size=32, clip="mse", scales="double4"),
    Settings("int4", symmetric=True, group_size=16),
    Settings("int2", symmetric=False, group_size=0),
    Settings("int8", symmetric=False, group_size=0),
]


def weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)


@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    moves=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_the_forward_pass_gives_what_the_export_dequantises_to(
    layout: Settings, rows: int, columns: int, moves: int, seed: int
) -> None:
    original = weight(rows, columns, seed)
    tensor = TrainableTensor.of(original, quantize_tensor(original, "float32", layout).tensor)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, far in zip(tensor.parameters, (0.05, 0.3, 0.7), strict=True):
            part += moves * far * torch.randn(part.shape, generator=random)
    np.testing.assert_array_equal(tensor.weight().detach().numpy(), tensor.export().dequantize())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_starts_from_the_codes_that_it_is_given(layout: Settings) -> None:
    original = weight(6, 40)
    start = quantize_tensor(weight(6, 40, 1), "float32", layout).tensor  # of another weight: few codes are nearest
    assert tensor_hash(TrainableTensor.of(original, start).export()) == tensor_hash(start)


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if (one.quant, one.group_size) != ("int2", 0)])
def test_every_parameter_learns(layout: Settings) -> None:
    """A linear map is fitted to another one: the loss falls, whichever parameter alone may move."""
    original = weight(8, 64)
    x = torch.from_numpy(weight(256, 6, 7) @ weight(6, 64, 8)) * 5000  # features go together: nearest is not best
    goal = x @ torch.from_numpy(original).T
    for place in range(3):
        tensor = TrainableTensor.of(original, quantize_tensor(original, "float32", layout).tensor)
        moving = tensor.parameters[place]
        with torch.no_grad():  # zero points learn from values that are cut off: make some
            tensor.zeros += (0.0, 0.0, 1.2)[place]
        optimizer = torch.optim.Adam([moving], lr=(0.03 * tensor.step_size, 0.003, 0.03)[place])
        losses = []
        for _ in range(60):
            loss = (x @ tensor.weight().T - goal).square().mean()
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert min(losses) < losses[0]


@pytest.mark.parametrize(("axis", "learns"), [(0, True), (1, False), (-1, False)])
def test_only_matrices_with_scales_along_their_rows_learn(axis: int, learns: bool) -> None:
    layout = Settings("int4", symmetric=False, axis=axis, group_size=16)
    assert can_learn(quantize_tensor(weight(8, 32), "float32", layout).tensor) == learns
    cube = np.zeros((2, 4, 16), np.float32)
    assert not can_learn(quantize_tensor(cube, "float32", Settings("int4", symmetric=False, group_size=16)).tensor)
