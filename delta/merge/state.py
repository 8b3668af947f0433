"""The optimiser state of merges as tensors of the version: ``aios.optimizer/KIND/TENSOR``, float32.

It belongs to the version, so that the next merge gives the same on whatever node it happens. It comes from a peer
like every tensor, and is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.adaptive import SECOND
from aios_node.delta.merge.rounding import rounded
from aios_node.delta.merge.sides import runs
from aios_node.delta.merge.strategy import Floats, Strategy
from aios_node.engine.errors import BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.weights.names import OPTIMIZER

STATE_DTYPE = "float32"


def state_name(kind: str, tensor: str) -> str:
    """The name under which a version keeps one kind of state of a tensor."""
    return f"{OPTIMIZER}{kind}/{tensor}"


def read_state(
    strategy: Strategy, weights: Mapping[str, Tensor], name: str, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """What the strategy's optimiser knows of a tensor: all kinds, or none where it has not begun.

    Raises BadWeights for state that no merge can have written.
    """
    names = {kind: state_name(kind, name) for kind in strategy.state}
    found = {kind: weights[each] for kind, each in names.items() if each in weights}
    if len(found) < len(names):
        return {}
    for kind, tensor in found.items():
        _check(names[kind], kind, tensor, shape)
    return found


def stored_state(tensor: str, state: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
    """New state by the names and in the dtype in which it is kept."""
    return {state_name(kind, tensor): rounded(values, STATE_DTYPE) for kind, values in state.items()}


def _check(name: str, kind: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if isinstance(tensor, QuantizedTensor) or dtype_name(tensor) != STATE_DTYPE or tuple(tensor.shape) != shape:
        raise BadWeights(
            f"tensor {name!r} is no optimiser state: it must be plain {STATE_DTYPE} of shape {list(shape)}"
        )
    if not all(np.isfinite(run).all() and (kind != SECOND or run.min() >= 0) for run in runs(tensor)):
        raise BadWeights(f"tensor {name!r} is no optimiser state: it holds NaN, Inf or negative second moments")
