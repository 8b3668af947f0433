"""A lossy version is one version: whoever has its base makes the same bits again, from far fewer bytes."""

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
from aios_node.delta.codec.body import Coding, Wanted, read_tensors
from aios_node.delta.codec.codecs import CODECS
from aios_node.delta.lossy.compress import compress
from aios_node.delta.lossy.settings import LossySettings
from aios_node.delta.package.package import build_package, open_package
from aios_node.engine.errors import AiosError, Corrupt
from aios_node.engine.quant.blocks import QuantizedTensor
from aios_node.engine.quant.packing import pack
from aios_node.engine.weights.folder import write_folder
from aios_node.engine.weights.lowrank import Factors
from aios_node.engine.weights.manifest import build_manifest
from aios_node.engine.weights.prediction import read_prediction
from aios_node.engine.weights.update import Update, read_update, update_name


def versions(dtype: Any = np.float32, shape: tuple[int, ...] = (256, 256)) -> tuple[Weights, Weights]:
    """A base, and all of it after a step of training."""
    random = np.random.default_rng(0)
    base = (random.normal(size=shape) * 0.05).astype(dtype)
    target = (base.astype(float) + random.normal(size=shape) * 1e-3).astype(dtype)
    return {"W": base, "b": base.ravel()[:9]}, {"W": target, "b": target.ravel()[:9]}


def made(method: str, dtype: Any = np.float32, **settings: Any) -> tuple[Weights, Weights]:
    base, target = versions(dtype)
    return base, dict(compress(base, target, LossySettings.of(method, **settings)).weights)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("method", "times"), [("top_k", 100), ("int8", 3.5), ("int4", 7.3), ("sign", 24)])
def test_a_lossy_version_is_made_again_to_the_bit(method: str, times: float, dtype: Any) -> None:
    base, target = made(method, dtype)
    blob = delta.encode(base, target)
    assert hashes(delta.apply(base, blob)) == hashes(target)
    assert len(blob) < 1400 + 4 * target["W"].size / times


def test_publisher_and_receiver_agree_on_the_hash_of_a_package(tmp_path: Path) -> None:
    base, target = made("int4")
    old = write_folder(tmp_path / "old", base, {})
    new = write_folder(tmp_path / "new", target, {}, parents=[old.version], recipe={"lossy": True})
    out = io.BytesIO()
    info = build_package(out, base=old, target=new)
    assert info.bytes < target["W"].nbytes / 7
    out.seek(0)
    with open_package(out, find_base={old.version: old}.get) as package:
        arrived = write_folder(tmp_path / "arrived", package.weights, {}, parents=[old.version], recipe={"lossy": True})
    assert arrived.version == new.version


