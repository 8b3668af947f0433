"""Compiled loops of noise and clipping. What leaves a node passes as whole numbers.

The sampler is Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), algorithms 1 to 3,
for a standard deviation of ``2**bits``. With such a one every fraction in it has a power of two below, so that a
uniform number is a mask of random bits. Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.jit import exact_kernel, inlined

Words = NDArray[np.uint64]

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_ONE = np.uint64(1)
_MOST_WHOLE = np.int64(100)


@inlined
def _one_in(words: Words, at: int, k: np.uint64) -> tuple[bool, int]:
    """(happened, next word): true with probability exactly 1/k."""
    part = _ALL // k
    while True:
        word = words[at]
        at += 1
        if word < part * k:
            return word < part, at


@inlined
def _exp(words: Words, at: int, numerator: np.uint64, bits: np.uint64) -> tuple[bool, int]:
    """(happened, next word): true with probability exactly exp(-numerator / 2**bits), for fractions from 0 to 1."""
    mask = (_ONE << bits) - _ONE
    whole = numerator > mask
    k = _ONE
    while True:
        if not whole:
            small = (words[at] & mask) < numerator
            at += 1
            if not small:
                break
        if k > _ONE:
            small, at = _one_in(words, at, k)
            if not small:
                break
        k += _ONE
    return (k & _ONE) == _ONE, at


@inlined
def _laplace(words: Words, at: int, bits: np.uint64) -> tuple[np.int64, int]:
    """(value, next word): the discrete Laplace distribution of scale 2**bits."""
    scale = _ONE << bits
    while True:
        word = words[at]
        at += 1
        below = word & (scale - _ONE)
        negative = (word >> np.uint64(63)) == _ONE
        happened, at = _exp(words, at, below, bits)
        if not happened:
            continue
        whole = np.int64(0)
        while whole < _MOST_WHOLE:  # more are cut off; the Gaussian would keep one in exp(4900) of them
            happened, at = _exp(words, at, _ONE, np.uint64(0))
            if not happened:
                break
            whole += 1
        value = whole * np.int64(scale) + np.int64(below)
        if negative and value == 0:
            continue
        return (-value if negative else value), at


@inlined
def _gaussian(words: Words, at: int, bits: np.uint64) -> tuple[np.int64, int]:
    """(value, next word): the discrete Gaussian of standard deviation 2**bits."""
    fraction_bits = np.uint64(2) * bits + _ONE
    while True:
        value, at = _laplace(words, at, bits)
        distance = np.uint64(abs(abs(value) - (np.int64(1) << np.int64(bits))))
        square = distance * distance  # exponent of the acceptance, in 2**-fraction_bits
        kept = True
        for _ in range(square >> fraction_bits):
            kept, at = _exp(words, at, _ONE, np.uint64(0))
            if not kept:
                break
        if kept:
            kept, at = _exp(words, at, square & ((_ONE << fraction_bits) - _ONE), fraction_bits)
        if kept:
            return value, at


@exact_kernel
def gaussians(words: Words, reserve: int, bits: int, out: NDArray[np.int64]) -> tuple[int, int]:
    """Fill ``out`` from random words; returns (values made, words used).

    Stops before a value for which fewer than ``reserve`` words are left. ``bits`` is from 2 to 24.
    """
    at, made = 0, 0
    while made < len(out) and at + reserve <= len(words):
        out[made], at = _gaussian(words, at, np.uint64(bits))
        made += 1
    return made, at


@exact_kernel
def largest(values: NDArray[np.float64]) -> float:
    """The largest size among the values; NaN if there is one."""
    found = 0.0
    for value in values:
        size = abs(value)
        if not size <= found:
            if np.isnan(size):
                return np.nan
            found = size
    return found


@exact_kernel
def squared_length(values: NDArray[np.float64], unit: float) -> float:
    """Sum of squares of the values in units of ``unit``."""
    total = 0.0
    for value in values:
        total += (value / unit) ** 2
    return total


@exact_kernel
def to_steps(
    values: NDArray[np.float64], unit: float, factor: float, out: NDArray[np.int64]
) -> tuple[np.uint64, np.uint64]:
    """Write ``value / unit * factor``, rounded towards zero; returns the exact sum of squares of what was written.

    It is (high, low), meaning high * 2**32 + low: exact for up to 2**31 numbers below 2**32 in size.
    """
    high, low = np.uint64(0), np.uint64(0)
    for index in range(len(values)):
        steps = np.int64(values[index] / unit * factor)
        out[index] = steps
        size = np.uint64(abs(steps))
        square = size * size
        high += square >> np.uint64(32)
        low += square & np.uint64(0xFFFF_FFFF)
    return high, low
