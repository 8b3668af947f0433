"""The body of a delta or package: the changed tensors, part by part, in blocks that each choose their codec.

    block = codec (1 byte, place in the list of codecs) | length (4 bytes, little endian) | coded bytes

Blocks bound the memory that coding takes and let the codec follow the data. How many blocks there are follows from
the tensors' sizes. Knows neither headers nor names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np

from aios_node.delta.codec.codecs import CODECS, Codec, codec_named, smallest
from aios_node.delta.codec.parts import Part, assemble, layout, parts
from aios_node.delta.codec.planes import Bytes
from aios_node.delta.codec.stream import Reader, Writer, read_exactly
from aios_node.delta.limits import LEAST_BLOCK, MIB, MOST_BLOCK
from aios_node.engine.errors import Corrupt
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.manifest import TensorEntry

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


def write_tensor(out: Writer, target: Tensor, base: Tensor | None, entry: TensorEntry, coding: Coding) -> bool:
    """Code one tensor; ``base`` has the same layout or is None. Returns whether anything of the base was used."""
    codecs = coding.chosen
    numbers = {codec.name: number for number, codec in enumerate(codecs)}
    news = parts(target)
    olds: Sequence[Bytes | None] = [None] * len(news) if base is None else parts(base)
    used = False
    for new, old, part in zip(news, olds, layout(entry), strict=True):
        for span in _spans(part.size, coding.block):
            codec, data = smallest(new[span], None if old is None else old[span], part.element, codecs)
            out.write(_FRAME.pack(numbers[codec.name], len(data)))
            out.write(data)
            used |= codec.needs_base
    return used


def read_tensor(source: Reader, base: Tensor | None, entry: TensorEntry, coding: Coding) -> Tensor:
    """The next tensor. Raises Corrupt; ``entry`` bounds what is allocated, and its hash is not checked here."""
    expected = layout(entry)
    olds: Sequence[Bytes | None] = [None] * len(expected) if base is None else parts(base)
    codecs = coding.chosen
    data = [_read_part(source, old, part, codecs, coding.block) for old, part in zip(olds, expected, strict=True)]
    return assemble(entry, data)


def skip_tensor(source: BinaryIO, entry: TensorEntry, coding: Coding) -> None:
    """Move a seekable file to the end of the next tensor. Raises Corrupt for frames that cannot be."""
    codecs = coding.chosen
    for part in layout(entry):
        for span in _spans(part.size, coding.block):
            _, length = _read_frame(source, codecs, span)
            source.seek(length, 1)


def _read_part(source: Reader, old: Bytes | None, part: Part, codecs: tuple[Codec, ...], block: int) -> Bytes:
    data = np.empty(part.size, np.uint8)
    for span in _spans(part.size, block):
        codec, length = _read_frame(source, codecs, span)
        coded = read_exactly(source, length)
        data[span] = codec.decode(coded, None if old is None else old[span], part.element, span.stop - span.start)
    return data


def _read_frame(source: Reader, codecs: tuple[Codec, ...], span: slice) -> tuple[Codec, int]:
    number, length = _FRAME.unpack(read_exactly(source, _FRAME.size))
    if number >= len(codecs):
        raise Corrupt(f"a block names codec {number} of {len(codecs)}")
    if length > span.stop - span.start:
        raise Corrupt(f"a block of {span.stop - span.start} bytes is coded in {length}: raw is never longer")
    return codecs[number], length


def _spans(size: int, block: int) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(size, start + block))
