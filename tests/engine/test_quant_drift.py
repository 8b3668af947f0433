"""Weights that make up for inputs which are off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.errors import BadRequest
from aios_node.engine.quant.drift import DriftSum, retarget
from aios_node.engine.quant.hessian import HessianSum, Unusable

Floats = NDArray[np.float32]


def missing_of(weight: Floats, wanted: Floats, coming: Floats) -> Floats:
    return ((wanted - coming) @ weight.T).astype(np.float32)


def layer(seed: int, tokens: int = 400) -> tuple[Floats, Floats, Floats]:
    """A weight, the inputs that it was made for, and those that come: shrunk, and with noise."""
    random = np.random.default_rng(seed)
    weight, wanted = random.normal(size=(5, 12)), random.normal(size=(tokens, 12))
    coming = 0.8 * wanted + 0.3 * random.normal(size=wanted.shape)
    return weight.astype(np.float32), wanted.astype(np.float32), coming.astype(np.float32)


def sums(weight: Floats, wanted: Floats, coming: Floats) -> tuple[HessianSum, DriftSum]:
    hessian, drift = HessianSum(weight.shape[1]), DriftSum(*weight.shape)
    hessian.add(coming)
    drift.add(missing_of(weight, wanted, coming), coming)
    return hessian, drift


@given(seed=st.integers(0, 2**32))
def test_outputs_come_closer_to_the_wanted_ones(seed: int) -> None:
    weight, wanted, coming = layer(seed)
    hessian, drift = sums(weight, wanted, coming)
    errors = []
    for share in (0.0, 0.5, 1.0):
        target = retarget(weight, hessian.mean(), drift.mean(), share=share)
        errors.append(float(np.square(wanted @ weight.T - coming @ target.T).sum()))
    assert errors[0] > errors[1] > errors[2]


def test_all_of_it_is_the_least_squares_solution() -> None:
    weight, wanted, coming = layer(1)
    hessian, drift = sums(weight, wanted, coming)
    target = retarget(weight, hessian.mean(), drift.mean(), damping=0.0, share=1.0)
    expected = np.linalg.lstsq(coming, wanted @ weight.T)[0].T
    assert np.allclose(target, expected, atol=1e-4)


def test_inputs_that_are_right_change_nothing() -> None:
    weight, wanted, _ = layer(2)
    hessian, drift = sums(weight, wanted, wanted)
    assert np.array_equal(retarget(weight, hessian.mean(), drift.mean(), share=1.0), weight)


def test_padding_is_left_out() -> None:
    weight, wanted, coming = layer(3, tokens=40)
    mask = np.arange(40).reshape(4, 10) % 3 > 0
    missing = missing_of(weight, wanted, coming).reshape(4, 10, 5)
    found, expected = DriftSum(5, 12), DriftSum(5, 12)
    expected.add(missing[mask], coming.reshape(4, 10, 12)[mask])
    missing[~mask] = np.nan
    found.add(missing, coming.reshape(4, 10, 12), mask)
    assert found.tokens == expected.tokens == mask.sum()
    assert np.allclose(found.mean(), expected.mean())


def test_what_cannot_be_solved_leaves_the_weight() -> None:
    weight = np.ones((2, 3), np.float32)
    for drift in (np.full((2, 3), np.nan), np.full((2, 3), 1e300)):
        assert retarget(weight, np.eye(3), drift) is weight
    assert retarget(weight, np.ones((3, 3)), np.ones((2, 3)), damping=0.0) is weight
    with pytest.raises(Unusable, match="no token"):
        retarget(weight, np.zeros((3, 3)), np.ones((2, 3)))


def test_shapes_that_do_not_fit_are_refused() -> None:
    drift = DriftSum(2, 3)
    rows = np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32)
    drift.add(*rows)
    for missing, activations, mask in (
        (rows[1], rows[0], None),
        (rows[0][:3], rows[1], None),
        (*rows, np.ones(3, bool)),
    ):
        with pytest.raises(BadRequest, match="do not fit"):
            drift.add(missing, activations, mask)
