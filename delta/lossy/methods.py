"""An update in float32 -> codes of few bits with a scale per group, by each method.

top_k: the elements of largest size in 8 bits, all others 0 (Strom 2015; Aji and Heafield, arXiv 1704.05021).
int8, int4: all elements, rounded to nearest in steps of a group's largest element / 127 or 7 (as in QSGD, arXiv
1610.02132, but without its randomness: what is lost is fed back). sign: signs, with the mean size of a group, which
of all scales has the least squared error (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847). Knows arrays only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.lossy.settings import LossySettings
from aios_node.engine.quant.blocks import BITS, QuantizedTensor, QuantType
from aios_node.engine.quant.packing import pack

Update = NDArray[np.float32]

_AT_ONCE: Final = 1 << 18
_TYPES: Final[dict[str, tuple[QuantType, int, float]]] = {
    "top_k": ("int8", 127, 0.0),
    "int8": ("int8", 127, 0.0),
    "int4": ("int4", 7, 8.0),
    "sign": ("int2", 1, 1.0),
}
"""How codes are stored, the largest step, and the code that means zero."""


def quantise(update: Update, settings: LossySettings, shape: tuple[int, ...]) -> QuantizedTensor:
    """The codes of an update [n], n > 0, that is finite; ``shape``: of its tensor. Deterministic everywhere.

    Scales are infinite where an update is at the end of what float32 can say.
    """
    quant_type, highest, zero = _TYPES[settings.method]
    size = min(settings.size, update.size)
    kept = largest(update, settings.share) if settings.method == "top_k" else update
    codes, scales = np.empty(update.size, np.int8), np.empty(-(-update.size // size), np.float32)
    step = max(1, _AT_ONCE // size) * size
    for start in range(0, update.size, step):
        groups = _grouped(kept[start : start + step], size)
        part = slice(start // size, start // size + len(groups))
        with np.errstate(over="ignore"):
            scales[part], found = _signs(groups, kept[start:], size) if highest == 1 else _steps(groups, highest, zero)
        codes[start : start + step] = found.reshape(-1)[: update.size - start]
    if settings.method == "top_k":
        lost = (codes == 0) & (kept != 0)  # beside a giant; what is kept stays something
        codes[lost] = np.sign(kept[lost])
    zeros = np.full((1, scales.size), zero, np.float32)
    packed = pack(codes, BITS[quant_type])
    return QuantizedTensor(packed, scales.reshape(1, -1), zeros, shape, "float32", quant_type, -1, size)


def without(update: QuantizedTensor, places: NDArray[np.bool_]) -> QuantizedTensor:
    """The same update, but nothing at these places [n]."""
    codes = update.unpack().reshape(-1).copy()
    codes[places] = int(update.zero_points[0, 0])
    return replace(update, codes=pack(codes, update.bits))


def shorter(one: QuantizedTensor, other: QuantizedTensor) -> QuantizedTensor:
    """The update whose codes need fewer bits by their order-0 entropy: nothing beside two signs is a third symbol."""
    return other if _entropy(other.codes) < _entropy(one.codes) else one


def _entropy(codes: NDArray[np.uint8]) -> float:
    """Bits that these bytes need on average."""
    shares = np.bincount(codes, minlength=256) / codes.size
    return -float((shares * np.log2(shares, where=shares > 0, out=np.zeros(256))).sum())


def largest(update: Update, share: float) -> Update:
    """An update [n] of which the largest elements are left: round(share * n), at least 1; of equals the first ones."""
    count = max(1, round(share * update.size))
    sizes = np.abs(update)
    bound = np.partition(sizes, update.size - count)[update.size - count]
    chosen = sizes > bound
    ties = np.flatnonzero(sizes == bound)[: count - np.count_nonzero(chosen)]
    chosen[ties] = True
    return np.where(chosen, update, np.float32(0))


def _grouped(part: Update, size: int) -> Update:
    """[groups, size], the last one filled up with zeros."""
    missing = -part.size % size
    return (np.concatenate([part, np.zeros(missing, np.float32)]) if missing else part).reshape(-1, size)


def _steps(groups: Update, highest: int, zero: float) -> tuple[Update, NDArray[Any]]:
    scales = _coarse(np.abs(groups).max(axis=1) / np.float32(highest))
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    return scales, (np.clip(np.rint(groups / divisors), -highest, highest) + np.float32(zero)).astype(np.int8)


def _signs(groups: Update, rest: Update, size: int) -> tuple[Update, NDArray[Any]]:
    """Codes 0 and 2 around the zero point 1: minus and plus a scale, the mean size."""
    counts = np.minimum(size, rest.size - np.arange(len(groups)) * size)
    return (np.abs(groups).sum(axis=1, dtype=np.float64) / counts).astype(np.float32), 2 * (groups >= 0).astype(np.int8)


def _coarse(scales: Update) -> Update:
    """The next numbers above that bfloat16 holds, too: half the bytes, and no element beyond the last step."""
    return ((scales.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
