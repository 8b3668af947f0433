"""All tensors of an update as one vector and back, in one order that everybody shares. Knows nothing of privacy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.weights.names import canonical_json

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """Names and shapes, sorted by name."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, update: Mapping[str, NDArray[Any]]) -> Layout:
        """The layout of these tensors."""
        return cls(tuple((name, tuple(update[name].shape)) for name in sorted(update)))

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def digest(self) -> str:
        """sha256 (hex) over names and shapes: two nodes with the same one mean the same by every number."""
        listed = [[name, list(shape)] for name, shape in self.shapes]
        return hashlib.sha256(canonical_json({"layout": listed})).hexdigest()

    def flat(self, update: Mapping[str, NDArray[Number]]) -> NDArray[Number]:
        """The tensors one after the other, [length]; of their own dtype. Raises BadRequest for another layout."""
        if Layout.of(update) != self:
            raise BadRequest("an update of another layout: names or shapes of its tensors differ")
        parts = [update[name].reshape(-1) for name, _ in self.shapes]
        return np.concatenate(parts) if parts else np.zeros(0)  # type: ignore[return-value]  # nothing has no dtype

    def parts(self, vector: NDArray[Number]) -> dict[str, NDArray[Number]]:
        """The vector [length] as tensors: views of it. Raises BadRequest for another length."""
        if vector.shape != (self.length,):
            raise BadRequest(f"a vector of shape {vector.shape} for an update of {self.length} numbers")
        parts, at = {}, 0
        for name, shape in self.shapes:
            count = math.prod(shape)
            parts[name] = vector[at : at + count].reshape(shape)
            at += count
        return parts
