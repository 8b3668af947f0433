"""How far quantised weights are from the original ones, tensor by tensor.

Compares numbers only. How far a model's *answers* moved is measured where models run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aios_node.engine.errors import BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dense, dtype_name
from aios_node.engine.quant.distance import Distance
from aios_node.engine.quant.dtypes import is_float


@dataclass(frozen=True)
class TensorError:
    """One tensor's distance from the original.

    ``cosine`` of the flattened tensors (1 when both are zero), ``relative_error`` in the L2 norm (1 when only
    the original is zero), ``max_error`` the largest single difference, ``bits`` stored per value.
    """

    name: str
    quant_type: str
    cosine: float
    relative_error: float
    max_error: float
    bits: float


@dataclass(frozen=True)
class ValidationResult:
    """The comparison of two weights mappings: every float tensor, worst first, and totals over all values."""

    tensors: tuple[TensorError, ...]
    cosine: float
    relative_error: float
    bits: float
    failures: tuple[str, ...]
    """What exceeds the validator's limits, as sentences; empty when all is well."""

    @property
    def passed(self) -> bool:
        """Whether every tensor is within the limits."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The result as JSON members."""
        return {**asdict(self), "tensors": [asdict(each) for each in self.tensors], "passed": self.passed}


@dataclass(frozen=True)
class PrecisionValidator:
    """Compares weights with the original ones. A tensor fails below ``min_cosine`` or above ``max_relative_error``."""

    min_cosine: float = -1.0
    max_relative_error: float = float("inf")

    def compare(self, original: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> ValidationResult:
        """Compare all tensors. Raises BadWeights unless both have the same names and shapes."""
        _check_same(original, candidate)
        found: list[TensorError] = []
        total = Distance()
        stored = count = 0
        for name in sorted(original):
            before, after = original[name], candidate[name]
            if not is_float(dtype_name(before)):
                continue
            distance = Distance()
            distance.add(dense(before), dense(after))
            found.append(_error(name, after, distance))
            total.include(distance)
            stored, count = stored + after.nbytes, count + after.size
        found.sort(key=lambda each: (-each.relative_error, each.name))
        return ValidationResult(
            tuple(found), total.cosine, total.relative_error, 8 * stored / max(count, 1), tuple(self._failures(found))
        )

    def _failures(self, found: list[TensorError]) -> list[str]:
        return [
            f"{each.name}: cosine {each.cosine:.6f}, relative error {each.relative_error:.6f}"
            for each in found
            if each.cosine < self.min_cosine or each.relative_error > self.max_relative_error
        ]


def _check_same(original: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> None:
    if different := set(original) ^ set(candidate):
        raise BadWeights(f"tensor {min(different)!r} is in one of the two models only")
    for name in original:
        if tuple(original[name].shape) != tuple(candidate[name].shape):
            raise BadWeights(
                f"tensor {name!r} has shape {tuple(candidate[name].shape)} instead of {tuple(original[name].shape)}"
            )


def _error(name: str, after: Tensor, distance: Distance) -> TensorError:
    quant_type = after.quant_type if isinstance(after, QuantizedTensor) else "none"
    bits = 8 * after.nbytes / max(after.size, 1)
    return TensorError(name, quant_type, distance.cosine, distance.relative_error, distance.largest, bits)
