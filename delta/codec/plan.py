"""What has to travel between two versions: a pure function of their two lists of tensors.

Sender and receiver compute it for themselves from the manifests, so that nobody can lie about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aios_node.engine.weights.manifest import Manifest, TensorEntry
from aios_node.engine.weights.prediction import predicts

TensorMode = Literal["same", "delta", "full"]


@dataclass(frozen=True)
class Step:
    """One tensor of the target: equal to the base's, coded against it, or coded by itself."""

    entry: TensorEntry
    mode: TensorMode
    base: TensorEntry | None = None


def plan(base: Manifest | None, target: Manifest) -> tuple[Step, ...]:
    """Steps for all tensors of the target, sorted by name, those first that predict others.

    Tensors that only the base has do not appear.
    """
    known: Mapping[str, TensorEntry] = {} if base is None else base.entries
    steps = (_step(known.get(entry.name), entry) for entry in target.tensors)
    return tuple(sorted(steps, key=lambda step: not predicts(step.entry.name)))


def changed_bytes(steps: tuple[Step, ...]) -> int:
    """Raw size of the tensors that are not the same."""
    return sum(step.entry.nbytes for step in steps if step.mode != "same")


def _step(base: TensorEntry | None, entry: TensorEntry) -> Step:
    if base is None or not same_layout(base, entry):
        return Step(entry, "full")
    return Step(entry, "same" if base.sha256 == entry.sha256 else "delta", base)


def same_layout(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors have the same dtype, shape and quantisation, so that their parts correspond."""
    return _layout(one) == _layout(other)


def _layout(entry: TensorEntry) -> tuple[object, ...]:
    return entry.dtype, entry.shape, entry.quant_type, entry.quant_axis, entry.group_size, entry.scale_codec
