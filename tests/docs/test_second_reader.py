"""Deltas and packages, read by a second reader: written from two pages of docs, with no code of the project in it.

As long as it reads what the program writes, the page says enough.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from aios_node import delta
from aios_node.delta.codec.codecs import CODECS
from aios_node.delta.package.package import build_package
from aios_node.engine.quant.blocks import QuantizedTensor, pack
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import Settings
from aios_node.engine.quant.scales import CompactScales
from aios_node.engine.weights.folder import write_folder
from aios_node.engine.weights.lowrank import Factors
from aios_node.engine.weights.manifest import build_manifest
from aios_node.engine.weights.update import Update, update_name

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE: dict[str, Any] = {}
exec(re.findall(r"```python\n(.*?)```", (DOCS / "delta.md").read_text(), re.DOTALL)[-1], PAGE)


def section(data: memoryview, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<I", data, at)
    return bytes(data[at + 4 : at + 4 + size]), at + 4 + size


def inflate(data: bytes, dictionary: bytes = b"") -> bytes:
    raw = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    return zstandard.ZstdDecompressor(dict_data=raw).decompress(data)


def joined(planes: bytes, width: int) -> np.ndarray:
    """Byte planes, highest first, as unsigned integers."""
    rows = np.frombuffer(planes, np.uint8).reshape(width, -1)[::-1]
    return np.ascontiguousarray(rows.T).reshape(-1).view(f"<u{width}")


def unfolded(folded: np.ndarray, base: np.ndarray, width: int, is_float: bool) -> np.ndarray:
    """The target of a folded difference, one number after the other, in Python's own integers."""
    bits, out = 8 * width, []
    mask, top = (1 << bits) - 1, 1 << (bits - 1)
    for fold, old in zip(folded.tolist(), base.tolist(), strict=True):
        step = (fold >> 1) ^ (mask if fold & 1 else 0)
        ordered = (old ^ (mask if old & top else top)) if is_float else old
        new = (ordered + step) & mask
        out.append(new ^ (top if new & top else mask) if is_float else new)
    return np.array(out, f"<u{width}")


