"""Numbers as byte planes: the plane of all highest bytes, then the next, down to the lowest.

The planes of a difference between two versions are mostly zeros at the top and noise at the bottom, which an
entropy coder handles well once they are apart. Everything here is a bijection on bits, so it is exact for
NaN, infinities and negative zero. Knows nothing about tensors, compression or files.

Byte shuffling follows Blosc's shuffle filter; the ordered view of floats is the usual total order of IEEE 754
bit patterns (so that a difference counts units in the last place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[Any]

WORDS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclass(frozen=True)
class Element:
    """One number of a part: its width in bytes (1, 2, 4, 8), and what its bits mean.

    ``mantissa``: bits of a float's mantissa, 0 for integers; ``code``: bits of a code, where a byte holds several.
    """

    width: int
    mantissa: int = 0
    code: int = 8

    @property
    def is_float(self) -> bool:
        """Whether its bits are sign, exponent and mantissa."""
        return self.mantissa > 0


def as_words(data: Bytes, width: int) -> Words:
    """The bytes [n * width] as unsigned integers [n], without copying."""
    return data.view(WORDS[width])


def split(words: Words) -> Bytes:
    """Words [n] -> planes [width, n], highest byte first."""
    width = words.dtype.itemsize
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, width)[:, ::-1].T)


def join(planes: Bytes, width: int) -> Words:
    """Planes [width * n] -> words [n]; the inverse of split."""
    data = np.empty((planes.size // width, width), np.uint8)
    for place, plane in enumerate(planes.reshape(width, -1)):
        data[:, width - 1 - place] = plane  # measured 2.5 times as fast as one transposed assignment
    return data.reshape(-1).view(WORDS[width])


def ordered(words: Words) -> Words:
    """Bits of floats -> integers in the same order as the floats."""
    negative = _zero(words) - (words >> _shift(words))
    flipped: Words = words ^ (negative | _top_bit(words))
    return flipped


def unordered(words: Words) -> Words:
    """The inverse of ordered."""
    negative = (words >> _shift(words)) - words.dtype.type(1)
    restored: Words = words ^ (negative | _top_bit(words))
    return restored


def difference(target: Words, base: Words) -> Words:
    """target - base modulo 2^bits, folded so that small steps in both directions are small: 0, -1, 1, -2, ..."""
    step = target - base
    folded: Words = (step << step.dtype.type(1)) ^ (_zero(step) - (step >> _shift(step)))
    return folded


def undo_difference(folded: Words, base: Words) -> Words:
    """The inverse of difference: the target."""
    one = folded.dtype.type(1)
    target: Words = ((folded >> one) ^ (_zero(folded) - (folded & one))) + base
    return target


def _zero(words: Words) -> Any:
    return words.dtype.type(0)


def _shift(words: Words) -> Any:
    return words.dtype.type(8 * words.dtype.itemsize - 1)


def _top_bit(words: Words) -> Any:
    return words.dtype.type(1 << (8 * words.dtype.itemsize - 1))
