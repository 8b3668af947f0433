"""Merges whole versions, tensor by tensor and run by run: heads and their common ancestor in, tensors out.

The same versions give the same bits on every node and every processor: heads are sorted by version id, arithmetic
is elementwise float64, and each number is rounded once to its tensor's dtype. Memory is bounded by a few runs for
each head, whatever the model's size; results lie in a spool on disk. Knows no store and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.merge.rounding import rounded
from aios_node.delta.merge.samples import counted
from aios_node.delta.merge.sides import Side, agreed, changed, check_sound, is_merged, misfit, runs, unsound
from aios_node.delta.merge.spool import Place, Spool
from aios_node.delta.merge.state import STATE_DTYPE, read_state, state_name, stored_state
from aios_node.delta.merge.strategy import Block, Combine, Combined, Meeting, Strategy
from aios_node.delta.names import short
from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.quant.blocks import Tensor, dtype_name

Progress = Callable[[int, int], None]
"""Told the tensors that are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class Merged:
    """Tensors of the merged version, optimiser state among them, and the heads that did not take part."""

    weights: dict[str, Tensor]
    left_out: tuple[str, ...]


def merge(
    base: Side, heads: Sequence[Side], strategy: Strategy, spool: Spool, progress: Progress = lambda _done, _all: None
) -> Merged:
    """Merge heads that descend from ``base``; their order does not matter.

    Raises BadRequest for too few heads, and for more heads that do not fit (see sides.misfit, sides.agreed) than the
    strategy can do without; BadWeights where NaN and Inf make them more, and for results that do not fit their dtype.
    """
    ordered = sorted(heads, key=lambda head: head.version)
    if len(ordered) < strategy.least:
        raise BadRequest(
            f"{strategy.name} needs at least {strategy.least} heads with these options, not {len(ordered)}"
        )
    return _Merge(base, ordered, strategy, spool).run(progress)


class _Merge:
    def __init__(self, base: Side, heads: Sequence[Side], strategy: Strategy, spool: Spool) -> None:
        self._base, self._strategy, self._spool = base, strategy, spool
        fitting = self._without({head.version: problem for head in heads if (problem := misfit(base, head))}, heads)
        self._changed = [
            name for name in base.network if is_merged(base.weights[name]) and changed(base, fitting, name)
        ]
        check_sound(base, self._changed, "the common ancestor")
        bad = {head.version: name for head in fitting if (name := unsound(head, self._changed)) is not None}
        self._heads = self._sound(bad, fitting, heads)
        self._left_out = [head.version for head in heads if head not in self._heads]
        self._places: dict[str, Place] = {}

    def run(self, progress: Progress) -> Merged:
        combine = self._strategy.begin(
            Meeting(counted([head.samples for head in self._heads]), len(self._left_out), self._scan)
        )
        weights: dict[str, Tensor] = {}
        names = self._base.network
        for done, name in enumerate(names, 1):
            tensor = self._kept(name)
            if tensor is None:
                self._combine(name, combine)
            else:
                weights[name] = tensor
            progress(done, len(names))
        mapped = self._spool.map()
        weights |= {name: place.tensor(mapped) for name, place in self._places.items()}
        return Merged(weights, tuple(self._left_out))

    def _without(self, problems: Mapping[str, str], heads: Sequence[Side]) -> list[Side]:
        """Heads without those that do not fit, if the strategy can do without these."""
        if len(problems) > self._strategy.may_leave_out(len(heads)):
            raise BadRequest(next(iter(problems.values())))
        return [head for head in heads if head.version not in problems]

    def _sound(self, bad: Mapping[str, str], fitting: Sequence[Side], heads: Sequence[Side]) -> list[Side]:
        """Heads without those that hold NaN or Inf (and in which tensor), if the strategy can do without these, too."""
        most = self._strategy.may_leave_out(len(heads))
        if len(bad) + len(heads) - len(fitting) > most:
            version, name = next(iter(bad.items()))
            can = f"can do without {most}" if most else "has no defence against them"
            raise BadWeights(
                f"{len(bad)} of {len(heads)} heads hold NaN or Inf, {short(version)} in tensor {name!r}; "
                f"{self._strategy.name} {can}"
            )
        return [head for head in fitting if head.version not in bad]

    def _scan(self) -> Iterator[Block]:
        for name in self._changed:
            yield from self._blocks(name, {})

    def _blocks(self, name: str, state: Mapping[str, Tensor]) -> Iterator[Block]:
        sides = [runs(side.weights[name]) for side in (self._base, *self._heads)]
        kept = {kind: runs(tensor) for kind, tensor in state.items()}
        for base, *heads in zip(*sides, strict=True):
            yield Block(base, tuple(heads), {kind: next(tensor) for kind, tensor in kept.items()})

    def _kept(self, name: str) -> Tensor | None:
        """What becomes of a tensor without any arithmetic, where that is so."""
        first = self._heads[0]
        if not is_merged(self._base.weights[name]):
            return agreed(self._base, self._heads, name, majority=self._strategy.robust)
        if name not in self._changed:
            return None if self._state(name) else self._base.weights[name]
        alike = all(head.hashes[name] == first.hashes[name] for head in self._heads)
        return first.weights[name] if alike and self._strategy.keeps_agreement else None

    def _state(self, name: str) -> dict[str, Tensor]:
        return read_state(self._strategy, self._base.weights, name, tuple(self._base.weights[name].shape))

    def _combine(self, name: str, combine: Combine) -> None:
        """Merge one tensor into the spool, with its optimiser state."""
        tensor = self._base.weights[name]
        layout = {name: dtype_name(tensor)} | {state_name(kind, name): STATE_DTYPE for kind in self._strategy.state}
        places = {each: self._spool.reserve(dtype, tuple(tensor.shape)) for each, dtype in layout.items()}
        ends = {each: place.start for each, place in places.items()}
        for block in self._blocks(name, self._state(name)):
            found = _quietly(combine, block)
            parts = {name: rounded(found.values, layout[name])} | stored_state(name, found.state)
            for each, values in parts.items():
                _check_finite(each, values)
                self._spool.write(ends[each], values)
                ends[each] += values.nbytes
        self._places |= places


def _quietly(combine: Combine, block: Block) -> Combined:
    """Numbers that grow too large are told by their tensor, not by a warning of the arithmetic."""
    with np.errstate(over="ignore", invalid="ignore"):
        return combine(block)


def _check_finite(name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise BadWeights(
            f"merging makes tensor {name!r} too large for {values.dtype.name}: lower learning_rate or scale, "
            "or look for a head that has gone astray"
        )
