"""How many examples a version learned from, as its recipe tells, and what that makes of the heads of a merge.

``samples`` counts the examples of the last training, ``total_samples`` those of the version's whole history. What a
head learned since the common ancestor is the difference of two totals, which the two manifests alone tell: it holds
after several trainings, and after earlier merges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 2**53


def total_samples(recipe: Mapping[str, Any] | None) -> int:
    """Examples in the whole history of a version; 0 where the recipe does not tell, or tells nonsense."""
    told = (recipe or {}).get("total_samples", 0)
    return told if type(told) is int and 0 <= told <= MOST else 0


def learned(recipe: Mapping[str, Any] | None, parent: Mapping[str, Any] | None, samples: int) -> dict[str, Any]:
    """A recipe with the samples of this training, and those of the parent's history added to them."""
    total = min(MOST, total_samples(parent) + samples)
    return {**(recipe or {}), "samples": samples, "total_samples": total}


def since(base: Mapping[str, Any] | None, heads: Sequence[Mapping[str, Any] | None]) -> list[int]:
    """Examples that each head learned from since the base; 0 where that is not known."""
    before = total_samples(base)
    return [max(0, total_samples(head) - before) for head in heads]


def counted(samples: Sequence[int]) -> tuple[int, ...]:
    """What heads count in a mean: their samples, or 1 each as soon as one head's are not known."""
    return tuple(samples) if all(samples) else (1,) * len(samples)
