"""What our deltas are measured against: other people's codecs and plain recipes, with one way to call them all.

A rival sees the parts of all tensors that changed (float arrays as they are; of quantised tensors the packed codes,
scales and zero points) and must give the same bytes back. It is told which parts there are and need not say which
tensors stayed the same; ours has to. Packages that are not installed are left out and named in ``missing``.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pulse_format
import pulse_patch
import zstandard
from bit_classes import bit_lengths, from_low_bits, low_bits
from delta_parts import Bytes, Part, Parts
from numpy.typing import NDArray

from aios_node.delta.codec import planes

PULSE = "PULSE, flat"
PATCH3 = "PULSE patch 3, exponent classes"
Z4AI = "z4ai"
XDELTA_MOST = 12 * 2**20


Words = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Rival:
    """A codec: what it is called, and two functions that are each other's inverse.

    ``fits`` says which parts it can code, ``most`` how many bytes it may be given before it takes too long.
    """

    name: str
    encode: Callable[[Parts, Parts], bytes]
    decode: Callable[[Parts, bytes], dict[str, Bytes]]
    fits: Callable[[Part], bool] = lambda _: True
    most: int = 2**40

    def takes(self, parts: Parts) -> bool:
        """Whether it is measured on these parts."""
        return all(map(self.fits, parts.values())) and sum(part.data.size for part in parts.values()) <= self.most


def _each(
    encode: Callable[[Part, Part], bytes], decode: Callable[[Part, bytes], Bytes]
) -> tuple[Callable[[Parts, Parts], bytes], Callable[[Parts, bytes], dict[str, Bytes]]]:
    """A codec of single parts, made one of many: 4 bytes of length before each."""

    def encode_all(base: Parts, target: Parts) -> bytes:
        coded = [encode(base[name], target[name]) for name in target]
        return b"".join(len(data).to_bytes(4, "little") + data for data in coded)

    def decode_all(base: Parts, data: bytes) -> dict[str, Bytes]:
        found, at = {}, 0
        for name in base:
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            found[name] = decode(base[name], data[at + 4 : end])
            at = end
        return found

    return encode_all, decode_all


def zstd_full(level: int) -> Rival:
    """The target's bytes, without a base."""
    return Rival(
        f"zstd {level}, full copy",
        *_each(lambda _, new: _squeeze(new.data, level), lambda _, data: _expand(data)),
    )


def zstd_xor(level: int) -> Rival:
    """Target XOR base, bytes in their order, as slime sends them (there at level 1)."""
    return Rival(
        f"XOR + zstd {level}",
        *_each(lambda old, new: _squeeze(old.data ^ new.data, level), lambda old, data: _expand(data) ^ old.data),
    )


def xor_planes(level: int) -> Rival:
    """Byte planes of target XOR base, as BitX does (ZipLLM, arXiv 2505.06252)."""

    def encode(old: Part, new: Part) -> bytes:
        words = planes.as_words(old.data, old.width) ^ planes.as_words(new.data, old.width)
        return _squeeze(planes.split(words), level)

    def decode(old: Part, data: bytes) -> Bytes:
        return (planes.join(_expand(data), old.width) ^ planes.as_words(old.data, old.width)).view(np.uint8)

    return Rival(f"XOR planes + zstd {level}", *_each(encode, decode))


def difference_classes() -> Rival:
    """Sign and bit length of the difference of ordered integers, coded; the bits below as they are (FM-Delta).

    FM-Delta (NeurIPS 2024) codes the classes with a range coder; here it is zstd's Huffman coder, as good where
    most numbers differ and better where few do.
    """

    def encode(old: Part, new: Part) -> bytes:
        folded = planes.difference(_ordered(new), _ordered(old)).astype(np.uint64)
        lengths = bit_lengths(folded)
        coded = _squeeze(lengths, 3)
        return len(coded).to_bytes(4, "little") + coded + low_bits(folded, lengths).tobytes()

    def decode(old: Part, data: bytes) -> Bytes:
        end = 4 + int.from_bytes(data[:4], "little")
        lengths = _expand(data[4:end])
        folded = from_low_bits(np.frombuffer(data, np.uint8, offset=end), lengths)
        restored = planes.undo_difference(folded.astype(f"u{old.width}"), _ordered(old))
        return (planes.unordered(restored) if old.dtype != "bytes" else restored).view(np.uint8)

    return Rival("ordered difference, classes + raw bits", *_each(encode, decode))


