"""The codec ``changes``: which elements changed, and by how many steps, given what the receiver holds.

A block is two bytes with an exponent of its base (floats only), and a stream of coded symbols (see
change_kernels, and docs/delta.md for every bit). Close to the order-0 entropy of such changes given the base's
exponents at every density. The idea of gaps and steps in units in the last place, apart for each exponent, needs
the base on both sides; that is what a delta has.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.codec.planes import Bytes, Element, Words, as_words
from aios_node.engine.errors import Corrupt

_TOP: Final = struct.Struct("<H")
_SEEN: Final = 1 << 13  # words that are looked at
_OUTLIERS: Final = 1024  # one in so many may lie above the top
_STATE: Final = 8  # bytes of the coder's state: no stream is shorter


class Changes:
    """Gaps between changed elements and the steps they took, entropy-coded."""

    name = "changes"
    needs_base = True

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        """The coded block; None where it would not be shorter than the block itself."""
        if base is None:
            return None
        room = np.empty(target.size, np.uint8)
        if _is_codes(element):
            used = _encode_codes(target, base, element, room)
            return None if used < 0 else room[:used].tobytes()
        words = as_words(base, element.width)
        top = _top_exponent(words, element)
        used = _encode_words(as_words(target, element.width), words, _layout(element, top), room)
        return None if used < 0 or used + _TOP.size > target.size else _TOP.pack(top) + room[:used].tobytes()

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        """Fill ``out`` with the target. Raises Corrupt."""
        if base is None:
            raise Corrupt("a block needs a base, but its tensor has none")
        out[:] = base
        coded = np.frombuffer(data, np.uint8)
        if _is_codes(element):
            good = _decode_codes(out, element, coded)
        elif good := coded.size >= _TOP.size:
            (top,) = _TOP.unpack_from(data)
            good = _decode_words(as_words(out, element.width), _layout(element, top), coded[_TOP.size :])
        if not good:
            raise Corrupt("a block of changes is damaged, or was made from another base")


def _is_codes(element: Element) -> bool:
    return element.width == 1 and not element.is_float


def _layout(element: Element, top: int) -> NDArray[np.int64]:
    return np.array([8 * element.width, element.mantissa, _exponent_mask(element) if element.is_float else 0, top])


def _exponent_mask(element: Element) -> int:
    return (1 << (8 * element.width - 1 - element.mantissa)) - 1


def _top_exponent(words: Words, element: Element) -> int:
    """The exponent from which contexts are counted down: the highest one but for a few outliers."""
    if not element.is_float:
        return 0
    seen = words[:: max(1, words.size // _SEEN)]
    exponents = (seen >> seen.dtype.type(element.mantissa)) & seen.dtype.type(_exponent_mask(element))
    ranked = np.sort(exponents)
    return int(ranked[-1 - ranked.size // _OUTLIERS])


def _writing(elements: int) -> tuple[NDArray[Any], ...]:
    from aios_node.delta.codec.change_kernels import CONTEXTS, SEGMENT
    from aios_node.delta.codec.rans import RUN

    counted = min(elements, SEGMENT)
    where, gaps = np.empty(counted, np.uint32), np.empty(counted, np.uint32)
    return np.empty(RUN, np.uint32), where, gaps, np.zeros(2, np.int64), np.empty(CONTEXTS, np.int64)


def _reading() -> tuple[NDArray[Any], ...]:
    from aios_node.delta.codec.change_kernels import CONTEXTS

    return np.zeros(4, np.uint64), np.empty(CONTEXTS, np.int64)


def _encode_words(target: Words, base: Words, layout: NDArray[np.int64], room: Bytes) -> int:
    from aios_node.delta.codec import change_kernels as kernels

    model = kernels.fresh_model()
    return int(kernels.encode_words(target, base, layout, model, _writing(target.size), room))


def _encode_codes(target: Bytes, base: Bytes, element: Element, room: Bytes) -> int:
    from aios_node.delta.codec import change_kernels as kernels

    return int(kernels.encode_codes(target, base, element.code, kernels.fresh_model(), _writing(0), room))


def _decode_words(words: Words, layout: NDArray[np.int64], coded: Bytes) -> bool:
    from aios_node.delta.codec import change_kernels as kernels

    return coded.size >= _STATE and bool(kernels.decode_words(words, layout, kernels.fresh_model(), _reading(), coded))


def _decode_codes(codes: Bytes, element: Element, coded: Bytes) -> bool:
    from aios_node.delta.codec import change_kernels as kernels

    return coded.size >= _STATE and bool(
        kernels.decode_codes(codes, element.code, kernels.fresh_model(), _reading(), coded)
    )
