"""What a lossy version lost, in numbers: of its weights, and of its update. Knows weights, no models and no texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.prediction import predicts
from aios_node.engine.weights.update import update_name

_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True)
class Loss:
    """Of the tensors that travel as updates, all together, in the L2 norm.

    ``tensors``: how many they are. ``update_error``: what is missing, over the exact update (what earlier updates
    lost and this one brings counts as missing, too); ``relative_error``: over the exact weights.
    """

    tensors: int
    update_error: float
    relative_error: float

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def loss(base: Mapping[str, Tensor], exact: Mapping[str, Tensor], lossy: Mapping[str, Tensor]) -> Loss:
    """Compare a lossy version with the exact one, given what both were made from. Reads one tensor at a time."""
    names = [name for name in exact if not predicts(name) and update_name(name) in lossy]
    missing = update = weights = 0.0
    for name in names:
        old, new, made = (np.asarray(one[name]).reshape(-1) for one in (base, exact, lossy))
        for start in range(0, new.size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            before, wanted, found = (run[part].astype(np.float64) for run in (old, new, made))
            missing += _square(wanted - found)
            update += _square(wanted - before)
            weights += _square(wanted)
    return Loss(len(names), _ratio(missing, update), _ratio(missing, weights))


def _square(values: NDArray[np.float64]) -> float:
    return float(values @ values)


def _ratio(missing: float, of: float) -> float:
    return math.sqrt(missing / of) if of else float(missing > 0)
