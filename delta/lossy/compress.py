"""A version's exact weights -> its lossy ones: the base plus updates of few bits, which lie beside the network.

What is lost stays in a residual, which is added to the next update: error feedback (Seide et al. 2014; Karimireddy
et al., arXiv 1901.09847). So nothing is lost for good, only late. Everything is computed when it is asked for, one
tensor at a time. Knows weights, no files, folders or nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.lossy.methods import quantise, shorter, without
from aios_node.delta.lossy.settings import LossySettings
from aios_node.engine.errors import BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.dtypes import is_float
from aios_node.engine.weights.names import MAX_NAME_BYTES
from aios_node.engine.weights.network import is_beside_network
from aios_node.engine.weights.prediction import predicts
from aios_node.engine.weights.update import Update, update_name

Floats = NDArray[np.float32]

_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class Lossy:
    """``weights``: of the lossy version. ``residual``: what each changed tensor lacks, float32. Both are lazy."""

    weights: Mapping[str, Tensor]
    residual: Mapping[str, Floats]


def compress(
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    settings: LossySettings,
    residual: Mapping[str, Floats] | None = None,
) -> Lossy:
    """The lossy version that leads from ``base`` to (almost) ``target``. All three are read until the last use of it.

    ``residual``: what the base lacks, from the call that made it; None where ``target`` does not build on the base.
    Floats of the network that have the base's shape and dtype are coded; all else is the target's own, but what says
    how it follows from another version is dropped. Raises BadWeights where an update is not finite.
    """
    maker = _Maker(base, target, settings, residual or {})
    coded = {name: None for name in target if maker.is_coded(name)}
    others = [name for name in target if name not in coded and not predicts(name)]
    updates = {update_name(name): name for name in coded}
    weights = _Lazy(sorted([*others, *coded, *updates]), lambda name: maker.tensor(name, updates, coded))
    return Lossy(weights, _Lazy(sorted(coded), lambda name: maker.made(name).residual))


@dataclass(frozen=True, eq=False)
class _Made:
    """One tensor after its update."""

    name: str
    tensor: NDArray[Any]
    update: QuantizedTensor
    residual: Floats


class _Maker:
    """Makes tensors; remembers the last one, since its parts are asked for one after the other."""

    def __init__(
        self,
        base: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        settings: LossySettings,
        residual: Mapping[str, Floats],
    ) -> None:
        self._base, self._target, self._settings, self._residual = base, target, settings, residual
        self._last: _Made | None = None

    def is_coded(self, name: str) -> bool:
        """Whether a tensor travels as an update. Raises BadWeights where that is not finite."""
        old, new = self._base.get(name), self._target[name]
        if old is None or is_beside_network(name) or len(update_name(name).encode()) > MAX_NAME_BYTES:
            return False
        if isinstance(old, QuantizedTensor) or isinstance(new, QuantizedTensor) or not is_float(dtype_name(new)):
            return False
        if old.shape != new.shape or old.dtype != new.dtype or new.size < max(1, self._settings.least):
            return False
        update = self._update(name)
        if not np.isfinite(update).all():
            raise BadWeights(
                f"the update of tensor {name!r} holds NaN, Inf or numbers beyond float32: the training that made it "
                "diverged, or one of the versions is damaged"
            )
        return bool(update.any())

    def tensor(self, name: str, updates: Mapping[str, str], coded: Mapping[str, None]) -> Tensor:
        """A tensor of the lossy version."""
        if name in updates:
            return self.made(updates[name]).update
        return self.made(name).tensor if name in coded else self._target[name]

    def made(self, name: str) -> _Made:
        """A tensor that travels as an update."""
        if self._last is None or self._last.name != name:
            self._last = self._make(name)
        return self._last

    def _make(self, name: str) -> _Made:
        base = self._flat(self._base, name)
        shape = np.asarray(self._target[name]).shape
        codes = quantise(self._update(name), self._settings, shape)
        tensor = Update(codes).add(base)
        codes = shorter(codes, without(codes, tensor == base))  # what rounding to the tensor's dtype swallowed
        tensor = Update(codes).add(base)
        if not np.isfinite(tensor).all():
            raise BadWeights(f"an update of few bits carries tensor {name!r} beyond its dtype: publish this exactly")
        return _Made(name, tensor.reshape(shape), codes, self._difference(name, tensor).reshape(shape))

    def _update(self, name: str) -> Floats:
        return self._difference(name, self._flat(self._base, name))

    def _difference(self, name: str, from_: NDArray[Any]) -> Floats:
        """target + residual - another tensor, [n], in float64, then rounded to float32."""
        target, kept = self._flat(self._target, name), self._kept(name)
        result = np.empty(target.size, np.float32)
        for start in range(0, target.size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            with np.errstate(over="ignore", invalid="ignore"):
                wanted = target[part].astype(np.float64) - from_[part].astype(np.float64)
                result[part] = wanted if kept is None else wanted + kept[part]
        return result

    def _kept(self, name: str) -> Floats | None:
        kept = self._residual.get(name)
        return None if kept is None or kept.size != np.asarray(self._target[name]).size else kept.reshape(-1)

    @staticmethod
    def _flat(weights: Mapping[str, Tensor], name: str) -> NDArray[Any]:
        return np.ascontiguousarray(np.asarray(weights[name])).reshape(-1)


class _Lazy(Mapping[str, Any]):
    """A mapping whose values are made when they are asked for."""

    def __init__(self, names: list[str], make: Callable[[str], Any]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
