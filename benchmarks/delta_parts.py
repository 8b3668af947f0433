"""A version as codecs see it: every array that is stored of its tensors, by name. Knows no codecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import BITS, QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.packing import pack, unpack
from aios_node.engine.weights.stored import stored_parts

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Part:
    """One array of a tensor as it is stored. ``bits``: of a packed code, 0 for everything else."""

    data: Bytes
    width: int
    dtype: str  # float32, ..., or bytes
    columns: int
    bits: int = 0

    @property
    def words(self) -> NDArray[Any]:
        """The numbers as unsigned integers, codes unpacked, [rows, columns] where that divides."""
        if self.bits:
            numbers = unpack(self.data, self.bits, self.data.size * 8 // self.bits).view(np.uint8)
        else:
            numbers = self.data.view(f"u{self.width}")
        return numbers.reshape(-1, self.columns) if numbers.size % self.columns == 0 else numbers

    def again(self, words: NDArray[Any]) -> Bytes:
        """The inverse of ``words``: bytes as stored."""
        flat = np.ascontiguousarray(words).reshape(-1)
        if self.bits:
            return pack(flat.view(np.int8) if self.bits == 8 else flat, self.bits)
        return flat.view(np.uint8)


Parts = Mapping[str, Part]


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Every array of some tensors by name."""
    return {key: part for name, tensor in tensors.items() for key, part in _parts(name, tensor)}


def _parts(name: str, tensor: Tensor) -> list[tuple[str, Part]]:
    stored = stored_parts(tensor)
    columns = int(np.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else 1
    if not isinstance(tensor, QuantizedTensor):
        width = tensor.dtype.itemsize
        return [(name, Part(stored[0], width, dtype_name(tensor), columns))]
    codes = (f"{name}.codes", Part(stored[0], 1, "bytes", columns, BITS[tensor.quant_type]))
    if tensor.compact is None:
        kinds = [("scales", 4, "float32"), ("zero_points", 4, "float32")]
    else:
        kinds = [("steps", 2, "float16"), ("scale_codes", 1, "bytes"), ("zero_codes", 1, "bytes")]
    rest = zip(kinds, stored[1:], strict=True)
    return [codes, *((f"{name}.{kind}", Part(data, width, dtype, 1)) for (kind, width, dtype), data in rest)]


def changed_parts(base: Parts, target: Parts) -> tuple[dict[str, Part], dict[str, Part]]:
    """Both sides of the parts that differ."""
    names = [name for name in target if not np.array_equal(base[name].data, target[name].data)]
    return {name: base[name] for name in names}, {name: target[name] for name in names}
