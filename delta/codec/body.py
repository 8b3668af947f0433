"""The body of a delta or package: the changed tensors, part by part, in blocks that each choose their codec.

    block = codec (1 byte, place in the list of codecs) | length (4 bytes, little endian) | coded bytes

Blocks bound the memory that coding takes and let the codec follow the data. How many blocks there are follows from
the tensors' sizes. Knows neither headers nor names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final

import numpy as np

from aios_node.delta.codec.choice import smallest
from aios_node.delta.codec.codecs import CODECS, UNPREDICTED, Codec, Predicted, codec_named
from aios_node.delta.codec.parallel import in_order
from aios_node.delta.codec.parts import Part, assemble, layout, parts
from aios_node.delta.codec.planes import Bytes, Element
from aios_node.delta.codec.stream import Reader, Writer, read_exactly
from aios_node.delta.limits import LEAST_BLOCK, MIB, MOST_BLOCK
from aios_node.engine.errors import Corrupt
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.dtypes import dtype_of, is_float
from aios_node.engine.weights.manifest import TensorEntry
from aios_node.engine.weights.prediction import Prediction

_FRAME: Final = struct.Struct("<BI")


@dataclass(frozen=True)
class Coding:
    """How a body is coded: names of the codecs, in the order of their numbers, and bytes per block."""

    codecs: tuple[str, ...] = tuple(CODECS)
    block: int = 4 * MIB

    def __post_init__(self) -> None:
        if not LEAST_BLOCK <= self.block <= MOST_BLOCK or self.block % 8:
            raise Corrupt(f"blocks of {self.block} bytes are outside of {LEAST_BLOCK} to {MOST_BLOCK}")
        if not 0 < len(self.codecs) <= 255 or len(set(self.codecs)) != len(self.codecs):
            raise Corrupt(f"a list of {len(self.codecs)} codecs is empty, too long or names one twice")
        for name in self.codecs:
            codec_named(name)

    @property
    def chosen(self) -> tuple[Codec, ...]:
        return tuple(codec_named(name) for name in self.codecs)


@dataclass(frozen=True, eq=False)
class Change:
    """A tensor to code; ``base`` has the same layout or is None; ``prediction`` may lead from it to the target."""

    entry: TensorEntry
    target: Tensor
    base: Tensor | None
    prediction: Prediction | None = None


@dataclass(frozen=True, eq=False)
class Wanted:
    """A tensor to read, with what a ``Change`` of it was made from."""

    entry: TensorEntry
    base: Tensor | None
    prediction: Prediction | None = None


def write_tensors(out: Writer, changes: Iterable[Change], coding: Coding) -> Iterator[tuple[TensorEntry, bool]]:
    """Code tensors one after the other; after each, its entry and whether anything of its base was used."""
    codecs = coding.chosen
    numbers = {codec.name: number for number, codec in enumerate(codecs)}
    used = False
    for block, (codec, data) in in_order(partial(_code, codecs), _blocks(changes, coding.block)):
        if codec is not None:
            out.write(_FRAME.pack(numbers[codec.name], len(data)))
            out.write(data)
            used |= codec.needs_base
        if block.last:
            yield block.entry, used
            used = False


def read_tensors(source: Reader, wanted: Iterable[Wanted], coding: Coding) -> Iterator[Tensor]:
    """The next tensors. Raises Corrupt.

    The entries bound what is allocated; their hashes are not checked here.
    """
    codecs = coding.chosen
    for coded in in_order(partial(_decode, codecs), _read_blocks(source, wanted, codecs, coding.block)):
        if coded.last:
            tensor = assemble(coded.entry, coded.parts)
            del coded  # nothing of a tensor stays here while the next one is made
            yield tensor
            del tensor


@dataclass(frozen=True, eq=False)
class _Base:
    """What a block may be coded against: the base's bytes and, where there is one, what a prediction makes of them."""

    plain: Bytes | None
    dtype: str
    start: int  # the block's first element
    prediction: Prediction | None

    @classmethod
    def of(cls, entry: TensorEntry, old: Bytes | None, prediction: Prediction | None, span: slice) -> _Base:
        plain = None if old is None else old[span]
        usable = plain is not None and entry.quant_type == "none" and is_float(entry.dtype)
        fitting = prediction if usable and prediction is not None and prediction.fit(entry.shape) else None
        return cls(plain, entry.dtype, span.start // dtype_of(entry.dtype).itemsize, fitting)

    def predicted(self) -> Bytes:
        """The bytes that base and prediction give. Raises Corrupt where there are none."""
        if self.plain is None or self.prediction is None:
            raise Corrupt(UNPREDICTED)
        return self.prediction.add(self.plain.view(dtype_of(self.dtype)), self.start).view(np.uint8)


@dataclass(frozen=True, eq=False)
class _Block:
    """A block of a tensor that is to be coded; ``target`` is None where a tensor has none at all."""

    entry: TensorEntry
    target: Bytes | None
    base: _Base
    element: Element
    last: bool


@dataclass(frozen=True, eq=False)
class _Coded:
    """A block that was read and has a place in ``parts``."""

    entry: TensorEntry
    parts: Sequence[Bytes]
    codec: Codec | None
    data: bytes
    base: _Base
    element: Element
    out: Bytes
    last: bool


_NOTHING: Final = _Base(None, "uint8", 0, None)


def _blocks(changes: Iterable[Change], size: int) -> Iterator[_Block]:
    for change in changes:
        news = parts(change.target)
        olds: Sequence[Bytes | None] = [None] * len(news) if change.base is None else parts(change.base)
        places = _places(change.entry, size)
        for number, (index, part, span) in enumerate(places, 1):
            base = _Base.of(change.entry, olds[index], change.prediction, span)
            yield _Block(change.entry, news[index][span], base, part.element, number == len(places))
        if not places:
            yield _Block(change.entry, None, _NOTHING, Element(1), last=True)


def _code(codecs: tuple[Codec, ...], block: _Block) -> tuple[_Block, tuple[Codec | None, bytes]]:
    if block.target is None:
        return block, (None, b"")
    base = block.base
    plain = partial(smallest, block.target, base.plain, block.element, codecs)
    wrapper = next((one for one in codecs if one.name == Predicted.name), None)
    if wrapper is None or base.plain is None or base.prediction is None or np.array_equal(block.target, base.plain):
        return block, plain()
    inner, residual = smallest(block.target, base.predicted(), block.element, codecs)
    predicted = wrapper, bytes([codecs.index(inner)]) + residual
    if not residual:  # nothing is shorter, and trying would take most of the time
        return block, predicted
    return block, min(predicted, plain(), key=lambda coded: len(coded[1]))


def _read_blocks(source: Reader, wanted: Iterable[Wanted], codecs: tuple[Codec, ...], size: int) -> Iterator[_Coded]:
    for one in wanted:
        expected = layout(one.entry)
        olds: Sequence[Bytes | None] = [None] * len(expected) if one.base is None else parts(one.base)
        data = [np.empty(part.size, np.uint8) for part in expected]
        places = _places(one.entry, size)
        for number, (index, part, span) in enumerate(places, 1):
            codec, length = _read_frame(source, codecs, span)
            coded = read_exactly(source, length)
            base = _Base.of(one.entry, olds[index], one.prediction, span)
            yield _Coded(one.entry, data, codec, coded, base, part.element, data[index][span], number == len(places))
        if not places:
            yield _Coded(one.entry, data, None, b"", _NOTHING, Element(1), np.empty(0, np.uint8), last=True)
        del data


def _decode(codecs: tuple[Codec, ...], block: _Coded) -> _Coded:
    if block.codec is None:
        return block
    if block.codec.name != Predicted.name:
        block.codec.decode(block.data, block.base.plain, block.element, block.out)
        return block
    if not block.data or block.data[0] >= len(codecs):
        raise Corrupt("a block that is predicted does not name a codec that is listed")
    codecs[block.data[0]].decode(block.data[1:], block.base.predicted(), block.element, block.out)
    return block


def skip_tensor(source: BinaryIO, entry: TensorEntry, coding: Coding) -> None:
    """Move a seekable file to the end of the next tensor. Raises Corrupt for frames that cannot be."""
    codecs = coding.chosen
    for _, _, span in _places(entry, coding.block):
        _, length = _read_frame(source, codecs, span)
        source.seek(length, 1)


def _read_frame(source: Reader, codecs: tuple[Codec, ...], span: slice) -> tuple[Codec, int]:
    number, length = _FRAME.unpack(read_exactly(source, _FRAME.size))
    if number >= len(codecs):
        raise Corrupt(f"a block names codec {number} of {len(codecs)}")
    if length > span.stop - span.start:
        raise Corrupt(f"a block of {span.stop - span.start} bytes is coded in {length}: raw is never longer")
    return codecs[number], length


def _places(entry: TensorEntry, block: int) -> list[tuple[int, Part, slice]]:
    """Where the blocks of a tensor lie: number of the part, the part, and its bytes."""
    return [(index, part, span) for index, part in enumerate(layout(entry)) for span in _spans(part.size, block)]


def _spans(size: int, block: int) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(size, start + block))
