"""The tensors of an open package as a mapping that decodes on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import BinaryIO

from aios_node.delta.checks import base_tensor, check_base, check_result
from aios_node.delta.codec.body import Coding, Wanted, read_tensors, skip_tensor
from aios_node.delta.codec.plan import Step
from aios_node.engine.errors import Corrupt, HashMismatch
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.prediction import predicts, read_prediction


class PackageWeights(Mapping[str, Tensor]):
    """The tensors of a package by name, sorted; one thread at a time.

    Nothing is kept: each access decodes anew, or maps what is the same in the base. The first access to a tensor checks
    its hash: NoBase where the base is not what its manifest says, HashMismatch or Corrupt where the package is not.
    """

    def __init__(
        self, source: BinaryIO, steps: tuple[Step, ...], coding: Coding, base: Mapping[str, Tensor], close: ExitStack
    ) -> None:
        self._source, self._coding, self._base, self._close = source, coding, base, close
        self._steps = {step.entry.name: step for step in steps}
        self._checked: set[str] = set()
        self._places: dict[str, int] = {}
        for step in steps:
            if step.mode != "same":
                self._places[step.entry.name] = source.tell()
                skip_tensor(source, step.entry, coding)
        end = source.tell()
        if source.seek(0, 2) != end:
            raise Corrupt(f"the package has {source.tell()} bytes where its tensors end at {end}")

    def __getitem__(self, name: str) -> Tensor:
        step = self._steps[name]
        old = None if step.base is None else base_tensor(self._base, step.base)
        if old is not None and step.mode == "same":
            tensor = old
        else:
            prediction = None if old is None or predicts(name) else read_prediction(self, name)
            self._source.seek(self._places[name])
            (tensor,) = read_tensors(self._source, [Wanted(step.entry, old, prediction)], self._coding)
        if name not in self._checked:
            self._check(step, tensor, old)
            self._checked.add(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def close(self) -> None:
        self._close.close()

    def _check(self, step: Step, tensor: Tensor, old: Tensor | None) -> None:
        try:
            check_result(step.entry, tensor)
        except HashMismatch:
            if old is not None and step.base is not None:
                check_base(step.base, old)  # NoBase: the base is to blame, not the package
            raise
