"""Linear maps and tables that stay packed: their weights are codes and scales in memory, as they are in the file.

A few rows are multiplied straight from the codes, by compiled loops. For more, a weight becomes floats for the moment
of one product, so that at most one weight of a network exists as floats at a time. Results are those of the
dequantised weights. Where a shape does not fit the loops, or they do not run here, the second way serves for both.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS
from aios_node.engine.quant.blocks import CompactScales, QuantizedTensor, highest_code
from aios_node.engine.quant.scales import MOST

Floats = NDArray[np.float32]

FEW_ROWS = 8
"""Up to so many rows a product comes straight from the codes; beyond, floats and an ordinary product are faster."""

_LANES, _HALF = 16, 8
_NO_TABLE, _NO_CODES = np.empty((0, 0), np.float32), np.empty(0, np.uint8)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales and zero points of a packed matrix, in the form in which they are stored."""

    plain: tuple[Floats, Floats] | None  # both [n, groups], or [1, groups] where all rows share them
    compact: CompactScales | None
    highest: int  # code

    def of_rows(self, chosen: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Of rows ``chosen`` [r], or of all: both float32 [r, groups], or [1, groups] where rows share them."""
        scales, zeros = self.plain or self._opened(chosen)
        if chosen is None or self.plain is None or len(scales) == 1:
            return scales, zeros
        return scales[chosen], zeros[chosen]

    def table(self) -> tuple[Any, ...]:
        """What the compiled loops open scales from, a row at a time: either two tables, or steps and codes.

        Steps become float32; all else is the memory that the scales lie in.
        """
        compact = self.compact
        if compact is None or compact.groups % 2:  # a row must begin at a byte
            tables: tuple[NDArray[Any], ...] = (*self.of_rows(), _NO_TABLE, _NO_CODES, _NO_CODES)
        else:
            steps = compact.steps.astype(np.float32)
            tables = (_NO_TABLE, _NO_TABLE, steps, compact.scale_codes, compact.zero_codes)
        return (*map(_read_only, tables), np.float32(self.highest / MOST))

    def _opened(self, chosen: NDArray[np.int64] | None) -> tuple[Floats, Floats]:
        compact = self.compact
        if compact is None:
            raise ValueError("scales in neither form")
        if chosen is None or compact.groups % 2:
            scales, zeros = compact.scales(), compact.zero_points(self.highest)
            return (scales, zeros) if chosen is None else (scales[chosen], zeros[chosen])
        scale_codes, zero_codes = (
            part.reshape(compact.channels, -1)[chosen].reshape(-1) for part in (compact.scale_codes, compact.zero_codes)
        )
        some = CompactScales(compact.steps[chosen], scale_codes, zero_codes, compact.groups)
        return some.scales(), some.zero_points(self.highest)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised matrix [n, k], every row of which begins at a byte and has scales of its own, or every column."""

    codes: NDArray[np.uint8]  # [n, bytes]
    scales: Scales
    width: int  # k
    bits: int
    group_size: int  # values that share a scale; the last group of a row may be shorter

    @classmethod
    def of(cls, tensor: QuantizedTensor) -> PackedMatrix | None:
        """The tensor, its codes not copied; None where it is not laid out like that."""
        shape, bits = tensor.shape, tensor.bits
        by_column = tensor.axis == 1 and not tensor.group_size
        if len(shape) != 2 or not (tensor.axis == 0 or by_column) or not math.prod(shape) or shape[1] * bits % 8:
            return None
        codes = tensor.codes.reshape(shape[0], -1)
        if by_column:
            columns = Scales((tensor.scales.T, tensor.zero_points.T), None, highest_code(tensor.quant_type))
            return cls(codes, columns, shape[1], bits, 1)
        plain = None if tensor.compact else (tensor.scales, tensor.zero_points)
        scales = Scales(plain, tensor.compact, highest_code(tensor.quant_type))
        return cls(codes, scales, shape[1], bits, tensor.group_size or shape[1])

    @property
    def has_loops(self) -> bool:
        """Whether the compiled loops can handle it: whole vectors of 16 in rows, and in groups, or halves of them."""
        halves = self.group_size == _HALF and self.bits < 8
        return not self.width % _LANES and (halves or not self.group_size % _LANES)

    def rows(self, chosen: NDArray[np.int64]) -> torch.Tensor:
        """Rows ``chosen`` [r], each 0 to n - 1: float32 [r, k]."""
        return self._floats(self.codes[chosen], *self.scales.of_rows(chosen))

    def floats(self) -> torch.Tensor:
        """The whole matrix, float32 [n, k]."""
        return self._floats(self.codes, *self.scales.of_rows())

    def times(self, x: Floats, bias: Floats) -> Floats:
        """``x @ matrix.T + bias`` for ``x`` [m, k], ``bias`` [n]: float32 [m, n]. Needs ``has_loops``."""
        out = np.empty((len(x), len(self.codes)), np.float32)
        _kernels().multiply(*self._parts, bias, x, out)
        return out

    @cached_property
    def _parts(self) -> tuple[Any, ...]:
        groups = -(-self.width // self.group_size)
        return self.bits, _read_only(self.codes), self.scales.table(), groups, self.group_size

    def _floats(self, codes: NDArray[np.uint8], scales: Floats, zeros: Floats) -> torch.Tensor:
        """Rows of codes [r, bytes] with their scales and zero points [r, groups] as float32 [r, k].

        Torch's kernels are there anyway and take little memory; compiled loops would bring their compiler along.
        """
        out = torch.empty(len(codes), self.width)
        _unpack(from_dlpack(np.ascontiguousarray(codes)), self.bits, out)
        scale, zero = (from_dlpack(np.ascontiguousarray(part)) for part in (scales, zeros))
        whole = self.width // self.group_size
        full = out[:, : whole * self.group_size].view(len(codes), whole, self.group_size)
        full.sub_(zero[:, :whole, None]).mul_(scale[:, :whole, None])
        if self.width % self.group_size:
            out[:, whole * self.group_size :].sub_(zero[:, whole:]).mul_(scale[:, whole:])
        return out


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """``activation(x @ weight.T + bias)`` with a packed weight [out, in] and bias [out]."""

    weight: PackedMatrix
    bias: torch.Tensor
    activation: Activation | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if 0 < x.numel() // x.shape[-1] <= FEW_ROWS and self.weight.has_loops and loops_work():
            rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).numpy())
            out = torch.from_numpy(self.weight.times(rows, _read_only(self.bias.numpy())))
            return ACTIVATIONS[self.activation](out.view(*x.shape[:-1], -1))
        return ACTIVATIONS[self.activation](F.linear(x, self.weight.floats(), self.bias))


