"""Sizes of one pair of versions under every codec, each decoded again and compared bit by bit. Knows no tables."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from delta_floors import floor_bytes
from delta_pairs import numbers
from delta_parts import Part, Parts, changed_parts, parts_of
from delta_rivals import Rival, xor_planes

from aios_node import delta
from aios_node.delta.codec.diff import MAGIC
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.stored import stored_parts

OURS = "ours"
FLOOR = "floor"
_SECTIONS = 3
SLACK = 64
"""Bytes that a delta may be larger than the smaller of XOR planes and a full copy, beside a thousandth."""


@dataclass(frozen=True)
class Sizes:
    """What one pair takes. ``coded``: bytes by codec, ours and the floor among them."""

    changed: float  # share of numbers in the changed tensors
    raw: int  # bytes of everything
    raw_changed: int  # bytes of the tensors that changed
    header: int  # bytes of ours that are lists of tensors with their hashes, not deltas
    coded: dict[str, int]

    def ratio(self, name: str, *, everything: bool = False) -> float:
        """Raw bytes over coded bytes."""
        return (self.raw if everything else self.raw_changed) / max(1, self.coded[name])

    @property
    def excess(self) -> int:
        """Bytes of ours beyond what is allowed: 0.1 % and SLACK over the smaller of two plain codings at level 3."""
        if not self.raw_changed:
            return max(0, self.coded[OURS] - self.header - SLACK)
        plain = min(self.coded["XOR planes + zstd 3"], self.coded["zstd 3, full copy"])
        return max(0, round(self.coded[OURS] - self.header - 1.001 * plain - SLACK))


class BrokenCodec(Exception):
    """What was decoded is not what was encoded; the message names the codec."""


def sizes(base: Mapping[str, Tensor], target: Mapping[str, Tensor], others: list[Rival]) -> Sizes:
    """Encode a pair with ours and all others. Raises BrokenCodec where a round trip fails."""
    old, new = changed_parts(parts_of(base), parts_of(target))
    blob = encoded(base, target)
    coded = {OURS: len(blob)}
    for rival in others:
        if new and rival.takes(new):
            coded[rival.name] = _size(rival, old, new)
    differing = {name: target[name] for name in target if _differs(base[name], target[name])}
    coded[FLOOR] = round(sum(floor_bytes(base[name], target[name]) for name in differing) + _other_parts(old, new))
    return Sizes(
        changed=_share(base, differing),
        raw=sum(tensor.nbytes for tensor in target.values()),
        raw_changed=sum(tensor.nbytes for tensor in differing.values()),
        header=_header(blob),
        coded=coded,
    )


def encoded(base: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> bytes:
    """Our delta. Raises BrokenCodec where applying it gives something else."""
    blob = delta.encode(base, target)
    found = delta.apply(base, blob)
    if any(_differs(found[name], target[name]) for name in target):
        raise BrokenCodec("delta.apply gave another target than was encoded")
    return blob


def _header(blob: bytes) -> int:
    """What stands before the tensors: magic, settings and two lists of tensors with their hashes."""
    source = io.BytesIO(blob)
    source.seek(len(MAGIC))
    for _ in range(_SECTIONS):
        source.seek(int.from_bytes(source.read(4), "little"), 1)
    return source.tell()


def _size(rival: Rival, old: Parts, new: Parts) -> int:
    data = rival.encode(old, new)
    found = rival.decode(old, data)
    if any(not np.array_equal(found[name], part.data) for name, part in new.items()):
        raise BrokenCodec(f"{rival.name} gave another target than was encoded")
    return len(data)


def _differs(one: Tensor, other: Tensor) -> bool:
    pairs = zip(stored_parts(one), stored_parts(other), strict=True)
    return any(not np.array_equal(left, right) for left, right in pairs)


def _share(base: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> float:
    count = sum(numbers(tensor).size for tensor in target.values())
    changed = sum(int(np.count_nonzero(numbers(base[name]) != numbers(target[name]))) for name in target)
    return changed / max(1, count)


def _other_parts(old: Mapping[str, Part], new: Mapping[str, Part]) -> float:
    """Scales and zero points that changed, as XOR planes with zstd: the floor of codes says nothing about them."""
    rest = {name: part for name, part in new.items() if name.rpartition(".")[2] in _SCALES}
    return len(xor_planes(3).encode({name: old[name] for name in rest}, rest)) if rest else 0.0


_SCALES = frozenset({"scales", "zero_points", "steps", "scale_codes", "zero_codes"})
