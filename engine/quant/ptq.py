"""Post-training quantisation: weights in, codes and scales out, without looking at any data.

Each tensor is cut into groups (see blocks.Grouping), groups are handled in blocks that fit the cache (see
fit), and the codes are packed. Knows recipes; knows nothing about files or networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest, BadWeights
from aios_node.engine.quant.blocks import (
    BITS,
    Grouping,
    QuantizedTensor,
    Tensor,
    by_channel,
    dtype_name,
    from_channels,
    pack,
)
from aios_node.engine.quant.dtypes import is_float
from aios_node.engine.quant.fit import Fit, Floats, codes_of, fit_block, squared_errors
from aios_node.engine.quant.recipe import QuantizationConfig, Settings

Progress = Callable[[str, int, int], None]
"""Told the tensor that was just finished, how many are, and how many there are."""

_BLOCK_VALUES = 2**16
"""Values handled together: a quarter MiB of float32, so that the search's passes stay in a core's cache."""


class ArrowQuantizer:
    """Quantises weights by a recipe. Deterministic: same weights and recipe, same codes, on every machine.

    Raises BadConfig for recipes that need more than the weights: other methods, bits shared out under a budget.
    """

    def __init__(self, config: QuantizationConfig) -> None:
        if config.method != "ptq":
            raise BadConfig(f"recipe: method {config.method} needs texts to run the model on; this is method ptq")
        if config.target_bytes is not None:
            raise BadConfig("recipe: target_bytes needs the tensors' sensitivities; give every tensor its settings")
        self.config = config

    def quantize(
        self,
        weights: Mapping[str, Tensor],
        *,
        previous: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Quantise a model, tensor by tensor, in the order of names.

        Tensors of fewer than two dimensions (norms, biases), of no float dtype, and those that the recipe
        names stay as they are. ``previous``: the result for an earlier version; a tensor keeps its scales
        while the recipe's ``max_error_ratio`` allows. Raises BadWeights for NaN, Inf and what does not fit
        float32, BadConfig for an axis that a tensor lacks, BadRequest for what is quantised already.
        """
        result: dict[str, Tensor] = {}
        for name in sorted(weights):
            tensor = weights[name]
            if isinstance(tensor, QuantizedTensor):
                raise BadRequest(f"tensor {name!r} is quantised already; quantise the model that it was derived from")
            result[name] = self._one(name, tensor, (previous or {}).get(name))
            if progress is not None:
                progress(name, len(result), len(weights))
        return result

    def _one(self, name: str, tensor: NDArray[Any], previous: Tensor | None) -> Tensor:
        settings = self.config.settings_for(name)
        if settings is None or tensor.ndim < 2 or not is_float(dtype_name(tensor)):
            return tensor
        if settings.axis >= tensor.ndim:
            raise BadConfig(f"recipe: tensor {name!r} of shape {tensor.shape} has no axis {settings.axis}")
        values = _as_float32(name, tensor)
        fresh = quantize_tensor(values, dtype_name(tensor), settings)
        if not isinstance(previous, QuantizedTensor) or not _same_layout(fresh.tensor, previous):
            return fresh.tensor
        frozen = quantize_tensor(values, dtype_name(tensor), settings, frozen=previous)
        keep = frozen.squared_error <= self.config.max_error_ratio * fresh.squared_error
        return frozen.tensor if keep else fresh.tensor


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised tensor and the sum of its squared errors."""

    tensor: QuantizedTensor
    squared_error: float


def quantize_tensor(
    values: Floats, dtype: str, settings: Settings, *, frozen: QuantizedTensor | None = None
) -> Quantized:
    """Quantise one float32 tensor of any shape; ``frozen`` lends its scales and zero points.

    ``dtype`` is what the tensor is when dequantised. In a group the error is at most half a scale plus
    ``fit.ROUNDING`` times the largest magnitude with ``minmax``; with ``mse`` the squared error is at most that
    of ``minmax``.
    """
    grouping = Grouping.of(values.shape, settings.axis, settings.group_size)
    matrix = by_channel(values, settings.axis)
    codes = np.empty(matrix.shape, np.int8 if settings.quant == "int8" else np.uint8)
    scales = np.ones((grouping.channels, grouping.groups), np.float32)
    zero_points = np.zeros_like(scales)
    error = 0.0
    for block in _blocks(grouping):
        part = block.columns(matrix)
        if frozen is None:
            fit = fit_block(part, settings)
        else:
            fit = Fit(frozen.scales[block.scales].reshape(-1), frozen.zero_points[block.scales].reshape(-1))
        found = codes_of(part, fit, settings.quant)
        error += float(sum(squared_errors(part, found, fit).tolist()))
        codes[block.values] = block.rows(found)
        scales[block.scales] = fit.scales.reshape(block.shape)
        zero_points[block.scales] = fit.zero_points.reshape(block.shape)
    packed = pack(from_channels(codes, values.shape, settings.axis), BITS[settings.quant])
    tensor = QuantizedTensor(
        packed, scales, zero_points, values.shape, dtype, settings.quant, settings.axis, settings.group_size
    )
    return Quantized(tensor, error)


@dataclass(frozen=True)
class _Block:
    """Some groups of equal length in some channels of a matrix [channels, rest]."""

    channels: slice
    groups: slice
    start: int  # first value along the rest
    shape: tuple[int, int]  # channels, groups per channel
    length: int  # values per group

    @property
    def values(self) -> tuple[slice, slice]:
        """Where the block's values are in the matrix."""
        return self.channels, slice(self.start, self.start + self.shape[1] * self.length)

    @property
    def scales(self) -> tuple[slice, slice]:
        """Where the block's scales are in [channels, groups]."""
        return self.channels, self.groups

    def columns(self, matrix: Floats) -> Floats:
        """The block's values as [length, groups]: contiguous, one column per group."""
        part = matrix[self.values].reshape(-1, self.length)
        return np.ascontiguousarray(part.T)

    def rows(self, codes: Floats) -> Floats:
        """The inverse of columns: [length, groups] as [channels, values]."""
        return codes.T.reshape(self.shape[0], self.shape[1] * self.length)


