"""Merging whole versions: dtypes and rounding, what cannot be merged, optimiser state, memory, determinism."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merging import group, merged, one, version

from aios_node.delta.merge.registry import STRATEGIES, make_strategy
from aios_node.delta.merge.rounding import rounded
from aios_node.delta.merge.sides import RUN, Side
from aios_node.delta.merge.spool import Spool
from aios_node.delta.merge.weights import merge
from aios_node.engine.errors import BadRequest, BadWeights, StorageFull
from aios_node.engine.quant.dtypes import dtype_of
from aios_node.engine.quant.ptq import quantize_tensor
from aios_node.engine.quant.recipe import preset
from aios_node.engine.weights.network import NetworkWeights

Array = np.ndarray[Any, Any]
STATEFUL = ("fedadam", "fedyogi", "diloco")


@given(value=st.floats(width=64, allow_nan=False, allow_infinity=False), dtype=st.sampled_from(["float16", "bfloat16"]))
def test_numbers_are_rounded_once_to_the_nearest(value: float, dtype: str) -> None:
    kind = dtype_of(dtype)
    found = rounded(np.array([value]), dtype)
    assert found.dtype == kind
    bits = found.view(np.uint16).astype(np.int32)
    if not np.isfinite(found[0]):
        return
    own = Fraction(float(found[0]))
    for step in (-1, 1):
        other = (bits + step).astype(np.uint16).view(kind).astype(np.float64)[0]
        if np.isfinite(other) and (other < 0) == (float(found[0]) < 0):
            assert abs(Fraction(value) - own) <= abs(Fraction(value) - Fraction(float(other)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_number_just_above_a_tie_goes_up(dtype: str) -> None:
    kind = dtype_of(dtype)
    low = np.array([1.0]).astype(kind)
    high = (low.view(np.uint16) + np.uint16(1)).view(kind)
    middle = (low.astype(np.float64) + high.astype(np.float64)) / 2
    assert rounded(middle, dtype).tolist() == low.tolist()  # ties go to even
    assert rounded(np.nextafter(middle, 2), dtype).tolist() == high.tolist()
    assert rounded(-np.nextafter(middle, 2), dtype).tolist() == (-high).tolist()
    assert rounded(np.nextafter(middle, 0), dtype).tolist() == low.tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_keeps_its_dtype(dtype: str) -> None:
    base, heads = group(1, 2)
    kind = dtype_of(dtype)
    cast = [head.astype(kind) for head in heads]
    result = one(base.astype(kind), cast, "fedavg")
    exact = (cast[0].astype(np.float64) + cast[1].astype(np.float64)) / 2
    assert result.dtype == kind
    assert result.tobytes() == rounded(exact, dtype).tobytes()


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (2, RUN // 2 + 1), (RUN * 2,)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    base = np.ones(shape, np.float32)
    result = one(base, [base + 1, base + 3], "fedavg")
    assert result.shape == shape
    assert (result == 3).all()


def test_tensors_that_nobody_changed_are_the_same_objects() -> None:
    base = {"kept": np.ones(3, np.float32), "w": np.zeros(3, np.float32), "ids": np.arange(3)}
    heads = [{**base, "w": base["w"] + step} for step in (np.float32(1), np.float32(2))]
    for name in STRATEGIES:
        found = merged(base, heads + heads + heads[:1], name).weights
        assert found["kept"] is base["kept"]
        assert found["ids"].tolist() == [0, 1, 2]
        assert "aios.optimizer/momentum/kept" not in found


@pytest.mark.parametrize("other", [np.arange(4), np.array([True, False, True, True])])
def test_what_cannot_be_averaged_must_be_the_same(other: Array) -> None:
    base = {"w": np.zeros(2, np.float32), "ids": other}
    moved = {"w": np.ones(2, np.float32), "ids": other[::-1].copy()}
    assert merged(base, [moved, moved], "fedavg").weights["ids"].tolist() == moved["ids"].tolist()
    with pytest.raises(BadRequest, match=f"'ids' is {other.dtype.name} and differs"):
        merged(base, [base | {"w": moved["w"]}, moved], "fedavg")


def test_quantised_versions_are_sent_to_their_source() -> None:
    _, heads = group(1, 2, size=64)
    settings = preset("int8").settings_for("w")
    assert settings is not None
    codes = [quantize_tensor(head.reshape(8, 8), "float32", settings).tensor for head in heads]
    with pytest.raises(BadRequest, match=r"'w' of 0+ is quantised: merge the model that it was derived from"):
        merged({"w": codes[0]}, [{"w": codes[0]}, {"w": codes[1]}], "fedavg")


def test_versions_of_different_networks_are_refused() -> None:
    base, heads = group(1, 2)
    with pytest.raises(BadRequest, match="'extra' is not in all"):
        merged({"w": base}, [{"w": heads[0]}, {"w": heads[1], "extra": base}], "fedavg")
    with pytest.raises(BadRequest, match="another shape or dtype"):
        merged({"w": base}, [{"w": heads[0]}, {"w": heads[1].reshape(2, -1)}], "fedavg")
    with pytest.raises(BadRequest, match="another shape or dtype"):
        merged({"w": base}, [{"w": heads[0]}, {"w": heads[1].astype(np.float64)}], "fedavg")


def test_results_too_large_for_their_dtype_are_told() -> None:
    base = np.full(3, 60000, np.float16)
    with pytest.raises(BadWeights, match="'w' too large for float16"):
        one(base, [base - 30000, base - 40000], "diloco", learning_rate=9.0, momentum=0.0)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    base, heads = group(1, 2)
    sides = [Side.of(version(n), {"w": head}) for n, head in enumerate(heads)]
    with Spool(tmp_path) as spool:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFull, match="No space left"):
            merge(Side.of("f" * 64, {"w": base}), sides, make_strategy("fedavg"), spool)
    assert list(tmp_path.iterdir()) == []


# ---- optimiser state


@pytest.mark.parametrize("name", STATEFUL)
def test_state_travels_with_the_version_and_heads_need_not_carry_it(name: str) -> None:
    base, heads = group(1, 3)
    first = merged({"w": base}, [{"w": head} for head in heads], name).weights
    bare = [{"w": first["w"] + np.float32(step)} for step in (0.01, 0.02)]
    carrying = [{**first, **head} for head in bare]
    again = merged(first, bare, name).weights
    assert {key: value.tobytes() for key, value in again.items()} == {
        key: value.tobytes() for key, value in merged(first, carrying, name).weights.items()
    }


def test_another_strategy_drops_state_it_has_no_use_for() -> None:
    base, heads = group(1, 3)
    first = merged({"w": base}, [{"w": head} for head in heads], "diloco").weights
    trained = [{**first, "w": first["w"] + np.float32(step)} for step in (0.01, 0.02)]
    assert sorted(merged(first, trained, "fedavg").weights) == ["w"]
    assert sorted(merged(first, trained, "fedadam").weights) == [
        "aios.optimizer/first_moment/w",
        "aios.optimizer/second_moment/w",
        "w",
    ]


@pytest.mark.parametrize(
    "forged",
    [
        np.full(40, -1, np.float32),
        np.full(40, np.nan, np.float32),
        np.ones(40, np.float64),
        np.ones(41, np.float32),
    ],
)
def test_state_that_no_merge_wrote_is_refused(forged: Array) -> None:
    base, heads = group(1, 2)
    state = {"aios.optimizer/first_moment/w": np.ones(40, np.float32), "aios.optimizer/second_moment/w": forged}
    with pytest.raises(BadWeights, match="is no optimiser state"):
        merged({"w": base, **state}, [{"w": head} for head in heads], "fedadam")


def test_networks_do_not_see_state() -> None:
    base, heads = group(1, 3)
    weights = merged({"w": base}, [{"w": head} for head in heads], "fedadam").weights
    seen = NetworkWeights(weights)
    assert (list(seen), len(seen), "aios.optimizer/first_moment/w" in seen) == (["w"], 1, False)
    assert seen["w"] is weights["w"]


# ---- the same everywhere, and in bounded memory

GOLDEN = {
    "diloco": "8d49c1e2268a3c4e",
    "fedadam": "0e25d2449fdd1c11",
    "fedavg": "28f68a2256e83791",
    "fedyogi": "7724d05948bb4c2b",
    "krum": "26a3f515798e43c2",
    "median": "18857c17ae66dfbf",
    "multi_krum": "e3779f3e6644c81c",
    "ties": "2e84e6a50a04de21",
    "trimmed_mean": "082d22f02e3ed783",
}


def integers(seed: int, size: int) -> Array:
    """Pseudo-random numbers by integer arithmetic alone (a linear congruential generator), float32 in [-1, 1)."""
    found = np.empty(size, np.float32)
    state = seed
    for place in range(size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found[place] = (state >> 40) / 2**23 - 1
    return found


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_same_bits_on_every_processor(name: str) -> None:
    """Two rounds over three dtypes; x86-64 gave the same hashes with AVX-512 and with nothing newer than SSE4."""
    kinds = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    weights = {kind.name: integers(number, 300).astype(kind) for number, kind in enumerate(kinds)}
    for step in (1, 2):
        heads = [
            {key: (weights[key].astype(np.float32) + integers(10 * step + n, 300) / 64).astype(weights[key].dtype)
             for key in ("float32", "float16", "bfloat16")}
            for n in range(5)
        ]  # fmt: skip
        weights = merged(weights, heads, name, [3, 1, 4, 1, 5]).weights
    digest = hashlib.sha256(b"".join(key.encode() + weights[key].tobytes() for key in sorted(weights)))
    assert digest.hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_memory_does_not_grow_with_the_model(name: str, tmp_path: Path) -> None:
    small, large = (_peak(name, tmp_path, tensors) for tensors in (2, 12))
    assert large < 1.5 * small
    assert large < 40 * RUN * 8, "some runs of float64 for each head, not whole tensors"


def _peak(name: str, folder: Path, tensors: int) -> int:
    """Most bytes that merging five heads holds at once, inputs aside."""
    count = 4 * RUN
    base = {f"t{n}": np.full(count, n, np.float32) for n in range(tensors)}
    heads = [
        Side(version(n), {key: value + np.float32(n) for key, value in base.items()}, dict.fromkeys(base, str(n)), 1)
        for n in range(5)
    ]
    with Spool(folder) as spool:
        strategy = make_strategy(name)
        merge(Side("f" * 64, base, dict.fromkeys(base, "b")), heads, strategy, spool)  # compiled, imported
    tracemalloc.start()
    try:
        with Spool(folder) as spool:
            merge(Side("f" * 64, base, dict.fromkeys(base, "b")), heads, strategy, spool)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
