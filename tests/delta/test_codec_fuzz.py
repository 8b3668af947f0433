"""Damaged and lying deltas: only documented errors, and no memory beyond what was declared and allowed."""

from __future__ import annotations

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Weights, hashes, quantized

from aios_node import delta
from aios_node.delta.codec.body import Coding
from aios_node.delta.codec.compression import compress, decompress
from aios_node.delta.codec.stream import write_section
from aios_node.delta.limits import Limits
from aios_node.engine.errors import Corrupt, DataError, TooLarge
from aios_node.engine.weights.manifest import TensorEntry, build_manifest
from aios_node.engine.weights.names import canonical_json

RNG = np.random.default_rng(11)
BASE: Weights = {
    "float": RNG.normal(size=(9, 40)).astype(np.float32),
    "half": RNG.normal(size=(50,)).astype(np.float16),
    "same": np.arange(30),
    "quant": quantized(RNG, "int4", (6, 16), group=8),
    "removed": np.ones(3),
}
TARGET: Weights = {
    "float": (BASE["float"] * np.float32(1.0001)),  # type: ignore[operator]
    "half": np.arange(50, dtype=np.float16),
    "same": BASE["same"],
    "quant": quantized(RNG, "int4", (6, 16), group=8),
    "added": np.zeros((4, 4), np.uint8),
}


def _blob(block: int) -> bytes:
    out = io.BytesIO()
    delta.encode_to(BASE, TARGET, out, coding=Coding(block=block))
    return out.getvalue()


BLOBS = (_blob(64), _blob(4 << 20))
SMALL = Limits(header_bytes=1 << 20, tensor_bytes=1 << 20, total_bytes=1 << 20)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid delta after bit flips, cuts, insertions and overwritten words, anywhere."""
    blob = bytearray(draw(st.sampled_from(BLOBS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(blob) - 1))
        match draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "drop"])):
            case "flip":
                blob[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del blob[place + 1 :]
            case "insert":
                blob[place:place] = draw(st.binary(min_size=1, max_size=9))
            case "overwrite":
                blob[place : place + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\0\0\0\x7f"]))
            case _:
                del blob[place : place + draw(st.integers(1, 20))]
        if not blob:
            blob = bytearray(b"A")
    return bytes(blob)


@given(damaged())
def test_damage_gives_the_target_or_a_documented_error(blob: bytes) -> None:
    with contextlib.suppress(DataError):
        assert hashes(dict(delta.apply_from(BASE, io.BytesIO(blob), SMALL))) == hashes(TARGET)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    for blob in (noise, b"AIOSDLT1" + noise):
        with pytest.raises(DataError):
            delta.apply(BASE, blob)


@pytest.mark.parametrize("blob", BLOBS)
def test_every_cut_is_refused(blob: bytes) -> None:
    for length in range(0, len(blob), 7):
        with pytest.raises(DataError):
            delta.apply(BASE, blob[:length])
    with pytest.raises(Corrupt, match="after the end"):
        delta.apply(BASE, blob + b"\0")


def lying(claimed: TensorEntry, body: bytes) -> bytes:
    out = io.BytesIO()
    manifest = build_manifest({}, {})
    manifest = type(manifest)(tensors=(claimed,))
    out.write(b"AIOSDLT1")
    settings = {"format": 1, "block": 4 << 20, "codecs": ["raw", "zstd"], "based": False}
    write_section(out, canonical_json(settings))
    write_section(out, compress(manifest.to_bytes(), 1))
    out.write(body)
    return out.getvalue()


def test_a_huge_claim_costs_no_memory() -> None:
    claim = TensorEntry("w", "float32", (1 << 28,), "none", -1, 0, "0" * 64, 1 << 30)
    bomb = compress(b"\0" * (1 << 24), 19)
    body = b"\x01" + len(bomb).to_bytes(4, "little") + bomb
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            list(delta.apply_from(None, io.BytesIO(lying(claim, body)), SMALL))
        with pytest.raises(Corrupt, match="declares"):
            list(delta.apply_from(None, io.BytesIO(lying(claim, body)), Limits()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 30) + (8 << 20), "the declared tensor itself, which is never touched, and little else"


def test_a_frame_that_declares_too_much_is_refused_before_it_is_inflated() -> None:
    bomb = compress(b"\0" * (64 << 20), 1)
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match="declares"):
            decompress(bomb, most=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_block_longer_than_its_content_is_refused() -> None:
    claim = TensorEntry("w", "uint8", (8,), "none", -1, 0, "0" * 64, 8)
    with pytest.raises(Corrupt, match="raw is never longer"):
        delta.apply(None, lying(claim, b"\x00" + (9).to_bytes(4, "little") + b"123456789"))
    with pytest.raises(Corrupt, match="codec 7"):
        delta.apply(None, lying(claim, b"\x07" + (1).to_bytes(4, "little") + b"1"))


def test_a_codec_that_needs_a_base_where_there_is_none_is_refused() -> None:
    settings = {"format": 1, "block": 64, "codecs": ["raw", "xor-planes-zstd", "same"], "based": False}
    target = build_manifest({"w": np.zeros(8, np.uint8)}, {})
    packed = compress(b"\0" * 4, 1)
    for number, data in ((1, b"\0" * 8), (2, b""), (1, packed)):
        out = io.BytesIO()
        out.write(b"AIOSDLT1")
        write_section(out, canonical_json(settings))
        write_section(out, compress(target.to_bytes(), 1))
        out.write(bytes([number]) + len(data).to_bytes(4, "little") + data)
        with pytest.raises(Corrupt):
            delta.apply(None, out.getvalue())


@pytest.mark.parametrize(
    "settings",
    [
        b"[]",
        b"{}",
        b"[" * 5000,
        b'{"format":1,"format":1}',
        b'{"format":NaN}',
        b'{"block":4096,"based":0,"codecs":["raw"],"format":1}',
        b'{"block":4096,"based":true,"codecs":"raw","format":1}',
        b'{"block":4096,"based":true,"codecs":["raw"],"format":2}',
        b'{"block":4097,"based":true,"codecs":["raw"],"format":1}',
        b'{"block":4096,"based":true,"codecs":["RAW"],"format":1}',
        b'{"block":4096,"based":true,"codecs":["raw"],"format":1,"more":1}',
        b'{"block":1e3,"based":true,"codecs":["raw"],"format":1}',
        b"\xff\xfe",
    ],
)
def test_settings_are_read_strictly(settings: bytes) -> None:
    out = io.BytesIO()
    out.write(b"AIOSDLT1")
    write_section(out, settings)
    write_section(out, compress(build_manifest({}, {}).to_bytes(), 1))
    with pytest.raises(Corrupt):
        delta.apply(None, out.getvalue())


def test_memory_does_not_grow_with_the_tensor() -> None:
    base: Weights = {"w": RNG.integers(0, 1 << 32, 12 << 20, dtype=np.uint32)}
    target: Weights = {"w": base["w"] + np.uint32(3)}  # type: ignore[operator]
    size = 48 << 20
    out = io.BytesIO()
    out.write(bytes(size))  # room for the result, so that only coding is measured
    out.seek(0)
    tracemalloc.start()
    try:
        delta.encode_to(base, target, out)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
        out.truncate()
        out.seek(0)
        tracemalloc.reset_peak()
        for _, tensor in delta.apply_from(base, out):
            assert tensor.nbytes == size
        assert tracemalloc.get_traced_memory()[1] - size < 40 << 20
    finally:
        tracemalloc.stop()