def pulse() -> list[Rival]:
    """Changed places and new values, in three formats; codes are unpacked first, one byte each."""
    return [
        _of_words("PULSE, rows and columns", pulse_format.encode, pulse_format.decode),
        _of_words(PULSE, pulse_patch.encode_flat, pulse_patch.decode_flat),
        _of_words(
            PATCH3,
            pulse_patch.encode_classes,
            pulse_patch.decode_classes,
            fits=lambda part: part.dtype == "bfloat16",
        ),
    ]


def _of_words(
    name: str,
    encode: Callable[[Words, Words], bytes],
    decode: Callable[[Words, bytes], Words],
    fits: Callable[[Part], bool] = lambda _: True,
) -> Rival:
    """A codec that wants the numbers of all tensors as unsigned integers."""

    def words(parts: Parts) -> Words:
        return {key: part.words for key, part in parts.items()}

    def decode_all(base: Parts, data: bytes) -> dict[str, Bytes]:
        return {key: base[key].again(found) for key, found in decode(words(base), data).items()}

    return Rival(name, lambda base, target: encode(words(base), words(target)), decode_all, fits)


def z4ai() -> Rival:
    """z4ai's delta between checkpoints."""
    import z4ai as package

    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

    def encode(old: Part, new: Part) -> bytes:
        return bytes(package.compress_delta(new.data.tobytes(), old.data.tobytes(), dtype=names.get(new.dtype)))

    def decode(old: Part, data: bytes) -> Bytes:
        return np.frombuffer(bytes(package.decompress_delta(data, old.data.tobytes())), np.uint8)

    return Rival(Z4AI, *_each(encode, decode))


def zipnn() -> Rival:
    """ZipNN of target XOR base: its own delta mode takes files and whole models only, and does just that."""
    from zipnn import ZipNN

    def encode(old: Part, new: Part) -> bytes:
        worker = ZipNN(input_format="byte", bytearray_dtype=new.dtype, threads=1)
        return bytes(worker.compress(bytearray((old.data ^ new.data).tobytes())))

    def decode(old: Part, data: bytes) -> Bytes:
        worker = ZipNN(input_format="byte", bytearray_dtype=old.dtype, threads=1)
        return np.frombuffer(bytes(worker.decompress(bytearray(data))), np.uint8) ^ old.data

    return Rival("XOR + zipnn", *_each(encode, decode), fits=lambda part: part.dtype != "bytes")


def xdelta3() -> Rival:
    """Debian's xdelta3 at its default level, all changed parts as one file, a window over the whole base.

    It takes a second and more for a megabyte that changed everywhere, so it is spared the large pairs.
    """

    def encode(base: Parts, target: Parts) -> bytes:
        return _xdelta(base, _joined(target), "-e")

    def decode(base: Parts, data: bytes) -> dict[str, Bytes]:
        whole, at, found = np.frombuffer(_xdelta(base, data, "-d"), np.uint8), 0, {}
        for name, part in base.items():
            found[name] = whole[at : at + part.data.size]
            at += part.data.size
        return found

    return Rival("xdelta3", encode, decode, most=XDELTA_MOST)


def _xdelta(base: Parts, data: bytes, direction: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        source, given, made = (Path(scratch) / name for name in ("source", "given", "made"))
        source.write_bytes(_joined(base))
        given.write_bytes(data)
        window = str(max(2**19, source.stat().st_size))
        subprocess.run(["xdelta3", direction, "-f", "-B", window, "-s", source, given, made], check=True)
        return made.read_bytes()


def versions() -> str:
    """The packages measured, and their versions."""
    names = [name for name in ("z4ai", "zipnn", "zstandard") if util.find_spec(name)]
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def rivals() -> tuple[list[Rival], list[str]]:
    """Those that can run here, and a sentence about each that cannot."""
    found = [zstd_full(1), zstd_full(3), zstd_xor(1), xor_planes(1), xor_planes(3), difference_classes(), *pulse()]
    missing: list[str] = []
    for name, make, there in (
        ("z4ai", z4ai, util.find_spec("z4ai")),
        ("zipnn", zipnn, util.find_spec("zipnn")),
        ("xdelta3", xdelta3, shutil.which("xdelta3")),
    ):
        if there:
            found.append(make())
        else:
            source = "apt install xdelta3" if name == "xdelta3" else "the bench extra has it"
            missing.append(f"{name} is not installed ({source}): its rows are missing")
    return found, missing


def _joined(parts: Parts) -> bytes:
    return b"".join(part.data.tobytes() for part in parts.values())


def _squeeze(data: Bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data.data)


def _expand(data: bytes) -> Bytes:
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8)


def _ordered(part: Part) -> NDArray[Any]:
    words = planes.as_words(part.data, part.width)
    return words if part.dtype == "bytes" else planes.ordered(words)
