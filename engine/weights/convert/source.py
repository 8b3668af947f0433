"""What every importer returns, and the checks that all imported weights pass.

Knows nothing about any format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aios_node.engine.errors import BadWeights, TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.quant.dtypes import dtype_of, is_float
from aios_node.engine.quant.fit import LEVELS
from aios_node.engine.weights.disk import read_file
from aios_node.engine.weights.loader import LazyWeightDict
from aios_node.engine.weights.manifest import MAX_FILE_BYTES, MAX_TENSORS
from aios_node.engine.weights.names import check_file_name, check_tensor_name


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model from outside: its tensors, the small files that belong to it, and what kind of model it is.

    ``kind``: ``encoder`` for text encoders that this project runs, ``weights`` for everything else.
    """

    weights: Mapping[str, Tensor]
    files: dict[str, bytes]
    kind: str

    def close(self) -> None:
        """Let go of mapped files."""
        if isinstance(self.weights, LazyWeightDict):
            self.weights.close()


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Look at every number once. Raises BadWeights for names, dtypes, NaN and Inf, naming the tensor."""
    if not weights:
        raise BadWeights("there are no tensors in it")
    if len(weights) > MAX_TENSORS:
        raise TooLarge(f"{len(weights)} tensors are more than {MAX_TENSORS}")
    for name in weights:
        check_tensor_name(name)
        check_finite(name, weights[name])


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises BadWeights when the tensor holds NaN or Inf, or would when dequantised."""
    dtype_of(dtype_name(tensor))
    if isinstance(tensor, QuantizedTensor):
        levels = LEVELS[tensor.quant_type]
        with np.errstate(over="ignore", invalid="ignore"):
            ends = [tensor.scales * (np.float32(code) - tensor.zero_points) for code in (levels.low, levels.high)]
            finite = all(np.isfinite(end.astype(dtype_of(tensor.dtype))).all() for end in ends)
    else:
        finite = not is_float(tensor.dtype.name) or bool(np.isfinite(tensor).all())
    if not finite:
        raise BadWeights(
            f"tensor {name!r} holds NaN or Inf: the training that made it diverged, or the file is damaged"
        )


def small_files(path: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Those of the named files that exist in a folder, with their content."""
    for name in names:
        if (path / check_file_name(name)).is_file():
            yield name, read_file(path / name, MAX_FILE_BYTES)
