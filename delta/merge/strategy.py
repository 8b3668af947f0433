"""What a way of merging has to offer, and what it is given: runs of numbers, never a whole model.

Every number of a merged version depends only on the numbers of the common ancestor and of the heads at the same
place, on a few numbers that one pass over everything gave before, and on the optimiser state of the ancestor.
Arithmetic is float64, one elementwise operation after the other, heads in the order of their version ids: the
same bits on every processor. Knows nothing about versions, files or dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """The same run of numbers, float64 [m] each: of the common ancestor, and of every head that takes part.

    ``state`` is the ancestor's optimiser state by kind; a kind is missing where it has not begun yet.
    """

    base: Floats
    heads: tuple[Floats, ...]
    state: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Combined:
    """What becomes of a block: numbers float64 [m], and the new optimiser state by kind."""

    values: Floats
    state: Mapping[str, Floats] = field(default_factory=dict)


Combine: TypeAlias = Callable[[Block], Combined]
"""Merges one block; blocks may come in any order and each more than once."""


@dataclass(frozen=True, eq=False)
class Meeting:
    """Who meets. ``samples``: how many examples each head learned from since the ancestor, all 1 where unknown.

    ``left_out``: heads that do not take part, for NaN, Inf, or tensors that do not fit. ``scan`` goes over all blocks
    that any head changed, for strategies that must see everything once; their state is empty.
    """

    samples: tuple[int, ...]
    left_out: int
    scan: Callable[[], Iterator[Block]]

    @property
    def count(self) -> int:
        """Heads that take part."""
        return len(self.samples)


class Strategy(Protocol):
    """One way of merging. Its options are its fields; it raises BadConfig for those that cannot work."""

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]]
    """Kinds of optimiser state that it keeps; none for most."""
    keeps_agreement: ClassVar[bool]
    """Whether what all heads agree on is the result."""
    robust: ClassVar[bool]
    """Whether it stands faulty heads: then what is no number (files, integers) goes by majority too."""

    @property
    def least(self) -> int:
        """Heads without which it promises nothing."""
        ...

    def may_leave_out(self, count: int) -> int:
        """How many of this many heads may hold NaN or Inf, or not fit; they are left out, and count as faulty."""
        ...

    def begin(self, meeting: Meeting) -> Combine:
        """Look at everything, if need be, and return what merges each block."""
        ...
