"""Which codec a block gets: the one that makes it shortest.

What compresses deltas best is tried first. Where that leaves an eighth or less, the others run on a sample only, and
in full where the sample says that they may be better: trying everything would take most of the time for nothing.
Knows codecs, not tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from aios_node.delta.codec.codecs import Codec
from aios_node.delta.codec.planes import Bytes, Element
from aios_node.engine.errors import BadRequest

_FIRST: Final = ("same", "fill", "changes")
_SMALL: Final = 8
"""Compressed to one part in so many, a block is small enough that others run on a sample first."""
_PIECES, _PIECE = 16, 4096
"""A sample: so many pieces of the block, of so many bytes."""
_DOUBT: Final = 1.5
"""How much longer than a sample says a codec is still tried."""

Coded = tuple[Codec, bytes]


def smallest(target: Bytes, base: Bytes | None, element: Element, codecs: Iterable[Codec]) -> Coded:
    """The shortest coding of a block that was found; of equals the one tried first.

    Raises BadRequest where no codec fits.
    """
    usable = [codec for codec in codecs if base is not None or not codec.needs_base]
    best = _best(None, target, base, element, [codec for codec in usable if codec.name in _FIRST])
    if best is None or best[1]:
        rest = [codec for codec in usable if codec.name not in _FIRST]
        if best is not None and len(best[1]) * _SMALL <= target.size:
            rest = _promising(rest, len(best[1]), target, base, element)
        best = _best(best, target, base, element, rest)
    if best is None:
        raise BadRequest("no codec fits this block: allow 'raw', which always does")
    return best


def _best(
    best: Coded | None, target: Bytes, base: Bytes | None, element: Element, codecs: Sequence[Codec]
) -> Coded | None:
    for codec in codecs:
        data = codec.encode(target, base, element)
        if data is not None and (best is None or len(data) < len(best[1])):
            best = codec, data
            if not data:
                break
    return best


def _promising(codecs: Sequence[Codec], least: int, target: Bytes, base: Bytes | None, element: Element) -> list[Codec]:
    """Those that may need less than ``least`` bytes, as far as a sample of the block shows."""
    if target.size <= 2 * _PIECES * _PIECE:
        return list(codecs)
    some, old = _sample(target), None if base is None else _sample(base)
    bound = _DOUBT * least * some.size / target.size
    coded = ((codec, codec.encode(some, old, element)) for codec in codecs)
    return [codec for codec, data in coded if data is not None and len(data) < bound]


def _sample(block: Bytes) -> Bytes:
    step = block.size // _PIECES // 8 * 8
    return np.concatenate([block[index * step : index * step + _PIECE] for index in range(_PIECES)])