@pytest.mark.parametrize("block", [64, 4096])
def test_blocks_of_any_size_find_their_part_of_the_update(block: int) -> None:
    base, target = made("sign", ml_dtypes.bfloat16, group=48)
    out = io.BytesIO()
    delta.encode_to(base, target, out, coding=Coding(block=block))
    assert hashes(delta.apply(base, out.getvalue())) == hashes(target)


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([2, 4, 8]), st.integers(0, 9))
def test_parts_of_an_update_are_those_of_the_whole(first: int, count: int, bits: int, group: int) -> None:
    random = np.random.default_rng(first)
    codes = pack(random.integers(0, 1 << bits, 77), bits)
    groups = 1 if not group else -(-77 // group)
    scales, zeros = (random.random((1, groups)).astype(np.float32) for _ in range(2))
    update = Update(QuantizedTensor(codes, scales, zeros, (7, 11), "float32", f"int{bits}", -1, group))  # type: ignore[arg-type]
    base = random.normal(size=77)
    whole = base + update.codes.dequantize().ravel().astype(float)
    assert np.array_equal(update.add(base), whole)
    part = slice(first, min(77, first + count))
    assert np.array_equal(update.add(base[part], first), whole[part])


def test_sums_are_rounded_once() -> None:
    """1 + 2^-8 is the middle between two bfloat16 numbers; a little more is nearer to the upper one."""
    update = QuantizedTensor(
        np.array([1, 1], np.uint8),
        np.array([[2.0**-8, 2.0**-8 + 2.0**-31]], np.float32),
        np.zeros((1, 2), np.float32),
        (2,),
        "float32",
        "int8",
        -1,
        1,
    )
    assert Update(update).add(np.ones(2, ml_dtypes.bfloat16)).tolist() == [1.0, 1 + 2.0**-7]


def test_few_elements_cost_little_more_than_their_entropy() -> None:
    random = np.random.default_rng(4)
    codes = np.where(random.random(1 << 18) < 0.01, random.integers(-127, 128, 1 << 18), 0)
    tensor = QuantizedTensor(
        pack(codes, 8),
        np.ones((1, 1), np.float32),
        np.zeros((1, 1), np.float32),
        codes.shape,
        "float32",
        "int8",
        -1,
        0,
    )
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / codes.size
    entropy = -(shares * np.log2(shares)).sum() * codes.size / 8
    assert len(delta.encode(None, {"w": tensor})) < 1.1 * entropy + 400
    without = Coding(codecs=tuple(name for name in CODECS if name != "sparse"))
    out = io.BytesIO()
    delta.encode_to(None, {"w": tensor}, out, coding=without)
    assert len(out.getvalue()) > 1.4 * entropy


@pytest.mark.parametrize("case", ["other shape", "other axis", "other dtype", "no codes", "an integer tensor", "new"])
def test_updates_that_do_not_fit_are_just_tensors(case: str) -> None:
    base, target = made("int8")
    name, update = update_name("W"), target[update_name("W")]
    assert isinstance(update, QuantizedTensor)
    match case:
        case "other shape":
            target[name] = compress({"x": np.zeros(2000)}, {"x": np.ones(2000)}, LossySettings.of("int8")).weights[
                update_name("x")
            ]
        case "other axis":
            ones = np.ones((256, 1), np.float32)
            target[name] = QuantizedTensor(update.codes, ones, ones, (256, 256), "float32", "int8", 0, 0)
        case "other dtype":
            parts = update.codes, update.scales, update.zero_points
            target[name] = QuantizedTensor(*parts, (256, 256), "float16", "int8", -1, update.group_size)
        case "no codes":
            target[name] = np.ones((256, 256), np.float32)
        case "an integer tensor":
            base["W"], target["W"] = (np.asarray(one["W"]).view(np.int32) for one in (base, target))
        case _:
            del base["W"]
    assert hashes(delta.apply(base, delta.encode(base, target))) == hashes(target)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_hostile_scales_give_documented_errors_only(scale: float) -> None:
    base, target = made("int8")
    update = target[update_name("W")]
    assert isinstance(update, QuantizedTensor)
    good = delta.encode(base, target)
    hostile = update.scales.copy()
    hostile[:] = scale
    spoiled = {
        **target,
        update_name("W"): QuantizedTensor(
            update.codes, hostile, update.zero_points, (256, 256), "float32", "int8", -1, update.group_size
        ),
    }
    blob = delta.encode(base, spoiled)
    assert hashes(delta.apply(base, blob)) == hashes(spoiled)
    for one in (blob[:-60] + good[-60:], good[: len(good) // 2] + blob[len(good) // 2 :], good[:-7]):
        with pytest.raises(AiosError):
            delta.apply(base, one)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_deltas_of_updates_give_documented_errors_only(place: int, value: int) -> None:
    base, target = SMALL
    damaged = bytearray(SMALL_BLOB)
    damaged[place % len(damaged)] = value
    try:
        assert hashes(delta.apply(base, bytes(damaged))) == hashes(target)
    except AiosError:
        assert bytes(damaged) != SMALL_BLOB


def test_a_block_of_an_update_where_there_is_none_is_refused() -> None:
    base, target = made("int4", least=1)
    (entry,) = (one for one in build_manifest(target, {}).tensors if one.name == "W")
    update = read_update(target, "W")
    frame = bytes([list(CODECS).index("factors")]) + b"\1\0\0\0\0"  # another codec follows, and is 'same'
    (tensor,) = read_tensors(io.BytesIO(frame), [Wanted(entry, base["W"], update)], Coding())
    assert np.asarray(tensor).tobytes() == target["W"].tobytes()
    for old, beside in ((base["W"], None), (None, update), (base["W"], Update(target[update_name("b")]))):
        with pytest.raises(Corrupt, match="needs factors or an update"):
            list(read_tensors(io.BytesIO(frame), [Wanted(entry, old, beside)], Coding()))


def test_an_update_goes_before_factors() -> None:
    _, target = made("int4")
    target |= Factors.of(np.ones((256, 1)), np.ones((1, 256))).stored("W")
    assert isinstance(read_prediction(target, "W"), Update)
    del target[update_name("W")]
    assert isinstance(read_prediction(target, "W"), Factors)
    assert read_update(target, "W") is None


def test_the_next_version_may_be_exact_again() -> None:
    base, lossy = made("top_k")
    _, exact = versions()
    assert set(exact) == set(base)
    assert hashes(delta.apply(lossy, delta.encode(lossy, exact))) == hashes(exact)
    assert hashes(delta.apply(base, delta.encode(base, exact))) == hashes(exact)


def _small() -> tuple[Weights, Weights]:
    base, target = versions(shape=(16, 12))
    return base, dict(compress(base, target, LossySettings.of("int4", least=1)).weights)


SMALL = _small()
SMALL_BLOB = delta.encode(*SMALL)
