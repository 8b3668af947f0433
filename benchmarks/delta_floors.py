"""Order-0 entropy floors of pairs of versions: what a coder without memory could reach, had it the counts for nothing.

Floats: the difference D between new and old number, counted in units in the last place (both as integers in the
order of the floats), is drawn from one distribution per exponent of the old number, which the receiver knows. "Has
it changed?" is part of it: D = 0. The floor is n * H(D | exponent), with the frequencies of this very tensor. A
difference of DIRECT or more counts with its sign, its bit length and its leading bits; the bits below are counted as
they are, since the frequencies of millions of values, each seen once, would be no floor but a copy of the data.

Codes: the floor is n * H(new - old), one distribution for the whole tensor. Beside it stands n * H(new | old), which
the receiver could also use. Neither counts frequency tables, headers, or scales that changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from delta_pairs import numbers
from numpy.typing import NDArray

from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dtype_name

_MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7, "float64": 52}
_DIRECT_BITS = 6
DIRECT = 2**_DIRECT_BITS

Integers = NDArray[np.int64]


def floor_bytes(base: Tensor, target: Tensor) -> float:
    """The order-0 floor of one tensor, as the first lines of this file define it, in bytes."""
    if isinstance(base, QuantizedTensor):
        old, new = (numbers(each).astype(np.int64) for each in (base, target))
        return entropy_bits(new - old) / 8
    if dtype_name(base) not in _MANTISSA:
        old, new = (numbers(each).astype(np.int64) for each in (base, target))
        return entropy_bits(new - old) / 8
    return _float_bits(base, target) / 8


def code_floor_given_old(base: QuantizedTensor, target: QuantizedTensor) -> float:
    """n * H(new | old) of codes, in bytes."""
    old, new = (numbers(each).astype(np.int64) for each in (base, target))
    return conditional_bits(new, old) / 8


def _float_bits(base: Tensor, target: Tensor) -> float:
    mantissa = _MANTISSA[dtype_name(base)]
    old, new = numbers(base), numbers(target)
    width = 8 * old.dtype.itemsize
    exponents = (old.astype(np.uint64) >> np.uint64(mantissa)).astype(np.int64) & ((1 << (width - 1 - mantissa)) - 1)
    changed = np.flatnonzero(old != new)
    symbols, plain = _symbols(ordered(new[changed], width) - ordered(old[changed], width))
    return _bits_with_unchanged(symbols, exponents[changed], np.bincount(exponents)) + plain


def _bits_with_unchanged(symbols: Integers, contexts: Integers, totals: Integers) -> float:
    """n * H(symbol | context), where all numbers of a context that are not among the symbols have the symbol 0."""
    bits = 0.0
    order = np.argsort(contexts, kind="stable")
    starts = np.searchsorted(contexts[order], np.arange(len(totals) + 1))
    for context in np.flatnonzero(totals).tolist():
        mine = symbols[order[starts[context] : starts[context + 1]]]
        counts = np.unique(mine, return_counts=True)[1]
        bits += _bits(np.append(counts, totals[context] - len(mine)))
    return bits


def _symbols(steps: Integers) -> tuple[Integers, float]:
    """Differences -> symbols, and the bits that are counted as they are."""
    sizes = np.abs(steps)
    lengths = np.zeros(len(steps), np.int64)
    large = sizes >= DIRECT
    lengths[large] = np.floor(np.log2(sizes[large].astype(np.float64))).astype(np.int64) + 1 - _DIRECT_BITS
    lengths += (sizes >> np.maximum(lengths, 0)) >= DIRECT  # log2 rounds up at the end of a long mantissa
    shown = (sizes >> lengths) + lengths * DIRECT
    return np.where(steps < 0, -shown, shown), float(lengths.sum())


def ordered(bits: NDArray[Any], width: int) -> Integers:
    """Bits of floats -> integers in the floats' order; both zeros are 0 apart by one: -0.0 is -1."""
    signed = bits.astype(f"u{width // 8}").view(f"i{width // 8}").astype(np.int64)
    highest = (1 << (width - 1)) - 1
    return np.where(signed < 0, -(signed & highest) - 1, signed)


def entropy_bits(symbols: Integers) -> float:
    """n * H(symbol): bits of all symbols together under their own frequencies."""
    return _bits(np.unique(symbols, return_counts=True)[1])


def conditional_bits(symbols: Integers, contexts: Integers) -> float:
    """n * H(symbol | context)."""
    return sum(entropy_bits(symbols[contexts == context]) for context in np.unique(contexts))


def _bits(counts: NDArray[Any]) -> float:
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum())
