"""The codec ``changes``: exact, near the entropy, never much larger than simple codecs, and hard to fool."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from aios_node import delta
from aios_node.delta.codec.changes import Changes
from aios_node.delta.codec.planes import Element
from aios_node.engine.errors import Corrupt
from aios_node.engine.quant.blocks import QuantizedTensor, pack
from aios_node.engine.quant.dtypes import DTYPES

DENSITIES = (0.0, 1e-5, 1e-3, 0.01, 0.08, 0.3, 0.63, 1.0)
FLOATS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
HEADER = 400  # bytes of a delta beside its blocks, for one tensor
LEARNING = 640  # until the tables of 16 contexts are what they should be

ELEMENTS = (
    *(Element(width) for width in (1, 2, 4, 8)),
    *(Element(1, code=code) for code in (1, 2, 4)),
    *(Element(width, mantissa) for width, mantissa in ((1, 2), (1, 3), (2, 7), (2, 10), (4, 23), (8, 52))),
)


def words(dtype: str) -> np.dtype[Any]:
    return np.dtype(f"u{DTYPES[dtype].itemsize}")


def pair(dtype: str, density: float, count: int = 200_000, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers, and the same with so many of them moved by a few steps."""
    random = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    if dtype == "bool":
        base = random.random(count) < 0.3
        return base, base ^ (random.random(count) < density)
    drawn = random.normal(size=count) * (0.02 if kind.kind in "fV" else 50)
    base = np.clip(drawn, 0, 200).astype(kind) if kind.kind == "u" else drawn.astype(kind)
    steps = random.geometric(0.5, count) * random.choice([-1, 1], count) * (random.random(count) < density)
    bits = base.view(words(dtype)) + steps.astype(words(dtype))
    return base, bits.view(kind)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_never_much_larger_than_planes_or_a_plain_copy(dtype: str, density: float) -> None:
    base, target = pair(dtype, density)
    blob = delta.encode({"w": base}, {"w": target})
    assert delta.apply({"w": base}, blob)["w"].tobytes() == target.tobytes()
    level3 = zstandard.ZstdCompressor(level=3)
    differing = base.view(np.uint8) ^ target.view(np.uint8)
    planes = np.ascontiguousarray(differing.reshape(-1, base.itemsize).T)
    simple = min(len(level3.compress(planes.tobytes())), len(level3.compress(target.tobytes())))
    assert len(blob) <= simple * 1.001 + 64 + HEADER


def entropy(counts: NDArray[np.int64]) -> float:
    """Bytes of so many symbols, order 0."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() * counts.sum() / 8)


def floor(base: NDArray[Any], target: NDArray[Any], mantissa: int) -> float:
    """Order-0 entropy in bytes of the step of every element, given the base's exponent."""
    kind = words(str(base.dtype))
    old, new = base.view(kind).astype(np.uint64), target.view(kind).astype(np.uint64)
    sign = np.uint64(1 << (8 * base.itemsize - 1))
    old, new = (np.where(each & sign, sign - (each & ~sign), each | sign) for each in (old, new))
    exponents = (base.view(kind) & ~kind.type(sign)) >> kind.type(mantissa)
    total = 0.0
    for exponent in np.unique(exponents):
        here = exponents == exponent
        total += entropy(np.unique((new - old)[here], return_counts=True)[1])
    return total


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("move", [0.01, 0.1, 1.0])
def test_a_million_floats_come_within_a_few_per_cent_of_their_entropy(dtype: str, move: float) -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=1 << 20) * 0.02
    base = values.astype(DTYPES[dtype])
    unit = float(np.median(np.abs(np.spacing(base.astype(np.float32))))) * (2**16 if dtype == "bfloat16" else 2**13)
    target = (base.astype(np.float32) + random.normal(size=base.size) * move * unit).astype(DTYPES[dtype])
    blob = delta.encode({"w": base}, {"w": target})
    assert len(blob) <= 1.03 * floor(base, target, FLOATS[dtype]) + HEADER + LEARNING


