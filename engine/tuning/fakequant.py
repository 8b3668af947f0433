"""Weights that are rounded in the forward pass and learn in the backward pass.

Rounding passes gradients straight through (Bengio et al. 2013, arXiv 1308.3432); scales and zero points learn as
in LSQ (Esser et al. 2020, arXiv 1902.08153) and LSQ+. What is trained is exactly what is stored: the forward pass
gives the floats that the exported tensor dequantises to, 4-bit scales included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor
from aios_node.engine.quant.fit import LEVELS
from aios_node.engine.quant.packing import pack
from aios_node.engine.quant.scales import MOST, CompactScales, by_group

_SMALLEST = float(np.finfo(np.float32).tiny)

MARGIN = 0.25
"""How far from its code a latent value may start, in scales; at half a scale the first step would undo the code."""


class _Round(torch.autograd.Function):
    """``scale * (clip(round(latent / scale + zero)) - zero)``: latent [o, g, n], scales and zeros [o, g, 1]."""

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, low: int, high: int) -> Any:
        place = (latent / scales).add_(zeros)
        codes = place.round().clamp_(low, high)
        ctx.save_for_backward(place, codes, scales, zeros)
        ctx.levels = (low, high)
        return (codes - zeros).mul_(scales)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, Any, Any, None, None]:
        place, codes, scales, zeros = ctx.saved_tensors
        low, high = ctx.levels
        (grad,) = grads
        inside = (place >= low - 0.5) & (place <= high + 0.5)
        to_latent = grad * inside
        slope = torch.where(inside, codes - place, codes - zeros)
        to_scales = (grad * slope).sum(-1, keepdim=True)
        to_zeros = (to_latent - grad).sum(-1, keepdim=True).mul_(scales)
        return to_latent, to_scales, to_zeros, None, None


def _straight(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded`` in the forward pass, the gradient of ``value`` in the backward pass.

    Exactly ``rounded``: adding the difference would be off by a rounding error.
    """
    result: torch.Tensor = _Swap.apply(value, rounded)  # type: ignore[no-untyped-call]  # torch's own
    return result


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _value: torch.Tensor, rounded: torch.Tensor) -> Any:
        return rounded.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> tuple[Any, None]:
        return grads[0], None


def can_learn(tensor: QuantizedTensor) -> bool:
    """Whether it can become a TrainableTensor: a matrix with its scales along axis 0."""
    return len(tensor.shape) == 2 and tensor.axis == 0


