"""What lies between two products of 8-bit numbers, one pass over memory each.

Activations are quantised per row from its least to its largest value, ``x = scale * code + offset``; weights per output
channel, symmetric. A product's int32 result times both scales, plus the offset times the sum of the channel's weights,
is the float that it stands for. Loops are written so that the compiler makes vectors of them: least and largest are
found among the bits of floats as integers (which have the same order once negative ones are turned round), and no
branch is inside. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.jit import inlined, kernel

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Products = NDArray[np.int32]

_LEAST = np.float32(1e-30)
_HALF = np.float32(0.5)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SMALLEST, _LARGEST = np.int32(-(2**31)), np.int32(2**31 - 1)
_EDGE = np.float32(4.0)

# Least squares fit of (Phi(x) - 1/2) / x in x**2 on [-4, 4], Phi the normal distribution: off by 2.5e-5 at most,
# a hundredth of what quantising the result to 8 bits changes.
_PHI = tuple(
    np.float32(value)
    for value in (
        0.39883288741111755,
        -0.06614112854003906,
        0.009641681797802448,
        -0.0010412847623229027,
        7.960813672980294e-05,
        -4.014058504253626e-06,
        1.1808915445499224e-07,
        -1.520349401928911e-09,
    )
)
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = _PHI

# Least squares fit of 2**x on [0, 1): off by 4e-6 of the value at most, a thousandth of what 8 bits change.
_POWER = tuple(
    np.float32(value)
    for value in (
        1.000002518130136,
        0.6930066206638755,
        0.24142749325119872,
        0.05203742877442369,
        0.013520603197211933,
    )
)
_E0, _E1, _E2, _E3, _E4 = _POWER
_LOG2_E = np.float32(1.4426950408889634)
_TINY = np.float32(-126.0)


@inlined
def quantise_row(row: Floats, m: Any, codes: Codes, scales: Floats, offsets: Floats, ends: Products) -> None:
    """Row 0 of ``row`` [1, k] into row ``m`` of codes [m, k]; ``ends`` int32 [2] is room for its least and largest."""
    ends[0], ends[1] = _LARGEST, _SMALLEST
    low, high = _LARGEST, _SMALLEST
    bits = row.view(np.int32)
    for k in range(bits.shape[1]):
        order = bits[0, k] ^ ((bits[0, k] >> np.int32(31)) & _MAGNITUDE)
        low, high = min(low, order), max(high, order)
    ends[0] = low ^ ((low >> np.int32(31)) & _MAGNITUDE)
    ends[1] = high ^ ((high >> np.int32(31)) & _MAGNITUDE)
    least, most = ends.view(np.float32)[0], ends.view(np.float32)[1]
    step = (most - least) / np.float32(255)
    step = _LEAST if step < _LEAST else step  # NaN stays, and is found in the result
    inverse = np.float32(1) / step
    for k in range(row.shape[1]):
        codes[m, k] = np.int8(np.int32(np.floor((row[0, k] - least) * inverse + _HALF)) - np.int32(128))
    scales[m], offsets[m] = step, least + np.float32(128) * step


@kernel
def quantise(x: Floats, codes: Codes, scales: Floats, offsets: Floats) -> None:
    """Rows of floats [m, k] to codes int8 [m, k], scales and offsets [m]."""
    row, ends = np.empty((1, x.shape[1]), np.float32), np.empty(2, np.int32)
    for m in range(x.shape[0]):
        for k in range(x.shape[1]):
            row[0, k] = x[m, k]
        quantise_row(row, m, codes, scales, offsets, ends)


@kernel
def rescale(
    products: Products, scales: Floats, offsets: Floats, weights: Floats, sums: Floats, bias: Floats, out: Floats
) -> None:
    """What products [m, n] stand for -> floats [m, n].

    Scales and offsets [m] of the rows, scales [n] and sums [n] of each channel's weights, bias [n].
    """
    for m in range(products.shape[0]):
        scale, offset = scales[m], offsets[m]
        for n in range(products.shape[1]):
            out[m, n] = np.float32(products[m, n]) * (scale * weights[n]) + (offset * sums[n] + bias[n])


@kernel
def gelu_quantise(
    products: Products,
    scales: Floats,
    offsets: Floats,
    weights: Floats,
    sums: Floats,
    bias: Floats,
    codes: Codes,
    new_scales: Floats,
    new_offsets: Floats,
) -> None:
    """``gelu`` of what ``rescale`` gives, quantised: codes int8 [m, n], their scales [m] and offsets [m]."""
    row, ends = np.empty((1, products.shape[1]), np.float32), np.empty(2, np.int32)
    for m in range(products.shape[0]):
        scale, offset = scales[m], offsets[m]
        for n in range(products.shape[1]):
            x = np.float32(products[m, n]) * (scale * weights[n]) + (offset * sums[n] + bias[n])
            z = x if x > -_EDGE else -_EDGE
            z = z if z < _EDGE else _EDGE
            t = z * z
            half = ((((((_P7 * t + _P6) * t + _P5) * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
            row[0, n] = x * (_HALF + z * half)
        quantise_row(row, m, codes, new_scales, new_offsets, ends)


@kernel
def add_norm(
    products: Products,
    scales: Floats,
    offsets: Floats,
    weights: Floats,
    sums: Floats,
    bias: Floats,
    x: Floats,
    gain: Floats,
    shift: Floats,
    eps: Any,
    out: Floats,
    codes: Codes,
    new_scales: Floats,
    new_offsets: Floats,
) -> None:
    """Layer norm of ``x`` [m, n] plus what ``rescale`` gives -> floats [m, n]; gain and shift [n], eps float32.

    The result is quantised too: codes int8 [m, n], their scales [m] and offsets [m]; where there are no codes, [0, 0],
    nobody needs that.
    """
    width = products.shape[1]
    quantised, ends = np.empty((1, width), np.float32), np.empty(2, np.int32)
    for m in range(products.shape[0]):
        scale, offset, total = scales[m], offsets[m], np.float32(0)
        row = out[m]
        for n in range(width):
            value = np.float32(products[m, n]) * (scale * weights[n]) + (offset * sums[n] + bias[n]) + x[m, n]
            row[n] = value
            total += value
        mean, spread = total / np.float32(width), np.float32(0)
        for n in range(width):
            distance = row[n] - mean
            spread += distance * distance
        factor = np.float32(1) / np.sqrt(spread / np.float32(width) + eps)
        for n in range(width):
            row[n] = (row[n] - mean) * factor * gain[n] + shift[n]
        if codes.shape[0]:
            for n in range(width):
                quantised[0, n] = row[n]
            quantise_row(quantised, m, codes, new_scales, new_offsets, ends)


@kernel
def attend(
    products: Products,
    scales: Floats,
    offsets: Floats,
    weights: Floats,
    sums: Floats,
    bias: Floats,
    heads: Any,
    length: Any,
    codes: Codes,
    new_scales: Floats,
    new_offsets: Floats,
) -> None:
    """Attention over what ``rescale`` gives, quantised: for texts of the same few tokens each, without padding.

    ``products`` int32 [m, 3 d]: query, key and value of each token; texts of ``length`` tokens follow each other in
    m. Result: codes int8 [m, d], scales and offsets [m].
    """
    width = products.shape[1] // 3
    size = width // heads
    mixed = np.empty(products.shape, np.float32)
    rescale(products, scales, offsets, weights, sums, bias, mixed)
    parts = mixed.reshape(products.shape[0], 3, heads, size)
    row, ends = np.empty((1, width), np.float32), np.empty(2, np.int32)
    shares, powers, out = np.empty(length, np.float32), np.empty(length, np.int32), np.empty(size, np.float32)
    floats, root = powers.view(np.float32), _LOG2_E / np.sqrt(np.float32(size))
    for m in range(products.shape[0]):
        first = m - m % length
        for h in range(heads):
            most = np.float32(-np.inf)
            for j in range(length):
                score = np.float32(0)
                for c in range(size):
                    score += parts[m, 0, h, c] * parts[first + j, 1, h, c]
                shares[j] = score * root
                most = max(most, shares[j])
            for j in range(length):  # two to the whole part is made of bits, two to the rest by a polynomial
                x = max(shares[j] - most, _TINY)
                whole = np.floor(x)
                x -= whole
                powers[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                shares[j] = (((_E4 * x + _E3) * x + _E2) * x + _E1) * x + _E0
            total = np.float32(0)
            for j in range(length):
                shares[j] *= floats[j]
                total += shares[j]
            for c in range(size):
                out[c] = np.float32(0)
            for j in range(length):
                for c in range(size):
                    out[c] += shares[j] * parts[first + j, 2, h, c]
            for c in range(size):
                row[0, h * size + c] = out[c] / total
        quantise_row(row, m, codes, new_scales, new_offsets, ends)
