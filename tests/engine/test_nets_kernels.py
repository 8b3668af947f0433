"""Affine maps: both kernels against the definition, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aios_node.engine.nets import kernels
from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS, affine

kernels_available = kernels.fused_works()

DEFINITIONS: dict[Activation | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.fixture(params=[True, False], ids=["fused", "plain"])
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "fused_works", lambda: request.param and kernels_available)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_every_activation_is_defined() -> None:
    assert set(DEFINITIONS) == set(ACTIVATIONS)


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("activation", list(DEFINITIONS))
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 8), (0, 8)])
def test_forward(activation: Activation | None, shape: tuple[int, ...]) -> None:
    x, weight, bias = numbers(*shape), numbers(6, 8), numbers(6)
    expected = DEFINITIONS[activation](x @ weight.T + bias)
    with torch.inference_mode():
        assert torch.allclose(affine(x, weight, bias, activation), expected, atol=1e-5)


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("activation", list(DEFINITIONS))
def test_gradient_of_the_input(activation: Activation | None) -> None:
    x, weight, bias = numbers(4, 3, 8).requires_grad_(), numbers(6, 8), numbers(6)
    affine(x, weight, bias, activation).square().sum().backward()
    ours, x.grad = x.grad, None
    DEFINITIONS[activation](x @ weight.T + bias).square().sum().backward()
    assert ours is not None
    assert x.grad is not None
    assert torch.allclose(ours, x.grad, atol=1e-4)


@pytest.mark.usefixtures("either_kernel")
def test_weights_that_are_trained_get_gradients_too() -> None:
    x, weight, bias = numbers(4, 8), numbers(6, 8).requires_grad_(), numbers(6).requires_grad_()
    affine(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).expand(6, 8), atol=1e-5)
    assert bias.grad is not None


def test_a_kernel_that_disagrees_or_is_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operator")

    for kernel in (missing, lambda x, w, b, a: torch.zeros(2, 4)):
        kernels.fused_works.cache_clear()
        monkeypatch.setattr(kernels, "_fused", kernel)
        assert not kernels.fused_works()
    monkeypatch.undo()
    kernels.fused_works.cache_clear()
    assert kernels.fused_works() == kernels_available
