"""Float tensors in another float dtype: the precision ``fp16``, which needs no codes or scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.dtypes import dtype_of, is_float


def cast_weights(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Every float tensor rounded to the nearest value of ``dtype``; all others as they are.

    Raises BadWeights when a number becomes infinite, BadRequest when a tensor is quantised.
    """
    target = dtype_of(dtype)
    if not is_float(dtype):
        raise BadRequest(f"weights cannot be cast to {dtype}: a float dtype is needed")
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if isinstance(tensor, QuantizedTensor):
            raise BadRequest(f"tensor {name!r} is quantised; cast the model that it was derived from")
        if not is_float(dtype_name(tensor)):
            result[name] = tensor
            continue
        with np.errstate(over="ignore"):
            cast = tensor.astype(target)
        if not np.isfinite(cast).all():
            raise BadWeights(f"tensor {name!r} holds numbers that {dtype} cannot")
        result[name] = cast
    return result
