"""Linear maps and tables that stay packed: their weights are codes and scales in memory, as they are in the file.

A few rows are multiplied straight from the codes. For more, a weight becomes floats for the moment of one product,
so that at most one weight of a network exists as floats at a time. Results are those of the dequantised weights.
Where a shape does not fit the compiled loops, or they do not run here, NumPy does the same slowly.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS, affine
from aios_node.engine.quant.blocks import QuantizedTensor

Floats = NDArray[np.float32]

FEW_ROWS = 8
"""Up to so many rows a product comes straight from the codes; beyond, floats and an ordinary product are faster."""

_LANES = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised tensor [n, k] that gives rows of floats and products."""

    tensor: QuantizedTensor

    @cached_property
    def compiled(self) -> bool:
        """Whether the compiled loops handle this tensor: whole vectors of 16 in rows and groups, channels first."""
        tensor = self.tensor
        whole = len(tensor.shape) == 2 and tensor.shape[1] > 0 and tensor.shape[1] % _LANES == 0
        return whole and tensor.axis == 0 and tensor.group_size % _LANES == 0 and loops_work()

    def rows(self, chosen: NDArray[np.int64]) -> Floats:
        """Rows ``chosen`` [r], each 0 to n - 1: float32 [r, k]."""
        if not self.compiled:
            return _numpy_rows(self.tensor, chosen)
        out = np.empty((len(chosen), self.tensor.shape[1]), np.float32)
        _kernels().fill_rows(*self._parts, np.ascontiguousarray(chosen), out)
        return out

    def floats(self) -> Floats:
        """The whole matrix, float32 [n, k]."""
        return self.rows(np.arange(self.tensor.shape[0])) if self.compiled else _dense(self.tensor)

    def times(self, x: Floats, bias: Floats) -> Floats:
        """``x @ matrix.T + bias`` for ``x`` [m, k], ``bias`` [n]: float32 [m, n]. Only where it is ``compiled``."""
        out = np.empty((len(x), self.tensor.shape[0]), np.float32)
        _kernels().multiply(*self._parts, bias, x, out)
        return out

    @cached_property
    def _parts(self) -> tuple[Any, ...]:
        tensor = self.tensor
        rows, width = tensor.shape
        chunks = (tensor.group_size or width) // _LANES
        codes = _read_only(tensor.codes.reshape(rows, -1))
        return tensor.bits, codes, _read_only(tensor.scales), _read_only(tensor.zero_points), chunks


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """``activation(x @ weight.T + bias)`` with a packed weight [out, in] and bias [out]."""

    weight: PackedMatrix
    bias: torch.Tensor
    activation: Activation | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.compiled and 0 < x.numel() // x.shape[-1] <= FEW_ROWS:
            rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).numpy())
            out = torch.from_numpy(self.weight.times(rows, _read_only(self.bias.numpy())))
            return ACTIVATIONS[self.activation](out.view(*x.shape[:-1], -1))
        return affine(x, torch.from_numpy(self.weight.floats()), self.bias, self.activation)


@dataclass(frozen=True, eq=False)
class PackedTable:
    """An embedding table [n, d] of which only the rows that are looked up become floats."""

    matrix: PackedMatrix

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` int64 [b, t], each below n -> float32 [b, t, d]. Raises IndexError for others."""
        chosen = ids.reshape(-1).numpy()
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.matrix.tensor.shape[0]:
            raise IndexError(f"an id is not in the table of {self.matrix.tensor.shape[0]} rows")
        return torch.from_numpy(self.matrix.rows(chosen)).view(*ids.shape, -1)


@cache
def loops_work() -> bool:
    """Whether the compiled loops run here and are right; says once in the log when they are not."""
    try:
        return _agrees(_kernels())
    except Exception as error:  # a compiler that is broken may raise anything
        _log.warning("packed weights are computed slowly here, their loops do not compile: %s", error)
        return False


def _agrees(kernels: Any) -> bool:
    codes = np.arange(-12, 20, dtype=np.int8).view(np.uint8)
    scales, zeros = np.full((1, 2), 0.5, np.float32), np.array([[0, 3]], np.float32)
    tensor = QuantizedTensor(codes, scales, zeros, (1, 32), "float32", "int8", 0, 16)
    out = np.empty((1, 32), np.float32)
    parts = (_read_only(codes.reshape(1, 32)), _read_only(scales), _read_only(zeros))
    kernels.fill_rows(8, *parts, 1, np.zeros(1, np.int64), out)
    return bool(np.allclose(out, tensor.dequantize(), atol=1e-6))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, contiguous, aligned and not writable: the one kind that the loops are compiled for."""
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def _numpy_rows(tensor: QuantizedTensor, chosen: NDArray[np.int64]) -> Floats:
    rows, width = tensor.shape
    if tensor.axis != 0 or width * tensor.bits % 8:
        return _dense(tensor)[chosen]
    codes = tensor.codes.reshape(rows, -1)[chosen].reshape(-1)
    shape = (len(chosen), width)
    scales, zeros = tensor.scales[chosen], tensor.zero_points[chosen]
    return _dense(QuantizedTensor(codes, scales, zeros, shape, tensor.dtype, tensor.quant_type, 0, tensor.group_size))


def _dense(tensor: QuantizedTensor) -> Floats:
    return np.ascontiguousarray(tensor.dequantize(), dtype=np.float32)


def _kernels() -> Any:
    """The compiled loops; numba is imported by the first use."""
    from aios_node.engine.nets import packed_kernels

    return packed_kernels
