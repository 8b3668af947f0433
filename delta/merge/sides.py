"""The versions that meet in a merge, and whether they can: the same tensors, and numbers that may be averaged.

Knows tensors and hashes; knows nothing about strategies or files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aios_node.delta.merge.rounding import MERGED_DTYPES
from aios_node.delta.merge.strategy import Floats
from aios_node.delta.names import short
from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name
from aios_node.engine.weights.manifest import tensor_hash
from aios_node.engine.weights.network import is_beside_network

RUN = 1 << 16
"""Numbers that are merged at once: half a mebibyte of float64 for each head."""


@dataclass(frozen=True, eq=False)
class Side:
    """A version in a merge. ``hashes`` are those of its tensors; ``samples``: see samples.since."""

    version: str
    weights: Mapping[str, Tensor]
    hashes: Mapping[str, str]
    samples: int = 0

    @classmethod
    def of(cls, version: str, weights: Mapping[str, Tensor], samples: int = 0) -> Side:
        """A side whose hashes are computed now."""
        return cls(version, weights, {name: tensor_hash(weights[name]) for name in weights}, samples)

    @property
    def network(self) -> tuple[str, ...]:
        """Names of its tensors without optimiser state, sorted."""
        return tuple(name for name in sorted(self.weights) if not is_beside_network(name))


def misfit(base: Side, head: Side) -> str | None:
    """Why a head cannot be merged with others that have the base's tensors: a sentence for people, or None."""
    if head.network != base.network:
        odd = sorted(set(head.network) ^ set(base.network))[0]
        return f"tensor {odd!r} is not in all of the versions to be merged: {short(head.version)} differs"
    return next((problem for name in base.network if (problem := _problem(name, base, head)) is not None), None)


def agreed(base: Side, heads: Sequence[Side], name: str, *, majority: bool) -> Tensor:
    """The tensor that cannot be averaged (integers and such): what all heads have, or more than half of them.

    With ``majority`` it is the base's where no such half agrees; without, BadRequest is raised where heads differ.
    """
    counts = Counter(head.hashes[name] for head in heads)
    hash_, count = counts.most_common(1)[0]
    if 2 * count <= len(heads) and majority:
        return base.weights[name]
    if len(counts) > 1 and not majority:
        other = next(head for head in heads if head.hashes[name] != heads[0].hashes[name])
        raise BadRequest(
            f"tensor {name!r} is {dtype_name(other.weights[name])} and differs between {short(heads[0].version)} and "
            f"{short(other.version)}: such tensors cannot be averaged"
        )
    return next(head.weights[name] for head in heads if head.hashes[name] == hash_)


def changed(base: Side, heads: Sequence[Side], name: str) -> bool:
    """Whether any head has another tensor of this name than the base."""
    return any(head.hashes[name] != base.hashes[name] for head in heads)


def is_merged(tensor: Tensor) -> bool:
    """Whether tensors like this one are merged by arithmetic."""
    return not isinstance(tensor, QuantizedTensor) and dtype_name(tensor) in MERGED_DTYPES


def runs(tensor: Tensor) -> Iterator[Floats]:
    """A plain float tensor as float64, in runs of RUN numbers in C order."""
    flat = np.ascontiguousarray(np.asarray(tensor)).reshape(-1)
    for start in range(0, flat.size, RUN):
        yield flat[start : start + RUN].astype(np.float64)


def unsound(side: Side, names: Sequence[str]) -> str | None:
    """The first of these tensors in which a version holds NaN or Inf."""
    return next((name for name in names if not all(np.isfinite(run).all() for run in runs(side.weights[name]))), None)


def check_sound(side: Side, names: Sequence[str], what: str) -> None:
    """Raises BadWeights if the version holds NaN or Inf, naming it and the tensor."""
    name = unsound(side, names)
    if name is not None:
        raise BadWeights(f"{what} {short(side.version)} holds NaN or Inf in tensor {name!r}")


def _problem(name: str, base: Side, head: Side) -> str | None:
    mine, tensor = base.weights[name], head.weights[name]
    if isinstance(tensor, QuantizedTensor) or isinstance(mine, QuantizedTensor):
        return (
            f"tensor {name!r} of {short(head.version)} is quantised: merge the model that it was derived from; "
            "the node then makes its precisions anew"
        )
    if (tuple(tensor.shape), dtype_name(tensor)) != (tuple(mine.shape), dtype_name(mine)):
        return f"tensor {name!r} of {short(head.version)} has another shape or dtype than the ancestor's"
    return None
