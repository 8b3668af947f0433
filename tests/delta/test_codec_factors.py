"""Tensors that were made by factors travel as these factors, and come out exact to the bit all the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Weights, hashes

from aios_node import delta
from aios_node.delta.codec.body import Coding
from aios_node.delta.codec.codecs import CODECS
from aios_node.delta.factors import without_costly_factors
from aios_node.delta.package.package import build_package, open_package
from aios_node.engine.errors import Corrupt
from aios_node.engine.weights.folder import write_folder
from aios_node.engine.weights.lowrank import Factors, factor_names, read_factors

FLOATS = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)


def factors_of(random: np.random.Generator, shape: tuple[int, int], rank: int) -> Factors:
    up, down = random.normal(size=(shape[0], rank)) * 0.02, random.normal(size=(rank, shape[1])) * 0.1
    return Factors.of(up.astype(np.float32), down.astype(np.float32))


def made(dtype: Any, shape: tuple[int, int] = (96, 80), rank: int = 4, seed: int = 0) -> tuple[Weights, Weights]:
    """A base, and what a product of small matrices makes of it; the factors lie beside."""
    random = np.random.default_rng(seed)
    base = (random.normal(size=shape) * 0.05).astype(dtype)
    factors = factors_of(random, shape, rank)
    target = factors.add(base.ravel()).reshape(shape)
    other = np.arange(9)
    return {"W": base, "other": other}, {"W": target, "other": other, **factors.stored("W")}


def plainly(base: Weights, target: Weights) -> bytes:
    """A delta by a writer that knows nothing of factors."""
    out = io.BytesIO()
    delta.encode_to(base, target, out, coding=Coding(codecs=tuple(name for name in CODECS if name != "factors")))
    return out.getvalue()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_product_is_made_again_by_the_receiver(dtype: Any) -> None:
    base, target = made(dtype, (384, 384))
    blob = delta.encode(base, target)
    factors = sum(target[name].nbytes for name in factor_names("W"))
    assert len(blob) < factors + 1200
    assert hashes(delta.apply(base, blob)) == hashes(target)
    if dtype is np.float32:
        assert len(plainly(base, target)) > 40 * len(blob)


@given(st.sampled_from(FLOATS), st.integers(1, 5), st.integers(0, 1000), st.sampled_from([64, 4096]))
def test_what_the_product_does_not_explain_is_coded_besides(dtype: Any, rank: int, changes: int, block: int) -> None:
    base, target = made(dtype, (24, 20), rank, seed=changes)
    random = np.random.default_rng(changes)
    noisy = np.asarray(target["W"]).copy()
    noisy.ravel()[random.integers(0, noisy.size, changes % 30)] = 1.5
    target["W"] = noisy
    out = io.BytesIO()
    delta.encode_to(base, target, out, coding=Coding(block=block))
    assert hashes(delta.apply(base, out.getvalue())) == hashes(target)


def test_sums_are_made_as_they_are_written_down() -> None:
    random = np.random.default_rng(1)
    base = random.normal(size=(5, 7)).astype(np.float32)
    factors = factors_of(random, (5, 7), 3)
    up, down = factors.up.dequantize().astype(float), factors.down.dequantize().astype(float)

    def value(row: int, column: int) -> float:
        total = float(base[row, column])
        for rank in range(3):
            total += up[row, rank] * down[rank, column]
        return total

    expected = np.array([[value(row, column) for column in range(7)] for row in range(5)]).astype(np.float32)
    assert np.array_equal(factors.add(base.ravel()).reshape(5, 7), expected)
    assert np.array_equal(factors.add(base.ravel()[9:20], 9), expected.ravel()[9:20])


@pytest.mark.parametrize("case", ["other shape", "no pair", "other dtype", "not a float", "new tensor"])
def test_factors_that_do_not_fit_are_just_tensors(case: str) -> None:
    base, target = made(np.float32)
    up, down = factor_names("W")
    match case:
        case "other shape":
            target[up] = factors_of(np.random.default_rng(2), (3, 4), 4).up
        case "no pair":
            del target[up]
        case "other dtype":
            target[down] = np.zeros((4, 80), np.float32)
        case "not a float":
            base["W"], target["W"] = (np.asarray(one["W"]).view(np.int32) for one in (base, target))
        case _:
            del base["W"]
    assert hashes(delta.apply(base, delta.encode(base, target))) == hashes(target)


def test_a_package_carries_them_too(tmp_path: Path) -> None:
    base, target = made(np.float32, (384, 384))
    old = write_folder(tmp_path / "old", base, {})
    new = write_folder(tmp_path / "new", target, {}, parents=[old.version])
    out = io.BytesIO()
    info = build_package(out, base=old, target=new)
    assert info.bytes < 9000
    out.seek(0)
    with open_package(out, find_base={old.version: old}.get) as package:
        assert hashes(package.weights) == hashes(target)
        assert hashes({"W": package.weights["W"]}) == hashes({"W": target["W"]})


def test_a_block_of_factors_where_there_are_none_is_refused() -> None:
    base, target = made(np.float32)
    blob = delta.encode(base, target)
    assert read_factors(target, "W") is not None
    wanted = bytes([list(CODECS).index("factors")])
    place = blob.rindex(wanted + b"\1\0\0\0")  # codec, length 1: the block needs nothing but its factors
    assert blob[place + 5] == 0  # ... against which it is the same
    for inner in (200, list(CODECS).index("factors"), list(CODECS).index("raw")):
        with pytest.raises(Corrupt):
            delta.apply(base, blob[: place + 5] + bytes([inner]) + blob[place + 6 :])


def test_factors_stay_only_where_they_save_something() -> None:
    base, target = made(np.float32, (384, 384))
    assert set(without_costly_factors(base, target)) == set(target)
    few = {"W": np.asarray(base["W"]).copy(), **{name: target[name] for name in factor_names("W")}}
    few["W"][0, :9] += 1
    kept = without_costly_factors(base, few)
    assert set(kept) == {"W"}
    assert kept["W"] is few["W"]
