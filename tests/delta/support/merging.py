"""Versions to merge, and merging them in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.delta.merge.registry import make_strategy
from aios_node.delta.merge.sides import Side
from aios_node.delta.merge.spool import Spool
from aios_node.delta.merge.weights import Merged, merge

Arrays = Mapping[str, Any]
BASE = "f" * 64


def version(number: int) -> str:
    """The id of head ``number``; ids are sorted as numbers are."""
    return f"{number:064x}"


def merged(
    base: Arrays,
    heads: Sequence[Arrays],
    strategy: str,
    samples: Sequence[int] = (),
    order: Sequence[int] = (),
    **options: Any,
) -> Merged:
    """Merge heads with ids 0, 1, ..., handed over in ``order``."""
    counts = samples or [0] * len(heads)
    sides = [Side.of(version(n), head, count) for n, (head, count) in enumerate(zip(heads, counts, strict=True))]
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        given = [sides[n] for n in order] if order else sides
        return merge(Side.of(BASE, base), given, make_strategy(strategy, options), spool)


def one(base: Any, heads: Sequence[Any], strategy: str, **options: Any) -> Any:
    """Merge versions of a single tensor."""
    return merged({"w": base}, [{"w": head} for head in heads], strategy, **options).weights["w"]


def group(
    seed: int, count: int, size: int = 40, spread: float = 0.01
) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """A base, float32 [size], and heads near it."""
    random = np.random.default_rng(seed)
    base = random.normal(size=size).astype(np.float32)
    return base, [(base + random.normal(0, spread, size)).astype(np.float32) for _ in range(count)]
