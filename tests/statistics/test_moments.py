"""Few columns are kept as they are, and give the same answers as the matrix of all inputs, which is then never made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_onnx.linalg import hessian
from spa_onnx.linalg.hessian import Factored, Full
from spa_onnx.linalg.obs import CALIBRATED, SUPPORT, SYNTHETIC, UNCERTAIN
from spa_onnx.statistics import collect as statistics
from spa_onnx.statistics.collect import _MomentAccumulator
from spa_onnx.statistics.moments import MomentColumns, MomentSums, are_few

CLOSE = 1e-8

SIZES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 6),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
"""blocks of a convolution, rows, channels, inputs per channel, columns, seed."""


def problem(blocks, rows, channels, size, columns, seed):
    """(W, X, the inputs that each channel owns).

    The inputs of a channel are scattered, one input is constant, one is a copy of another.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((blocks, channels * size, columns)) + rng.uniform(-3, 3, (blocks, channels * size, 1))
    x[:, 0] = rng.uniform(-3, 3)
    x[:, -1] = x[:, -2]
    return (
        rng.standard_normal((blocks, rows, channels * size)),
        x,
        rng.permutation(channels * size).reshape(channels, size),
    )


def both(x, regularisation, *, biased):
    mean, damping = regularisation.of(biased=biased)
    return [moments.hessians(mean, damping) for moments in (MomentSums.of(x), MomentColumns(x))]


@settings(max_examples=50, deadline=None)
@given(SIZES)
def test_moments_are_the_same(sizes):
    weight, x, _ = problem(*sizes)
    sums, columns = MomentSums.of(x), MomentColumns(x)
    assert sums.count == columns.count == x.shape[2]
    np.testing.assert_allclose(columns.total, sums.total, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(columns.mean, x.mean(axis=2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(columns.mean_square(), sums.mean_square(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(columns.energy(weight), sums.energy(weight), rtol=1e-9)
    np.testing.assert_allclose(sums.energy(weight), np.square(weight @ x).sum(axis=(1, 2)) / x.shape[2], rtol=1e-9)
    some = np.arange(0, x.shape[1], 2)
    for block in range(len(x)):
        np.testing.assert_allclose(columns.rows(block, some), sums.rows(block, some), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            sums.rows(block, some), x[block][some] @ x[block].T / x.shape[2], rtol=1e-12, atol=1e-12
        )


@settings(max_examples=50, deadline=None)
@given(SIZES, st.sampled_from([CALIBRATED, SYNTHETIC, UNCERTAIN]), st.booleans(), st.data())
def test_what_channels_cost_is_the_same_however_many_are_gone(sizes, regularisation, biased, data):
    weight, x, owned = problem(*sizes)
    if x.shape[2] >= SUPPORT * x.shape[1]:
        return
    members = np.arange(1, 1 + len(owned))
    for matrix, *forms in zip(weight, *both(x, regularisation, biased=biased), strict=True):
        first, second = (form.surgeon(matrix, owned, members, len(owned) + 1) for form in forms)
        assert second.energy == pytest.approx(first.energy, rel=CLOSE)
        for number in data.draw(st.permutations(members.tolist())):
            losses = first.saliency(), second.saliency()
            assert losses[1][0] == 0
            np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6, atol=CLOSE * losses[0].max())
            first.remove(number)
            second.remove(number)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.sampled_from([CALIBRATED, SYNTHETIC, UNCERTAIN]), st.booleans())
def test_refitted_weights_are_the_same(sizes, regularisation, biased):
    weight, x, owned = problem(*sizes)
    if x.shape[2] >= SUPPORT * x.shape[1]:
        return
    kept = np.sort(owned[1:].ravel())
    for matrix, full, factored in zip(weight, *both(x, regularisation, biased=biased), strict=True):
        assert isinstance(full, Full)
        assert isinstance(factored, Factored)
        np.testing.assert_allclose(factored.refit(matrix, kept), full.refit(matrix, kept), rtol=1e-6, atol=1e-8)


def test_weights_are_looked_at_in_portions(monkeypatch):
    weight, x, owned = problem(1, 4, 6, 3, 5, 0)
    (factored,) = MomentColumns(x).hessians(1.0, 0.01)
    whole = factored.surgeon(weight[0], owned, np.arange(6), 6).saliency()
    monkeypatch.setattr(hessian, "WEIGHTS_PER_STEP", 2 * 4 * 3)
    np.testing.assert_allclose(factored.surgeon(weight[0], owned, np.arange(6), 6).saliency(), whole)


@pytest.mark.parametrize(
    "x", [np.zeros((1, 6, 3)), np.full((1, 6, 3), 2.0), np.full((1, 6, 1), 1e-200)], ids=["zeros", "constant", "tiny"]
)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_inputs_that_tell_nothing_are_no_reason_to_fail(x, mean):
    weight = np.random.default_rng(0).standard_normal((2, 6))
    for moments in (MomentSums.of(x), MomentColumns(x)):
        (form,) = moments.hessians(mean, 0.01)
        surgeon = form.surgeon(weight, np.arange(6).reshape(3, 2), np.arange(3), 3)
        for number in range(3):
            assert np.isfinite(surgeon.saliency()).all()
            surgeon.remove(number)
        assert np.isfinite(form.refit(weight, np.array([0, 3]))).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 1000))
def test_columns_become_sums_when_they_are_many(blocks, inputs, counts, seed):
    """Whatever the portions in which they come, and whether they are merged or gathered."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((blocks, inputs, count)) + 1 for count in counts]
    gathered = _MomentAccumulator(blocks, inputs)
    for part in parts:
        gathered.add(part.copy())
    x = np.concatenate(parts, axis=2)
    if not x.size:
        assert gathered.count == 0
        return
    merged = sum((MomentColumns(part) for part in parts[1:]), MomentColumns(parts[0]))
    for moments in (gathered.moments(), merged):
        assert isinstance(moments, MomentColumns) == are_few(x.shape[2], inputs) or len(parts) == 1
        assert moments.count == x.shape[2]
        np.testing.assert_allclose(moments.sums().gram, x @ x.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.total, x.sum(axis=2), rtol=1e-12, atol=1e-12)


def test_no_matrix_of_all_inputs_is_made_of_few_columns(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(statistics, "add_gram", refuse)
    gathered = _MomentAccumulator(1, 100_000)
    gathered.add(np.random.default_rng(0).standard_normal((1, 100_000, 3)))
    (form,) = gathered.moments().hessians(1.0, 0.01)
    weight = np.ones((2, 100_000))
    surgeon = form.surgeon(weight, np.arange(100_000).reshape(1000, 100), np.arange(1000), 1000)
    assert np.isfinite(surgeon.saliency()).all()
    surgeon.remove(*range(900))
    assert form.refit(weight, np.arange(90_000, 100_000)).shape == (2, 10_000)
