"""From a mapping of NumPy tensors to torch tensors of the expected shapes, without copies where possible.

Knows names, shapes and dtypes; does not know what the tensors mean or where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from aios_node.engine.errors import BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.dtypes import is_float


class WeightReader:
    """Hands out the tensors of one network, checked, as float32 on one device.

    On the CPU a float32 tensor is a view of the mapping's memory (often a read-only map of a file):
    nothing is copied, and nobody may write to it. Quantised tensors are dequantised. Names may carry
    ``prefix`` in the mapping. Raises BadWeights for a tensor that is missing, has another shape or
    holds no floating point numbers.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: str = "cpu", prefix: str = "") -> None:
        self._weights = weights
        self._device = torch.device(device)
        self._prefix = prefix

    def read_all(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Return the named tensors (without prefix); several threads share the work of dequantising."""
        stored = [self.stored(name, shape) for name, shape in shapes.items()]
        workers = torch.get_num_threads() if any(isinstance(one, QuantizedTensor) for one in stored) else 1
        if workers == 1:
            return dict(zip(shapes, map(self._load, stored), strict=True))
        with ThreadPoolExecutor(workers, thread_name_prefix="aios-dequantize") as pool:
            return dict(zip(shapes, pool.map(self._load, stored), strict=True))

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return one tensor (named without prefix) as float32."""
        return self._load(self.stored(name, shape))

    def stored(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return one tensor (named without prefix) as it is stored, checked as all are."""
        name = self._prefix + name
        if name not in self._weights:
            raise BadWeights(f"tensor {name!r} is missing: config.json asks for it with shape {list(shape)}")
        stored = self._weights[name]
        if tuple(stored.shape) != shape:
            raise BadWeights(f"tensor {name!r} has shape {list(stored.shape)}, config.json asks for {list(shape)}")
        if not is_float(str(stored.dtype)):
            raise BadWeights(f"tensor {name!r} is {stored.dtype}, floating point is needed")
        return stored

    def _load(self, stored: Tensor) -> torch.Tensor:
        return as_torch(stored).to(self._device)


def as_torch(tensor: Tensor) -> torch.Tensor:
    """Return a float32 torch tensor; a contiguous float32 array is viewed, not copied.

    Goes through DLPack, the one exchange that carries "read-only": ``torch.from_numpy`` and
    ``torch.frombuffer`` warn about read-only memory, and silencing warnings is not thread-safe.
    """
    array: NDArray[np.float32] = _dense(tensor)
    return from_dlpack(array)


def _dense(tensor: Tensor) -> NDArray[np.float32]:
    array = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
    return np.ascontiguousarray(array, dtype=np.float32)