def block(codec: str, coded: bytes, base: bytes | None, size: int, element: tuple[int, int, int]) -> bytes:
    width, mantissa, bits = element
    old = np.frombuffer(base or b"", f"<u{width}")
    match codec:
        case "same":
            return base or b""
        case "fill":
            return coded * (size // width)
        case "changes" if width == 1 and not mantissa:
            return packed(PAGE["read_codes"](coded, unpacked(base or b"", bits), bits), bits)
        case "changes":
            words: list[int] = PAGE["read_words"](coded, old.tolist(), 8 * width, mantissa)
            return np.array(words, f"<u{width}").tobytes()
        case "sparse":
            return block("changes", coded[width:], coded[:width] * (size // width), size, element)
        case "raw":
            return coded
        case "zstd":
            return inflate(coded)
        case "planes-zstd":
            return joined(inflate(coded), width).tobytes()
        case "xor-planes-zstd":
            return (joined(inflate(coded), width) ^ old).tobytes()
        case _:
            return unfolded(joined(inflate(coded), width), old, width, mantissa > 0).tobytes()


def unpacked(data: bytes, bits: int) -> list[int]:
    return [byte >> shift & (1 << bits) - 1 for byte in data for shift in range(0, 8, bits)]


def packed(codes: list[int], bits: int) -> bytes:
    each = 8 // bits
    return bytes(sum(codes[at + k] << k * bits for k in range(each)) for at in range(0, len(codes), each))


Kind = tuple[int, int, int]
"""Width of an element, bits of its mantissa (0: no float), bits of a code."""
SCALE, STEP, SMALL = (4, 23, 8), (2, 10, 8), (1, 0, 4)


def parts(entry: dict[str, Any]) -> list[tuple[int, Kind]]:
    """Bytes and kind of every part."""
    if entry["quant_type"] == "none":
        kind = np.dtype(entry["dtype"])
        return [(entry["nbytes"], (kind.itemsize, np.finfo(kind).nmant if kind.kind == "f" else 0, 8))]
    values = int(np.prod(entry["shape"]))
    bits = int(entry["quant_type"][3:])
    codes = -(-values * bits // 8)
    if entry.get("scale_codec") == "double4":
        channels, groups = table(entry)
        small = -(-channels * groups // 2), SMALL
        return [(codes, (1, 0, bits)), (2 * channels * -(-groups // 16), STEP), small, small]
    scales = (entry["nbytes"] - codes) // 2
    return [(codes, (1, 0, bits)), (scales, SCALE), (scales, SCALE)]


def table(entry: dict[str, Any]) -> tuple[int, int]:
    """Channels and groups."""
    axis, values = entry["quant_axis"], int(np.prod(entry["shape"]))
    channels = 1 if axis == -1 else entry["shape"][axis]
    size = entry["group_size"]
    return channels, max(1, -(-(values // channels) // size)) if size else 1


def nibbles(data: bytes, rows: int, columns: int) -> np.ndarray:
    low_first = [half for byte in data for half in (byte & 15, byte >> 4)]
    return np.array(low_first[: rows * columns]).reshape(rows, columns)


def double4(stored: list[bytes], entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points, group by group."""
    steps, scale_codes, zero_codes = stored
    channels, groups = table(entry)
    step = np.frombuffer(steps, "<f2").astype(np.float32).reshape(channels, -1)
    scales, zeros = np.zeros((2, channels, groups), np.float32)
    highest = {"int4": 15, "int2": 3}[entry["quant_type"]]
    for channel in range(channels):
        for group in range(groups):
            scales[channel, group] = step[channel, group // 16] * nibbles(scale_codes, channels, groups)[channel, group]
            zero = nibbles(zero_codes, channels, groups)[channel, group]
            zeros[channel, group] = np.float32(zero * highest) / np.float32(15)
    return scales, zeros


Parts = dict[str, list[bytes]]
LAYOUT = ("dtype", "shape", "quant_type", "quant_axis", "group_size", "scale_codec")


def read_delta(blob: bytes, base: Parts) -> tuple[Parts, set[str]]:
    """The parts of every tensor of the target, and the codecs that occurred."""
    data = memoryview(blob)
    assert bytes(data[:8]) == b"AIOSDLT1"
    raw, at = section(data, 8)
    settings = json.loads(raw)
    packed, at = section(data, at)
    target, old = inflate(packed), {"tensors": []}
    if settings["based"]:
        packed, at = section(data, at)
        old = json.loads(inflate(packed, target))
    return read_body(data, at, json.loads(target), old, settings, base)


def read_package(blob: bytes, base: Parts, base_manifest: bytes | None) -> tuple[Parts, set[str], dict[str, bytes]]:
    """The same of a package, and its small files."""
    data = memoryview(blob)
    assert bytes(data[:8]) == b"AIOSPKG1"
    raw, at = section(data, 8)
    settings = json.loads(raw)
    _envelope, at = section(data, at)
    packed, at = section(data, at)
    manifest = inflate(packed, base_manifest or b"")
    assert hashlib.sha256(manifest).hexdigest() == settings["version"]
    assert (settings["mode"] == "delta") == (base_manifest is not None)
    files = {}
    for name in settings["files"]:
        packed, at = section(data, at)
        files[name] = inflate(packed)
    old = json.loads(base_manifest) if base_manifest else {"tensors": []}
    return *read_body(data, at, json.loads(manifest), old, settings, base), files


def read_body(data: memoryview, at: int, new: Any, old: Any, settings: Any, base: Parts) -> tuple[Parts, set[str]]:
    known = {entry["name"]: entry for entry in old["tensors"]}
    found: Parts = {}
    used = set()
    entries = {entry["name"]: entry for entry in new["tensors"]}
    for entry in sorted(new["tensors"], key=lambda one: not one["name"].startswith(("aios.factors/", "aios.update/"))):
        before = known.get(entry["name"])
        olds: list[bytes | None] = [None] * 4
        if before is not None and all(before.get(key) == entry.get(key) for key in LAYOUT):
            if before["sha256"] == entry["sha256"]:
                found[entry["name"]] = base[entry["name"]]
                continue
            olds = list(base[entry["name"]])
        found[entry["name"]] = []
        for (size, kind), earlier in zip(parts(entry), olds, strict=False):
            content = b""
            while len(content) < size:
                number, length = struct.unpack_from("<BI", data, at)
                coded, at = bytes(data[at + 5 : at + 5 + length]), at + 5 + length
                span = slice(len(content), min(size, len(content) + settings["block"]))
                codec = settings["codecs"][number]
                used.add(codec)
                before_it = earlier and earlier[span]
                if codec == "factors":
                    before_it = predicted(entry, before_it or b"", span.start, found, entries)
                    codec, coded = settings["codecs"][coded[0]], coded[1:]
                content += block(codec, coded, before_it, span.stop - span.start, kind)
            found[entry["name"]].append(content)
    assert at == len(data)
    return found, used


def predicted(entry: Any, base: bytes, start: int, found: Parts, entries: dict[str, Any]) -> bytes:
    """Base plus the update or the product of the factors, for a block that begins at this byte."""
    kind = np.dtype(entry["dtype"])
    values = np.frombuffer(base, kind).astype(float)
    if (update := f"aios.update/{entry['name']}") in found:
        first = start // kind.itemsize
        values += dequantised(entries[update], found[update])[first : first + len(values)].astype(float)
        return values.astype(kind).tobytes()
    (codes_up, scales_up, _), (codes_down, scales_down, _) = (
        [np.frombuffer(part, kind) for part, kind in zip(found[name], ("i1", "<f4", "<f4"), strict=True)]
        for name in (f"aios.factors/up/{entry['name']}", f"aios.factors/down/{entry['name']}")
    )
    rank = len(scales_up)
    up = (codes_up.reshape(-1, rank) * scales_up).astype("f4")
    down = codes_down.reshape(rank, -1) * scales_down[:, None]
    places = np.arange(start // kind.itemsize, start // kind.itemsize + len(values))
    rows, columns = places // entry["shape"][1], places % entry["shape"][1]
    for k in range(rank):
        values += up[rows, k].astype(float) * down[k, columns].astype(float)
    return values.astype(kind).tobytes()


def dequantised(entry: Any, data: list[bytes]) -> np.ndarray:
    """A quantised tensor along its flattened elements."""
    bits, group = int(entry["quant_type"][3:]), entry["group_size"]
    codes = np.array(unpacked(data[0], bits))[: int(np.prod(entry["shape"]))]
    if bits == 8:
        codes = np.where(codes > 127, codes - 256, codes)
    scales, zeros = (np.frombuffer(part, "<f4")[np.arange(len(codes)) // group] for part in data[1:3])
    return scales * (codes.astype(np.float32) - zeros)


def bare(weights: dict[str, Any]) -> dict[str, list[bytes]]:
    """Tensors as plain bytes, part by part."""
    return {name: [part.tobytes() for part in stored(tensor)] for name, tensor in weights.items()}


def stored(tensor: Any) -> list[np.ndarray]:
    if not isinstance(tensor, QuantizedTensor):
        return [tensor]
    if (compact := tensor.compact) is None:
        return [tensor.codes, tensor.scales, tensor.zero_points]
    return [tensor.codes, compact.steps, compact.scale_codes, compact.zero_codes]


def weights(seed: int) -> dict[str, Any]:
    """Tensors that make every codec worth its while somewhere; versions differ a little."""
    fixed, changing = np.random.default_rng(0), np.random.default_rng(seed)
    drift = np.float32(1 + 1e-4 * seed)
    floats = fixed.normal(size=(64, 48)).astype(np.float32)
    codes = fixed.integers(0, 16, size=(16, 32))
    codes[0, :seed] = 0
    return {
        "drifting": floats * drift,
        "halves": (floats[:8] * drift).astype(np.float16),
        "same": floats[:4],
        "counting": np.arange(600, dtype=np.int64).reshape(20, 30) + seed,
        "noise": changing.integers(0, 256, size=(40, 40)).astype(np.uint8),
        "flags": np.arange(900) % 7 < seed,
        f"only in {seed}": np.zeros((5, seed + 1), np.float32),
        "packed": QuantizedTensor(
            pack(codes, 4),
            (fixed.random((16, 2)) * drift).astype(np.float32),
            np.full((16, 2), 7.5, np.float32),
            (16, 32),
            "float32",
            "int4",
            0,
            16,
        ),
        "compact": compacted(fixed, drift, codes),
        "recoded": compacted(fixed, drift, codes)
        if seed == 1
        else replace(compacted(fixed, drift, codes), compact=None),
    }


def compacted(random: np.random.Generator, drift: np.float32, codes: np.ndarray) -> QuantizedTensor:
    """Codes of 4 bits in 25 groups per channel: two super-blocks, and an odd number of groups in all."""
    steps = (np.array([[0.5, 0.25]]) * drift).astype(np.float16).repeat(3, axis=0)
    scale_codes, zero_codes = random.integers(1, 16, (3, 25)), random.integers(0, 16, (3, 25))
    compact = CompactScales.of(steps, scale_codes, zero_codes)
    values = np.resize(codes, (3, 390))
    return QuantizedTensor.compacted(pack(values, 4), compact, (3, 390), "float32", "int4", 0, 16)


@pytest.mark.parametrize("base", [None, 1, 2], ids=["in full", "from another", "from itself"])
def test_a_second_reader_of_deltas(base: int | None) -> None:
    old, new = None if base is None else weights(base), weights(2)
    found, _ = read_delta(delta.encode(old, new), {} if old is None else bare(old))
    assert found == bare(new)


def test_a_second_reader_of_packages(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"[]"}
    old = write_folder(tmp_path / "old", weights(1), files)
    new = write_folder(tmp_path / "new", weights(2), {**files, "config.json": b"{} "}, parents=[old.version])
    for base in (None, old):
        out = io.BytesIO()
        build_package(out, base=base, target=new)
        manifest = None if base is None else base.manifest.to_bytes()
        found, _, sent = read_package(out.getvalue(), bare(weights(1)), manifest)
        assert found == bare(weights(2))
        assert sent == ({**files, "config.json": b"{} "} if base is None else {"config.json": b"{} "})


@pytest.mark.parametrize(("quant", "bits"), [("int4", 4), ("int2", 2)])
def test_a_second_reader_of_scales(quant: Any, bits: int) -> None:
    values = np.random.default_rng(3).normal(size=(5, 390)).astype(np.float32)
    tensor = quantize_tensor(values, "float32", Settings(quant, False, 0, 16, "mse", "double4")).tensor
    manifest = json.loads(build_manifest({"w": tensor}, {}).to_bytes())
    (entry,) = manifest["tensors"]
    found = bare({"w": tensor})["w"]
    assert [len(part) for part in found] == [size for size, _ in parts(entry)]
    assert entry["nbytes"] == sum(map(len, found))
    scales, zeros = double4(found[1:], entry)
    shifts = np.arange(0, 8, bits)
    codes = (
        (np.frombuffer(found[0], np.uint8)[:, None] >> shifts & (2**bits - 1)).reshape(-1)[: 5 * 390].reshape(5, 390)
    )
    group = np.arange(390) // 16
    assert (
        tensor.dequantize() == scales[:, group] * (codes.reshape(5, 390).astype(np.float32) - zeros[:, group])
    ).all()


def test_every_codec_was_read() -> None:
    used = read_delta(delta.encode(weights(1), weights(2)), bare(weights(1)))[1]
    used |= read_delta(delta.encode(None, weights(2)), {})[1]
    used |= block_by_block()
    assert used == set(CODECS), "the examples of this test do not use every codec"


def block_by_block() -> set[str]:
    """A large tensor of which most blocks did not change, and differences that only planes show."""
    random = np.random.default_rng(5)
    old = {"w": np.zeros((3, 1 << 20), np.float32), "x": random.integers(0, 2**32, 9000).astype(np.uint32)}
    new = {"w": old["w"].copy(), "x": old["x"] ^ np.resize(np.arange(7, dtype=np.uint32) << 24, 9000)}
    new["w"][1, 5] = 1
    old["merged"] = random.normal(size=(40, 50)).astype(np.float32)
    factors = Factors.of(*(random.normal(size=shape).astype(np.float32) for shape in ((40, 2), (2, 50))))
    new |= {"merged": factors.add(old["merged"].ravel()).reshape(40, 50), **factors.stored("merged")}
    for name, bits, highest in (("kept", 8, 2), ("rough", 4, 16), ("signs", 2, 2)):
        old[name] = random.normal(size=(40, 50)).astype(np.float32)
        values = random.integers(0, highest, 2000) * (random.random(2000) < (0.04 if bits == 8 else 1))
        scales, zeros = random.random((1, 32)).astype(np.float32), np.full((1, 32), 0.5, np.float32)
        update = QuantizedTensor(pack(values, bits), scales, zeros, (40, 50), "float32", f"int{bits}", -1, 64)
        new |= {name: Update(update).add(old[name].ravel()).reshape(40, 50), update_name(name): update}
    old["y"], new["y"] = old["x"], old["x"] + np.resize(np.arange(7, dtype=np.uint32) << 20, 9000)
    found, used = read_delta(delta.encode(old, new), bare(old))
    assert found == bare(new)
    return used
