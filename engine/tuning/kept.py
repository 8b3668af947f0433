"""A quantised tensor as named arrays, for a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor
from aios_node.engine.quant.scales import CompactScales


def arrays_of(tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
    """Codes and scales as they are stored."""
    compact = tensor.compact
    if compact is None:
        return {"codes": tensor.codes, "scales": tensor.scales, "zero_points": tensor.zero_points}
    return {
        "codes": tensor.codes,
        "steps": compact.steps,
        "scale_codes": compact.scale_codes,
        "zero_codes": compact.zero_codes,
    }


def tensor_of(arrays: Mapping[str, NDArray[Any]], like: QuantizedTensor) -> QuantizedTensor:
    """The tensor that was kept, laid out as ``like`` is. Raises Corrupt or BadWeights when it cannot be that."""
    layout = (like.shape, like.dtype, like.quant_type, like.axis, like.group_size)
    if like.compact is None:
        return QuantizedTensor(arrays["codes"], arrays["scales"], arrays["zero_points"], *layout)
    compact = CompactScales(arrays["steps"], arrays["scale_codes"], arrays["zero_codes"], like.compact.groups)
    return QuantizedTensor.compacted(arrays["codes"], compact, *layout)
