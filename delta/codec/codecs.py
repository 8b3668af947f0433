"""Codecs for one block of a tensor. Each has a name, and the name is what stands in files and on the wire.

    same              nothing: the block equals the base's
    fill              one element that stands everywhere
    changes           the elements that changed, and by how much, entropy-coded (see changes)
    raw               the bytes themselves
    zstd              the bytes, compressed
    planes-zstd       byte planes of the target, compressed
    xor-planes-zstd   byte planes of target XOR base, compressed
    sub-planes-zstd   byte planes of the folded integer difference (floats in total order), compressed
    factors           another codec, against what factors or an update beside the tensor make of its base
    sparse            one element, and changes against it standing everywhere

To add one: a class with these three members, in ``CODECS``. A codec knows bytes and the width of an element;
it knows nothing about tensors, names or files (choice decides which one a block gets). Compression level 1 is used
on planes without a base, where it was measured to be both smaller and faster than 3: there is little to match and
much to entropy-code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import numpy as np

from aios_node.delta.codec import planes
from aios_node.delta.codec.changes import Changes
from aios_node.delta.codec.compression import compress, decompress
from aios_node.delta.codec.planes import Bytes, Element
from aios_node.engine.errors import BadRequest, Corrupt

_PLANES_LEVEL: Final = 1
_BYTES_LEVEL: Final = 3
_FULL: Final = 0.5
"""With a larger share of unusual bytes a block is not sparse: Zstandard then comes about as close to the entropy."""
_PIECE: Final = 1 << 16
UNPREDICTED: Final = "a block needs factors or an update, but its tensor has none that fit"


class Codec(Protocol):
    """Exact coding of one block of bytes, with or without the same block of the base."""

    name: str
    needs_base: bool

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        """The coded bytes, or None where this codec does not fit the block."""
        ...

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        """Fill ``out`` with the target. Raises Corrupt; allocates nothing beyond copies of ``out``."""
        ...


class Same:
    """Nothing at all, where the base has the same bytes."""

    name = "same"
    needs_base = True

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        return b"" if base is not None and np.array_equal(target, base) else None

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        if data:
            raise Corrupt(f"codec same carries {len(data)} bytes, it must carry none")
        out[:] = _present(base)


class Fill:
    """One element, where all are the same."""

    name = "fill"
    needs_base = False

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        words = planes.as_words(target, element.width)
        return words[:1].tobytes() if words.size and (words == words[0]).all() else None

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        if len(data) != element.width:
            raise Corrupt(f"codec fill carries {len(data)} bytes where one element has {element.width}")
        planes.as_words(out, element.width)[:] = np.frombuffer(data, planes.WORDS[element.width])


class Raw:
    """The bytes as they are."""

    name = "raw"
    needs_base = False

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        return target.tobytes()

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        if len(data) != out.size:
            raise Corrupt(f"codec raw carries {len(data)} bytes where {out.size} belong")
        out[:] = np.frombuffer(data, np.uint8)


class Zstd:
    """The bytes, compressed by Zstandard (RFC 8878)."""

    name = "zstd"
    needs_base = False

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        return compress(target.data, _BYTES_LEVEL)

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        out[:] = _inflate(data, out.size)


class PlanesZstd:
    """Byte planes without a base: exponents compress, mantissas do not (ZipNN, arXiv 2411.05239)."""

    name = "planes-zstd"
    needs_base = False

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        if element.width == 1:
            return None
        return compress(planes.split(planes.as_words(target, element.width)).data, _PLANES_LEVEL)

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        out[:] = planes.join(_inflate(data, out.size), element.width).view(np.uint8)


class XorPlanesZstd:
    """Byte planes of the bits that differ (BitX in ZipLLM, arXiv 2505.06252)."""

    name = "xor-planes-zstd"
    needs_base = True

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        if base is None:
            return None
        words = planes.as_words(target, element.width) ^ planes.as_words(base, element.width)
        return compress(planes.split(words).data, _BYTES_LEVEL)

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        words = planes.join(_inflate(data, out.size), element.width)
        words ^= planes.as_words(_present(base), element.width)
        out[:] = words.view(np.uint8)


class SubPlanesZstd:
    """Byte planes of the folded difference; floats are subtracted as ordered integers (FM-Delta, NeurIPS 2024)."""

    name = "sub-planes-zstd"
    needs_base = True

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        if base is None:
            return None
        new, old = (planes.as_words(data, element.width) for data in (target, base))
        if element.is_float:
            new, old = planes.ordered(new), planes.ordered(old)
        return compress(planes.split(planes.difference(new, old)).data, _PLANES_LEVEL)

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        folded = planes.join(_inflate(data, out.size), element.width)
        old = planes.as_words(_present(base), element.width)
        if element.is_float:
            words = planes.unordered(planes.undo_difference(folded, planes.ordered(old)))
        else:
            words = planes.undo_difference(folded, old)
        out[:] = words.view(np.uint8)


class Sparse:
    """What most elements are, and which ones are not: updates of which few elements are kept, or have an effect."""

    name = "sparse"
    needs_base = False

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        usual = np.zeros(element.width, np.uint8)
        if element.width == 1:
            usual[:] = _most_frequent(target)
        around = np.resize(usual, target.size)
        if not target.size or np.count_nonzero(target != around) > _FULL * target.size:
            return None
        data = _CHANGES.encode(target, around, element)
        return None if data is None else usual.tobytes() + data

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        usual = np.frombuffer(data[: element.width], np.uint8)
        if usual.size != element.width:
            raise Corrupt("a sparse block does not say what most of its elements are")
        _CHANGES.decode(data[element.width :], np.resize(usual, out.size), element, out)


class Predicted:
    """A block coded by one of the others, against what tensors beside it make of its base (see body, which knows)."""

    name = "factors"
    needs_base = True

    def encode(self, target: Bytes, base: Bytes | None, element: Element) -> bytes | None:
        return None

    def decode(self, data: bytes, base: Bytes | None, element: Element, out: Bytes) -> None:
        raise Corrupt(UNPREDICTED)


_CHANGES: Final = Changes()
_ALL: Final[tuple[Codec, ...]] = (
    *(Same(), Fill(), _CHANGES, Raw(), Zstd()),
    *(PlanesZstd(), XorPlanesZstd(), SubPlanesZstd(), Predicted(), Sparse()),
)
CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in _ALL}
ALWAYS: Final = "raw"


def codec_named(name: str) -> Codec:
    """The codec of this name. Raises Corrupt where a file names one that is not known here."""
    codec = CODECS.get(name)
    if codec is None:
        raise Corrupt(f"codec {name!r} is not known here (known: {', '.join(CODECS)}): update this node")
    return codec


def choose(names: Iterable[str]) -> tuple[str, ...]:
    """Those of our codecs that the names allow, in our order. Raises BadRequest without ``raw``."""
    allowed = set(names)
    if ALWAYS not in allowed:
        raise BadRequest(f"the codecs offered lack {ALWAYS!r}, which everyone must know: {sorted(allowed)}")
    return tuple(name for name in CODECS if name in allowed)


def _most_frequent(data: Bytes) -> int:
    """The byte that occurs most often. Piece by piece: counting takes eight bytes for each."""
    counts = np.zeros(256, np.int64)
    for start in range(0, data.size, _PIECE):
        counts += np.bincount(data[start : start + _PIECE], minlength=256)
    return int(counts.argmax())


def _inflate(data: bytes, size: int) -> Bytes:
    return np.frombuffer(decompress(data, most=size, exactly=size), np.uint8)


def _present(base: Bytes | None) -> Bytes:
    if base is None:
        raise Corrupt("a block needs a base, but its tensor has none")
    return base