def _blocks(grouping: Grouping) -> Iterator[_Block]:
    """All groups of a tensor, cut into blocks: the full groups first, then the tails."""
    if not grouping.channels or not grouping.rest:
        return
    length = min(grouping.size, grouping.rest) or grouping.rest
    full = grouping.rest // length
    tail = grouping.rest - full * length
    yield from _cut(grouping.channels, 0, full, length, 0)
    if tail:
        yield from _cut(grouping.channels, full, 1, tail, full * length)


def _cut(channels: int, first: int, groups: int, length: int, start: int) -> Iterator[_Block]:
    """Equal groups of all channels: whole channels together, or parts of one where it is long."""
    in_block = max(1, _BLOCK_VALUES // length)
    wide = min(groups, in_block)
    high = max(1, in_block // groups)
    for channel in range(0, channels, high):
        rows = min(high, channels - channel)
        for group in range(0, groups, wide):
            count = min(wide, groups - group)
            yield _Block(
                slice(channel, channel + rows),
                slice(first + group, first + group + count),
                start + group * length,
                (rows, count),
                length,
            )


def _as_float32(name: str, tensor: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        values: Floats = np.ascontiguousarray(tensor, dtype=np.float32)
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise BadWeights(f"tensor {name!r} holds NaN, Inf or numbers beyond float32: it cannot be quantised")
    return values


def _same_layout(tensor: QuantizedTensor, other: QuantizedTensor) -> bool:
    return (
        tensor.shape == other.shape
        and tensor.quant_type == other.quant_type
        and tensor.axis == other.axis
        and tensor.group_size == other.group_size
    )
