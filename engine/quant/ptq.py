"""Post-training quantisation: weights in, codes and scales out, without looking at any data.

Each tensor is cut into groups (see blocks.Grouping), groups are handled in blocks that fit the cache (see cuts and
fit), and the codes are packed. Knows recipes; knows nothing about files or networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig, BadRequest, BadWeights
from aios_node.engine.quant.blocks import (
    BITS,
    CompactScales,
    Grouping,
    QuantizedTensor,
    Tensor,
    by_channel,
    dtype_name,
    from_channels,
    highest_code,
    pack,
)
from aios_node.engine.quant.cuts import blocks_of
from aios_node.engine.quant.double4 import fit_compact
from aios_node.engine.quant.dtypes import is_float
from aios_node.engine.quant.fit import Fit, Floats, codes_of, fit_block, squared_errors
from aios_node.engine.quant.recipe import QuantizationConfig, Settings

Progress = Callable[[str, int, int], None]
"""Told the tensor that was just finished, how many are, and how many there are."""


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
        if settings is None or not is_quantizable(tensor):
            return tensor
        if settings.axis >= tensor.ndim:
            raise BadConfig(f"recipe: tensor {name!r} of shape {tensor.shape} has no axis {settings.axis}")
        values = _as_float32(name, tensor)
        try:
            fresh = quantize_tensor(values, dtype_name(tensor), settings)
        except BadWeights as error:
            raise BadWeights(f"tensor {name!r}: {error.message}") from None
        if not isinstance(previous, QuantizedTensor) or not same_layout(fresh.tensor, previous):
            return fresh.tensor
        frozen = quantize_tensor(values, dtype_name(tensor), settings, frozen=previous)
        keep = frozen.squared_error <= self.config.max_error_ratio * fresh.squared_error
        return frozen.tensor if keep else fresh.tensor


def is_quantizable(tensor: Tensor) -> bool:
    """Whether this is a float array of two or more dimensions: no norm, bias or index."""
    return not isinstance(tensor, QuantizedTensor) and tensor.ndim >= 2 and is_float(dtype_name(tensor))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised tensor and the sum of its squared errors."""

    tensor: QuantizedTensor
    squared_error: float


def quantize_tensor(
    values: Floats,
    dtype: str,
    settings: Settings,
    *,
    frozen: QuantizedTensor | None = None,
    importance: Floats | None = None,
) -> Quantized:
    """Quantise one float32 tensor of any shape; ``frozen`` lends its scales and zero points.

    ``dtype`` is what the tensor is when dequantised. In a group the error is at most half a scale plus
    ``fit.ROUNDING`` times the largest magnitude with ``minmax`` (with scales ``double4``: see double4.fit_compact);
    with ``mse`` the squared error is at most that of ``minmax``. ``importance``: float32 of the values' shape, 0 to 1,
    what each squared error counts in that search. Raises BadWeights for values that ``double4`` cannot reach.
    """
    grouping = Grouping.of(values.shape, settings.axis, settings.group_size)
    matrix = by_channel(values, settings.axis)
    if frozen is None:
        weights = None if importance is None else by_channel(importance, settings.axis)
        chosen = _fresh(matrix, grouping, settings, weights)
    else:
        chosen = _Chosen(frozen.scales, frozen.zero_points, frozen.compact)
    codes = np.empty(matrix.shape, np.int8 if settings.quant == "int8" else np.uint8)
    error = 0.0
    for block in blocks_of(grouping):
        part = block.columns(matrix)
        fit = Fit(block.of_groups(chosen.scales), block.of_groups(chosen.zero_points))
        found = codes_of(part, fit, settings.quant)
        error += float(sum(squared_errors(part, found, fit).tolist()))
        codes[block.values] = block.rows(found)
    packed = pack(from_channels(codes, values.shape, settings.axis), BITS[settings.quant])
    layout = (values.shape, dtype, settings.quant, settings.axis, settings.group_size)
    return Quantized(QuantizedTensor(packed, chosen.scales, chosen.zero_points, *layout, chosen.compact), error)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Scales and zero points of a tensor: float32 [channels, groups], and what is stored of them."""

    scales: Floats
    zero_points: Floats
    compact: CompactScales | None = None


def _fresh(matrix: Floats, grouping: Grouping, settings: Settings, importance: Floats | None) -> _Chosen:
    if settings.scales == "double4":
        compact = fit_compact(matrix, grouping, settings, importance)
        return _Chosen(compact.scales(), compact.zero_points(highest_code(settings.quant)), compact)
    scales = np.ones((grouping.channels, grouping.groups), np.float32)
    zero_points = np.zeros_like(scales)
    for block in blocks_of(grouping):
        counted = None if importance is None else block.columns(importance)
        fit = fit_block(block.columns(matrix), settings, counted)
        block.put(scales, fit.scales)
        block.put(zero_points, fit.zero_points)
    return _Chosen(scales, zero_points)


def _as_float32(name: str, tensor: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        values: Floats = np.ascontiguousarray(tensor, dtype=np.float32)
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise BadWeights(f"tensor {name!r} holds NaN, Inf or numbers beyond float32: it cannot be quantised")
    return values


def same_layout(tensor: QuantizedTensor, other: QuantizedTensor) -> bool:
    """Whether codes and scales of the two stand for values in the same places."""
    return (
        tensor.shape == other.shape
        and tensor.quant_type == other.quant_type
        and tensor.axis == other.axis
        and tensor.group_size == other.group_size
        and (tensor.compact is None) == (other.compact is None)
    )