@dataclass(frozen=True, eq=False)
class PackedTable:
    """An embedding table [n, d] of which only the rows that are looked up become floats."""

    matrix: PackedMatrix

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` int64 [b, t], each below n -> float32 [b, t, d]. Raises IndexError for others."""
        chosen = ids.reshape(-1).numpy()
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self.matrix.codes):
            raise IndexError(f"an id is not in the table of {len(self.matrix.codes)} rows")
        return self.matrix.rows(chosen).view(*ids.shape, self.matrix.width)


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
    x, out = np.linspace(-1, 2, 32, dtype=np.float32).reshape(1, 32), np.empty((1, 1), np.float32)
    table = Scales((scales, zeros), None, 127).table()
    kernels.multiply(8, _read_only(codes.reshape(1, 32)), table, 2, 16, _read_only(np.zeros(1, np.float32)), x, out)
    return bool(np.allclose(out, tensor.dequantize() @ x.T, atol=1e-4))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, contiguous, aligned and not writable: the one kind that the loops are compiled for."""
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def _unpack(packed: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Codes [r, bytes] uint8, low bits first, as floats [r, k]."""
    if bits == 8:
        out.copy_(packed.view(torch.int8))
        return
    places = out.view(*packed.shape, 8 // bits)
    for place in range(8 // bits):
        places[:, :, place] = (packed >> (place * bits)) & (2**bits - 1)


@cache
def _kernels() -> Any:
    """The compiled loops; numba is imported by the first use."""
    from aios_node.engine.nets import packed_kernels

    return packed_kernels
