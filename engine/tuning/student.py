"""An encoder whose quantised linear maps, biases and norms can be trained, beside the teacher it imitates.

Built from a quantised model and the floats it came from. Knows what is trained, not how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, prefix_of, tensor_shapes
from aios_node.engine.nets.linear import Linear, Projection
from aios_node.engine.nets.tensors import WeightReader
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dense, dtype_name
from aios_node.engine.quant.dtypes import dtype_of
from aios_node.engine.tuning.fakequant import TrainableTensor, can_learn
from aios_node.engine.tuning.slots import TrainableLinear


class Student:
    """The network that is trained: ``net`` computes with what would be stored now.

    ``quantized`` are matrices quantised along axis 0, which learn; what else the encoder's blocks hold in floats
    (biases, norms) learns too; embeddings, and matrices quantised along another axis, stay as they are. Raises
    BadWeights as Encoder.build does.
    """

    def __init__(self, config: EncoderConfig, original: Mapping[str, Tensor], quantized: Mapping[str, Tensor]) -> None:
        self._prefix = prefix_of(original)
        self._given = quantized
        tensors = WeightReader(quantized, prefix=self._prefix).read_all(tensor_shapes(config))
        self.matrices = dict(self._matrices(original))
        self.floats = {
            name: tensor.clone().requires_grad_()
            for name, tensor in tensors.items()
            if name.startswith("encoder.") and not isinstance(quantized[self._prefix + name], QuantizedTensor)
        }
        self.net = Encoder.assemble(config, {**tensors, **self.floats}, wrap=self._wrap)

    def export(self) -> dict[str, Tensor]:
        """All tensors as they are to be stored; those that did not learn are the same objects."""
        learned: dict[str, Tensor] = {name: matrix.export() for name, matrix in self.matrices.items()}
        for name, tensor in self.floats.items():
            kind = dtype_of(dtype_name(self._given[self._prefix + name]))
            learned[name] = tensor.detach().numpy().astype(kind, copy=True)
        return {**self._given, **{self._prefix + name: tensor for name, tensor in learned.items()}}

    def state(self) -> dict[str, torch.Tensor]:
        """Every trained tensor by a name of its own, in a fixed order."""
        named = dict(self.floats)
        for name, matrix in self.matrices.items():
            named |= {f"{name}:{part}": getattr(matrix, part) for part in ("latent", "stretch", "zeros")}
        return named

    def _matrices(self, original: Mapping[str, Tensor]) -> Iterator[tuple[str, TrainableTensor]]:
        for full, tensor in sorted(self._given.items()):
            name = full.removeprefix(self._prefix)
            if name.startswith("encoder.") and isinstance(tensor, QuantizedTensor) and can_learn(tensor):
                yield name, TrainableTensor.of(np.asarray(dense(original[full]), np.float32), tensor)

    def _wrap(self, name: str, linear: Linear) -> Projection:
        matrix = self.matrices.get(f"{name}.weight")
        return linear if matrix is None else TrainableLinear(matrix, linear.bias, linear.activation)
