"""Affine maps with an activation, on the fastest kernel that this machine has.

On the CPU torch computes float32 products with MKL, which leaves more than half of an AMD core idle;
oneDNN, which torch ships as well and uses for compiled models, does not, and applies the activation
while the result is in cache (2.2 and 3 times faster on a Zen 5 core). Its entry is internal to torch,
so it is tried once against the public function and used only if both agree. The same kernel computes
the gradient with respect to the input, for weights that are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from aios_node.engine.nets.config import Activation

ACTIVATIONS: dict[Activation | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}

# Name and algorithm of each activation in oneDNN's fused linear.
_FUSED: dict[Activation | None, tuple[str, str | None]] = {
    None: ("none", None),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", None),
    "silu": ("swish", None),
}

ROW_MULTIPLE = 8
"""Batches whose number of tokens is a multiple of this meet few distinct shapes, and oneDNN prepares
a kernel once per shape (about 1 ms)."""


def affine(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: Activation | None = None
) -> torch.Tensor:
    """``activation(x @ weight.T + bias)``: x [..., in], weight [out, in], bias [out] -> [..., out].

    Differentiable in ``x`` always; in weight and bias only where they require gradients.
    """
    if not _fits_fused(x, weight):
        return ACTIVATIONS[activation](F.linear(x, weight, bias))
    if torch.is_grad_enabled() and x.requires_grad:
        return ACTIVATIONS[activation](_frozen(x, weight, bias))
    result: torch.Tensor = _fused(x, weight, bias, activation)
    return result


def _fits_fused(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")  # somebody wants another dtype
        and not torch.compiler.is_compiling()  # the compiler fuses by itself
        and fused_works()
    )


@cache
def fused_works() -> bool:
    """Whether oneDNN's fused linear exists here and agrees with torch's public functions."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's own
        return False
    with torch.no_grad():
        x, weight, bias = (torch.linspace(-2, 2, n).reshape(s) for n, s in ((6, (2, 3)), (12, (4, 3)), (4, (4,))))
        try:
            return all(
                torch.allclose(_fused(x, weight, bias, name), function(F.linear(x, weight, bias)), atol=1e-5)
                for name, function in ACTIVATIONS.items()
            )
        except (AttributeError, RuntimeError):
            return False


def _fused(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation | None) -> Any:
    name, algorithm = _FUSED[activation]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)  # noqa: SLF001


class _FrozenAffine(torch.autograd.Function):
    """Forward and input gradient by oneDNN; weight and bias get none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        ctx.save_for_backward(weight)
        return _fused(x, weight, bias, None)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, None, None]:
        (weight,) = ctx.saved_tensors
        return _fused(grads[0], weight.T, None, None), None, None


def _frozen(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _FrozenAffine.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # torch's own
    return result
