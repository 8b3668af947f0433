"""What is stored of a tensor: the bytes of its parts, how it says that they are to be read, and their number.

Knows nothing about files and where in them the parts lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights
from aios_node.engine.quant.blocks import BITS, Grouping, QuantizedTensor, Tensor, packed_size
from aios_node.engine.quant.dtypes import count_of, dtype_of, is_float, raw_bytes
from aios_node.engine.quant.scales import DOUBLE4_TYPES, CompactSizes


def expected_nbytes(
    dtype: str, shape: tuple[int, ...], quant_type: str, axis: int, group_size: int, scale_codec: str = "float32"
) -> int:
    """Bytes that a tensor so described has. Raises BadWeights or TooLarge when there can be no such tensor."""
    kind = dtype_of(dtype)
    _check_scale_codec(scale_codec, quant_type)
    count = count_of(shape, kind.itemsize)
    if quant_type == "none":
        if (axis, group_size) != (-1, 0):
            raise BadWeights(f"an unquantised tensor has axis -1 and group size 0, not {axis} and {group_size}")
        return count * kind.itemsize
    if quant_type not in BITS or not is_float(dtype):
        raise BadWeights(f"there is no quantisation {quant_type!r:.40} of dtype {dtype}")
    grouping = Grouping.of(shape, axis, group_size)
    codes = packed_size(count, BITS[quant_type])
    if scale_codec == "double4":
        return codes + CompactSizes.of(grouping.channels, grouping.groups).total
    return codes + 8 * grouping.channels * grouping.groups


def _check_scale_codec(scale_codec: str, quant_type: str) -> None:
    if scale_codec not in ("float32", "double4"):
        raise BadWeights(f"scales are encoded as {scale_codec!r:.40}, which this version cannot read")
    if scale_codec == "double4" and quant_type not in DOUBLE4_TYPES:
        raise BadWeights(f"a tensor of quantisation {quant_type!r:.40} has no scales of 4 bits")


def quant_of(tensor: Tensor) -> tuple[str, int, int]:
    """Quantisation type, axis and group size of a tensor; plain arrays are ("none", -1, 0)."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.quant_type, tensor.axis, tensor.group_size
    return "none", -1, 0


def scale_codec_of(tensor: Tensor) -> str:
    """How the scales of a tensor are kept: ``float32``, or ``double4`` (see quant.scales)."""
    return "double4" if isinstance(tensor, QuantizedTensor) and tensor.compact is not None else "float32"


def stored_parts(tensor: Tensor) -> tuple[NDArray[np.uint8], ...]:
    """The bytes of all that is stored of a tensor, part by part; views where it is contiguous.

    Its data; or codes, scales, zero points; or codes, steps, scale codes, zero codes.
    """
    if not isinstance(tensor, QuantizedTensor):
        return (raw_bytes(tensor),)
    compact = tensor.compact
    scales: tuple[NDArray[Any], ...] = (tensor.scales, tensor.zero_points)
    if compact is not None:
        scales = (compact.steps, compact.scale_codes, compact.zero_codes)
    return raw_bytes(tensor.codes), *(raw_bytes(part) for part in scales)