@dataclass(eq=False)
class TrainableTensor:
    """A weight matrix [out, in] on its way to codes: latent values, relative scales and zero points.

    ``latent``: float32 [out, groups, size], the tail padded with zeros; ``stretch``: float32 [out, groups], the
    logarithm of what the first scales are multiplied by; ``zeros``: float32 [out, groups]. All three require gradients.
    """

    start: QuantizedTensor
    latent: torch.Tensor
    stretch: torch.Tensor
    zeros: torch.Tensor
    first_scales: torch.Tensor  # float32 [out, groups]
    steps: torch.Tensor | None  # float32 [out, groups], the step of each group's 4-bit scale

    @classmethod
    def of(cls, weight: NDArray[np.float32], start: QuantizedTensor) -> TrainableTensor:
        """From a weight [out, in] and its first quantisation, which ``can_learn``.

        Where the first codes are not the nearest ones (GPTQ's are not), the latent value is moved to where its code is.
        """
        latent = _padded(_latent(weight, start), start.grouping)
        scales = torch.from_numpy(start.scales.copy())
        compact = start.compact
        steps = (
            None if compact is None else torch.from_numpy(by_group(compact.steps, compact.groups).astype(np.float32))
        )
        return cls(
            start=start,
            latent=torch.from_numpy(latent).requires_grad_(),
            stretch=torch.zeros_like(scales).requires_grad_(),
            zeros=torch.from_numpy(start.zero_points.copy()).requires_grad_(),
            first_scales=scales,
            steps=steps,
        )

    @property
    def step_size(self) -> float:
        """The mean scale: how far apart neighbouring codes are, the natural unit of the latent values."""
        return float(self.first_scales.mean())

    @property
    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latent values, stretch and zero points."""
        return self.latent, self.stretch, self.zeros

    def scale_codes(self, scales: torch.Tensor) -> torch.Tensor:
        """The nearest 4-bit codes of these scales."""
        assert self.steps is not None
        return (scales / self.steps).round().clamp(1, MOST)

    def scales(self) -> torch.Tensor:
        """Scales as they would be stored, float32 [out, groups], differentiable."""
        free = (self.first_scales * self.stretch.exp()).clamp(min=_SMALLEST)
        if self.steps is None:
            return free
        return _straight(free, self.scale_codes(free) * self.steps)

    def zero_points(self) -> torch.Tensor:
        """Zero points as they would be stored, float32 [out, groups], differentiable."""
        if self.steps is None:
            return self.zeros
        highest = LEVELS[self.start.quant_type].high
        codes = (self.zeros * (MOST / highest)).round().clamp(0, MOST)
        return _straight(self.zeros, codes * highest / MOST)

    def weight(self) -> torch.Tensor:
        """The dequantised weight [out, in], float32, differentiable in all parameters."""
        levels = LEVELS[self.start.quant_type]
        scales, zeros = self.scales().unsqueeze(-1), self.zero_points().unsqueeze(-1)
        rounded = _Round.apply(self.latent, scales, zeros, levels.low, levels.high)  # type: ignore[no-untyped-call]
        return self._cut(rounded)

    @torch.no_grad()
    def export(self) -> QuantizedTensor:
        """The tensor that ``weight`` stands for; dequantising it gives the same floats."""
        levels, start = LEVELS[self.start.quant_type], self.start
        scales, zeros = self.scales(), self.zero_points()
        place = self.latent / scales.unsqueeze(-1) + zeros.unsqueeze(-1)
        codes = self._cut(place.round().clamp_(levels.low, levels.high)).numpy()
        packed = pack(codes.astype(np.int8 if start.bits == 8 else np.uint8), BITS[start.quant_type])
        layout = (start.shape, start.dtype, start.quant_type, start.axis, start.group_size)
        if start.compact is None:
            return QuantizedTensor(packed, scales.numpy(), zeros.numpy(), *layout)
        zero_codes = (zeros * (MOST / levels.high)).round().numpy().astype(np.uint8)
        scale_codes = self.scale_codes(scales).numpy().astype(np.uint8)
        return QuantizedTensor.compacted(
            packed, CompactScales.of(start.compact.steps, scale_codes, zero_codes), *layout
        )

    def _cut(self, padded: torch.Tensor) -> torch.Tensor:
        """[out, groups, size] without the padding of the tail: [out, in]."""
        return padded.flatten(1)[:, : self.start.shape[1]]


def _latent(weight: NDArray[np.float32], start: QuantizedTensor) -> NDArray[np.float32]:
    """The weight, where its code is the nearest one; else the value of its code, a little towards the weight."""
    grouping = start.grouping
    scales = np.repeat(start.scales, grouping.size or grouping.rest, axis=1)[:, : grouping.rest]
    centre = start.dequantize().astype(np.float32)
    levels = LEVELS[start.quant_type]
    codes = start.unpack()
    reach = MARGIN * scales
    low = np.where(codes == levels.low, -np.inf, centre - reach)
    high = np.where(codes == levels.high, np.inf, centre + reach)
    moved: NDArray[np.float32] = np.clip(weight, low, high).astype(np.float32)
    return moved


def _padded(matrix: NDArray[np.float32], grouping: Grouping) -> NDArray[np.float32]:
    size = grouping.size or grouping.rest
    out = np.zeros((grouping.channels, grouping.groups * size), np.float32)
    out[:, : grouping.rest] = matrix
    return out.reshape(grouping.channels, grouping.groups, size)