@pytest.mark.parametrize(("quant", "bits"), [("int8", 8), ("int4", 4), ("int2", 2)])
@pytest.mark.parametrize("density", [0.01, 0.08, 0.5])
def test_a_million_codes_come_within_a_few_per_cent_of_their_entropy(quant: Any, bits: int, density: float) -> None:
    random = np.random.default_rng(4)
    low, high = (-128, 127) if bits == 8 else (0, 2**bits - 1)
    old = np.clip(np.rint(random.normal(size=1 << 20) * 2 ** (bits - 2) + (low + high) / 2), low, high).astype(int)
    step = random.choice([-1, 1], old.size) * (random.random(old.size) < density)
    new = np.clip(old + step, low, high)

    def tensor(codes: NDArray[Any]) -> QuantizedTensor:
        stored = codes.astype(np.int8).view(np.uint8) if bits == 8 else pack(codes.astype(np.uint8), bits)
        scales = np.ones((1, 1), np.float32)
        return QuantizedTensor(stored, scales, scales, (1 << 20,), "float32", quant, -1, 0)

    blob = delta.encode({"w": tensor(old)}, {"w": tensor(new)})
    bound = entropy(np.unique(new - old, return_counts=True)[1])
    assert len(blob) <= 1.03 * bound + HEADER
    applied = delta.apply({"w": tensor(old)}, blob)["w"]
    assert isinstance(applied, QuantizedTensor)
    assert applied.codes.tobytes() == tensor(new).codes.tobytes()


@given(
    st.sampled_from(ELEMENTS),
    arrays(np.uint8, st.integers(1, 60).map(lambda count: 8 * count)),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_any_bits_come_back(element: Element, base: NDArray[np.uint8], density: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    changed = random.integers(0, 256, base.size, dtype=np.uint8) * (random.random(base.size) < density)
    target = base ^ changed.astype(np.uint8)
    data = Changes().encode(target, base, element)
    if data is not None:
        assert len(data) <= base.size
        out = np.empty_like(base)
        Changes().decode(data, base, element, out)
        assert out.tobytes() == target.tobytes()


def test_runs_and_segments_have_no_seams() -> None:
    base, target = pair("bfloat16", 0.4, count=(1 << 20) + 4099)
    element = Element(2, 7)
    data = Changes().encode(target.view(np.uint8), base.view(np.uint8), element)
    assert data is not None
    out = np.empty(base.nbytes, np.uint8)
    Changes().decode(data, base.view(np.uint8), element, out)
    assert out.tobytes() == target.tobytes()


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_damage_is_found_or_changes_nothing_else(element: Element) -> None:
    random = np.random.default_rng(5)
    base = random.integers(0, 256, 4096, dtype=np.uint8)
    target = base.copy()
    target[::97] ^= 3
    data = Changes().encode(target, base, element)
    assert data is not None
    out = np.empty_like(base)
    for cut in (0, 1, 7, 9, len(data) // 2, len(data) - 1):
        with pytest.raises(Corrupt, match="changes"):
            Changes().decode(data[:cut], base, element, out)
    with pytest.raises(Corrupt, match="changes"):
        Changes().decode(data + b"\\0" * 4, base, element, out)
    found = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        try:
            Changes().decode(bytes(damaged), base, element, out)
        except Corrupt:
            found += 1
    assert found >= 0.5 * len(data)  # bits that stand for themselves are left to the hash of the tensor


@given(st.binary(max_size=300), st.sampled_from(ELEMENTS))
def test_noise_allocates_no_more_than_the_model(data: bytes, element: Element) -> None:
    base, out = np.zeros(4096, np.uint8), np.empty(4096, np.uint8)
    Changes().encode(base, base, element)  # compiled code is loaded before anything is counted
    tracemalloc.start()
    try:
        Changes().decode(data, base, element, out)
    except Corrupt:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 512 * 1024


def test_one_outlier_does_not_hide_the_exponents() -> None:
    base, target = pair("bfloat16", 0.02)
    plain = len(delta.encode({"w": base}, {"w": target}))
    base, target = base.copy(), target.copy()
    base[7] = target[7] = ml_dtypes.bfloat16(math.inf)
    assert len(delta.encode({"w": base}, {"w": target})) < plain + 20
