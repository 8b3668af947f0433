"""What measures deltas measures rightly: floors against hand counts, rivals by round trips. Needs no extra packages."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
NEEDED = ("delta_pairs", "delta_floors", "pulse_format", "pulse_patch", "delta_rivals", "delta_measure")
SIZE = 2**14


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """They import each other by bare names, as run.py lets them."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NEEDED})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if name in NEEDED:
                del sys.modules[name]


def plain(bench: SimpleNamespace) -> list[Any]:
    """The rivals that need no package."""
    rivals = bench.delta_rivals
    return [rivals.zstd_full(1), rivals.zstd_xor(1), rivals.xor_planes(3), rivals.difference_classes(), *rivals.pulse()]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "int4", "int2"])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_synthetic_pairs_are_as_dense_as_asked_for(bench: SimpleNamespace, precision: str, density: float) -> None:
    pair = bench.delta_pairs.synthetic(precision, density, SIZE)
    assert abs(pair.changed - density) < 0.01
    again = bench.delta_pairs.synthetic(precision, density, SIZE)
    assert np.array_equal(bench.delta_pairs.numbers(pair.target), bench.delta_pairs.numbers(again.target))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4", "int2"])
@pytest.mark.parametrize("density", [0.01, 0.6, 1.0])
def test_every_rival_gives_the_target_back(bench: SimpleNamespace, precision: str, density: float) -> None:
    pair = bench.delta_pairs.synthetic(precision, density, SIZE)
    found = bench.delta_measure.sizes({"w": pair.base}, {"w": pair.target}, plain(bench))
    assert {"ours", "floor", "PULSE, flat", "XOR planes + zstd 3"} <= set(found.coded)
    assert 0 < found.header < found.coded["ours"]
    assert found.raw == found.raw_changed == pair.target.nbytes


def test_a_rival_that_gives_something_else_is_found_out(bench: SimpleNamespace) -> None:
    pair = bench.delta_pairs.synthetic("bfloat16", 0.1, SIZE)
    liar = bench.delta_rivals.Rival("liar", lambda _base, _target: b"", lambda base, _data: {"w": base["w"].data})
    with pytest.raises(bench.delta_measure.BrokenCodec, match="liar"):
        bench.delta_measure.sizes({"w": pair.base}, {"w": pair.target}, [liar])


def test_the_floor_of_floats_by_hand(bench: SimpleNamespace) -> None:
    """Two exponents: of eight ones two move up by a step, of eight twos none."""
    base = np.repeat(np.array([1.0, 2.0], ml_dtypes.bfloat16), 8)
    target = base.copy()
    target.view(np.uint16)[[1, 4]] += 1
    bits = -(2 * math.log2(2 / 8) + 6 * math.log2(6 / 8))
    assert bench.delta_floors.floor_bytes(base, target) == pytest.approx(bits / 8)


def test_a_large_difference_counts_its_low_bits_as_they_are(bench: SimpleNamespace) -> None:
    """One step of 2**10 in a context of its own costs no symbol, but four bits below the six leading ones."""
    base = np.array([1.0], np.float32)
    target = (base.view(np.uint32) + np.uint32(1024)).view(np.float32)
    low = 10 + 1 - bench.delta_floors._DIRECT_BITS
    assert bench.delta_floors.floor_bytes(base, target) == pytest.approx(low / 8)


def test_the_floor_of_codes_by_hand(bench: SimpleNamespace) -> None:
    """Steps of +1 and 0, half each: one bit a code; given the old code they are certain."""
    assert bench.delta_floors.entropy_bits(np.array([1, 0] * 8)) == pytest.approx(16)
    assert bench.delta_floors.conditional_bits(np.array([3, 1] * 8), np.array([2, 1] * 8)) == pytest.approx(0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_ordered_integers_are_in_the_order_of_the_floats(bench: SimpleNamespace, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, 50).astype(np.uint32)
    bits[:4] = 0, 1 << 31, 0x7F800000, 0xFF800000  # zeros and infinities
    bits = bits[~np.isnan(bits.view(np.float32))]
    order = np.argsort(bench.delta_floors.ordered(bits, 32), kind="stable")
    sorted_floats = bits.view(np.float32)[order]
    assert (sorted_floats[1:] >= sorted_floats[:-1]).all()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4), (400,), (1, 70_000), (300, 300)]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 20),
)
def test_pulse_encoders_are_exact(bench: SimpleNamespace, shape: tuple[int, ...], seed: int, changes: int) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(0, 2**16, shape).astype(np.uint16)
    target = base.copy()
    target.reshape(-1)[random.integers(0, base.size, changes)] = random.integers(0, 2**16, changes)
    old, new = {"a": base, "b": base}, {"a": target, "b": base}
    format_, patch = bench.pulse_format, bench.pulse_patch
    for encode, decode in (
        (format_.encode, format_.decode),
        (patch.encode_flat, patch.decode_flat),
        (patch.encode_classes, patch.decode_classes),
    ):
        found = decode(old, encode(old, new))
        assert all(np.array_equal(found[name], new[name]) for name in new)


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 2**20), min_size=1, max_size=200))
def test_rice_codes_are_exact(bench: SimpleNamespace, chosen: set[int]) -> None:
    ranks = np.array(sorted(chosen))
    assert np.array_equal(bench.pulse_patch.from_rice(bench.pulse_patch.rice(ranks), ranks.size), ranks)


@pytest.mark.parametrize(("density", "ratio"), [(0.0144, 47.2), (0.076, 10.6)])
def test_pulse_is_as_small_as_another_implementation(bench: SimpleNamespace, density: float, ratio: float) -> None:
    """Within a tenth of what an independent encoder of version 3.1 gave on such weights."""
    pair = bench.delta_pairs.synthetic("bfloat16", density, 2**20)
    base, target = ({"w": bench.delta_pairs.numbers(each).reshape(-1, 1024)} for each in (pair.base, pair.target))
    for encode in (bench.pulse_format.encode, bench.pulse_patch.encode_flat):
        assert 0.9 < base["w"].nbytes / len(encode(base, target)) / ratio < 1.1


def test_what_is_missing_is_said(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(bench.delta_rivals.shutil, "which", lambda _name: None)
    found, missing = bench.delta_rivals.rivals()
    assert [line.split()[0] for line in missing] == ["z4ai", "zipnn", "xdelta3"]
    assert "PULSE, flat" in [rival.name for rival in found]
