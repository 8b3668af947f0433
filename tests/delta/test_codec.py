"""encode and apply: exact to the bit, deterministic, small, and honest about bases and results."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Weights, compacted, hashes, quantized, random_bits, versions

from aios_node import delta
from aios_node.delta.codec.body import Coding
from aios_node.delta.codec.choice import smallest
from aios_node.delta.codec.codecs import CODECS, choose, codec_named
from aios_node.delta.codec.planes import Element
from aios_node.engine.errors import BadRequest, BadWeights, Corrupt, HashMismatch, NoBase, TooLarge
from aios_node.engine.quant.blocks import QuantizedTensor
from aios_node.engine.quant.dtypes import DTYPES

RNG = np.random.default_rng(7)
SMALL_BLOCKS = Coding(block=64)
ELEMENTS = (
    *(Element(width) for width in (1, 2, 4, 8)),
    *(Element(1, code=code) for code in (1, 2, 4)),
    *(Element(width, mantissa) for width, mantissa in ((1, 2), (1, 3), (2, 7), (2, 10), (4, 23), (8, 52))),
)


def test_the_room_exports_what_people_type() -> None:
    assert delta.__all__ == ["apply", "apply_from", "encode", "encode_to"]
    assert all(callable(getattr(delta, name)) for name in delta.__all__)
    with pytest.raises(AttributeError, match="decode"):
        delta.decode  # noqa: B018  (asking is the test)


def coded(base: Weights | None, target: Weights, coding: Coding) -> bytes:
    out = io.BytesIO()
    delta.encode_to(base, target, out, coding=coding)
    return out.getvalue()


@given(versions(), st.sampled_from([64, 4096]))
def test_apply_gives_the_target_to_the_bit(pair: tuple[Weights, Weights], block: int) -> None:
    base, target = pair
    blob = coded(base, target, Coding(block=block))
    assert hashes(delta.apply(base, blob)) == hashes(target)
    assert coded(base, target, Coding(block=block)) == blob


@given(versions())
def test_without_a_base_it_is_a_full_copy_that_any_base_may_stand_beside(pair: tuple[Weights, Weights]) -> None:
    base, target = pair
    blob = delta.encode(None, target)
    assert hashes(delta.apply({}, blob)) == hashes(delta.apply(base, blob)) == hashes(target)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "factors"])
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_codec_returns_every_bit_pattern(name: str, element: Element) -> None:
    codec = codec_named(name)
    base = RNG.integers(0, 256, 512 * element.width, dtype=np.uint8)
    target = base ^ (RNG.integers(0, 256, base.size, dtype=np.uint8) * (RNG.random(base.size) < 0.1)).astype(np.uint8)
    if name == "sparse":
        target ^= base
    if name in {"same", "fill"}:
        base = target = np.tile(base[: element.width], 9)
    data = codec.encode(target, base, element)
    if data is None:
        assert (name, element.width) == ("planes-zstd", 1)
    else:
        out = np.empty_like(target)
        codec.decode(data, base, element, out)
        assert out.tobytes() == target.tobytes()


def test_extremes_of_float_survive_the_ordered_difference() -> None:
    bits = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 1, 0x80000001], np.uint32)
    base = {"w": np.repeat(bits, len(bits)).view(np.float32)}
    target = {"w": np.tile(bits, len(bits)).view(np.float32)}
    blob = coded(base, target, Coding(codecs=("raw", "sub-planes-zstd")))
    assert hashes(delta.apply(base, blob)) == hashes(target)


def test_the_smallest_codec_wins_every_block() -> None:
    element = Element(4, mantissa=23)
    base = RNG.normal(size=4096).astype(np.float32).view(np.uint8)
    stepped = (base.view(np.uint32) + RNG.integers(0, 2, 4096, dtype=np.uint32)).view(np.uint8)
    noise = RNG.integers(0, 256, base.size, dtype=np.uint8)
    text = np.resize(np.frombuffer(b"the same sentence again and again, ", np.uint8), base.size)
    for target, expected in ((base, "same"), (stepped, "changes"), (noise, "raw"), (base * 0, "fill"), (text, "zstd")):
        codec, data = smallest(target, base, element, CODECS.values())
        assert codec.name == expected
        others = (other.encode(target, base, element) for other in CODECS.values())
        assert len(data) == min(len(other) for other in others if other is not None)


def test_sparse_changes_cost_little_and_unchanged_tensors_next_to_nothing() -> None:
    base: Weights = {f"layer.{index}": random_bits(RNG, "float32", (64, 64)) for index in range(40)}
    target = dict(base)
    assert len(delta.encode(base, target)) < 64 * 40
    changed = base["layer.3"].copy()
    changed.view(np.uint32)[0, :4] += 1
    target["layer.3"] = changed
    assert len(delta.encode(base, target)) < 64 * 40 + 500


def test_one_percent_of_bfloat16_weights_costs_a_fiftieth() -> None:
    base = (RNG.normal(size=(512, 512)) * 0.02).astype(ml_dtypes.bfloat16)
    bits = base.view(np.uint16).copy()
    where = RNG.random(base.shape) < 0.01
    bits[where] += RNG.integers(0, 2, int(where.sum()), dtype=np.uint16) * 2 - 1
    target = {"w": bits.view(ml_dtypes.bfloat16)}
    blob = delta.encode({"w": base}, target)
    assert len(blob) < base.nbytes / 50
    assert hashes(delta.apply({"w": base}, blob)) == hashes(target)


def test_codes_and_scales_are_coded_apart() -> None:
    old = quantized(RNG, "int4", (256, 512), group=64)
    codes = old.codes.copy()
    codes[::97] ^= 1
    new = QuantizedTensor(codes, old.scales, old.zero_points, old.shape, old.dtype, "int4", 0, 64)
    blob = delta.encode({"w": old}, {"w": new})
    assert len(blob) < old.codes.nbytes / 20, "scales that stay frozen cost nothing"
    assert hashes(delta.apply({"w": old}, blob)) == hashes({"w": new})


def test_compact_scales_travel_as_they_are_stored() -> None:
    old = compacted(RNG, "int2", (256, 512), group=16)
    assert old.compact is not None
    codes = old.codes.copy()
    codes[::97] ^= 1
    new = QuantizedTensor.compacted(codes, old.compact, old.shape, old.dtype, "int2", 0, 16)
    blob = delta.encode({"w": old}, {"w": new})
    assert len(blob) < old.codes.nbytes / 20, "scales that stay frozen cost nothing"
    assert hashes(delta.apply({"w": old}, blob)) == hashes({"w": new})
    plain = quantized(RNG, "int2", (256, 512), group=16)
    for one, other in ((plain, new), (new, plain)):
        across = delta.encode({"w": one}, {"w": other})
        assert len(across) < other.nbytes + 500, "another codec of scales shares no parts with the base"
        assert hashes(delta.apply({"w": one}, across)) == hashes({"w": other})
        with pytest.raises(NoBase):
            delta.apply({"w": other}, across)


def test_an_unchanged_tensor_is_the_base_s_own_object() -> None:
    base: Weights = {"w": np.ones((3, 3), np.float32), "v": np.zeros(4, np.float32)}
    target = base | {"v": np.ones(4, np.float32)}
    result = delta.apply(base, delta.encode(base, target))
    assert result["w"] is base["w"]


def changed(weights: Weights, name: str) -> Weights:
    tensor = weights[name].copy()  # type: ignore[union-attr]
    tensor.reshape(-1).view(np.uint8)[0] ^= 1
    return weights | {name: tensor}


@pytest.mark.parametrize("kept", ["same", "touched", "replaced", "removed"])
def test_a_base_that_differs_anywhere_is_refused(kept: str) -> None:
    base: Weights = {name: random_bits(RNG, "float32", (8, 8)) for name in ("same", "touched", "replaced")}
    target = changed(base, "touched") | {"replaced": random_bits(RNG, "int8", (3,))}
    base["removed"] = random_bits(RNG, "float16", (4,))
    blob = delta.encode(base, target)
    assert hashes(delta.apply(base, blob)) == hashes(target)
    for wrong in (changed(base, kept), {name: base[name] for name in base if name != kept}, {}, None):
        with pytest.raises(NoBase):
            delta.apply(wrong, blob)
    with pytest.raises(NoBase):
        delta.apply(base | {"stranger": base["same"]}, blob)


def test_a_base_of_another_shape_is_refused() -> None:
    base: Weights = {"w": np.ones((4, 6), np.float32)}
    blob = delta.encode(base, {"w": np.zeros((4, 6), np.float32)})
    with pytest.raises(NoBase, match="shape"):
        delta.apply({"w": np.ones((6, 4), np.float32)}, blob)


def test_a_result_that_differs_is_refused() -> None:
    base: Weights = {"w": RNG.integers(0, 256, 512, dtype=np.uint8)}
    target: Weights = {"w": RNG.integers(0, 256, 512, dtype=np.uint8)}
    blob = bytearray(delta.encode(base, target))
    blob[-1] ^= 1
    with pytest.raises(HashMismatch, match="'w'"):
        delta.apply(base, bytes(blob))


@pytest.mark.parametrize("dtype", ["object", "complex64", "datetime64[s]", "U3"])
def test_dtypes_that_no_version_may_hold_are_refused(dtype: str) -> None:
    with pytest.raises(BadWeights):
        delta.encode(None, {"w": np.zeros(3, dtype)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_foreign_memory_orders_are_coded_by_their_meaning(dtype: str) -> None:
    tensor = random_bits(RNG, dtype, (6, 10))
    for view in (tensor.T, tensor[::2], tensor[:, 1:4], np.asfortranarray(tensor)):
        blob = delta.encode({"w": tensor}, {"w": view})
        assert hashes(delta.apply({"w": tensor}, blob)) == hashes({"w": np.ascontiguousarray(view)})


def test_progress_ends_with_all_bytes() -> None:
    base: Weights = {"a": np.ones(10, np.float32), "b": np.ones(5, np.float64)}
    seen: list[tuple[int, int]] = []
    out = io.BytesIO()
    delta.encode_to(None, base, out, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 80), (40, 80), (80, 80)]
    out.seek(0)
    list(delta.apply_from(None, out, progress=lambda done, total: seen.append((done, total))))
    assert seen[3:] == [(40, 80), (80, 80)]


def test_only_allowed_codecs_are_used_and_named() -> None:
    base: Weights = {"w": np.zeros(999, np.float32)}
    blob = coded(None, base, Coding(codecs=("raw",)))
    assert len(blob) > 999 * 4
    assert b"planes" not in blob
    assert choose(["zstd", "from-the-future", "raw"]) == ("raw", "zstd")
    with pytest.raises(BadRequest, match="raw"):
        choose(["zstd"])


def test_unknown_codecs_and_silly_blocks_are_refused() -> None:
    for codecs, block in ((("raw", "rot13"), 4096), (("raw", "raw"), 4096), ((), 4096), (("raw",), 12)):
        with pytest.raises(Corrupt):
            Coding(codecs=codecs, block=block)


def test_sizes_are_bounded_before_anything_is_made() -> None:
    from aios_node.delta.limits import Limits

    blob = delta.encode(None, {"w": np.zeros((1000, 1000), np.float32)})
    for limits in (Limits(tensor_bytes=999), Limits(total_bytes=999), Limits(tensors=0), Limits(header_bytes=99)):
        with pytest.raises((TooLarge, Corrupt)):
            list(delta.apply_from(None, io.BytesIO(blob), limits))
