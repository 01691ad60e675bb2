"""What repair in the order of the graph fits: the same from few columns as from their sums, and as numpy finds it."""

from __future__ import annotations

import numpy as np
import pytest
from command import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import spa_onnx
from spa_onnx.linalg.obs import ridge_fit, ridge_fit_by_columns, squared_error
from spa_onnx.repair import regression
from spa_onnx.repair.regression import RegressionCollector, RegressionColumns, RegressionSums, regression_data
from spa_onnx.statistics import moments

SIZES = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(2, 12), st.integers(1, 9), st.integers(0, 2**32 - 1)
)
"""blocks, rows, inputs, columns, seed."""


def problem(blocks, rows, inputs, columns, seed):
    """(W, X, Z, what is lost)."""
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, blocks, inputs, columns))
    x += rng.uniform(-2, 2, (blocks, inputs, 1))
    return rng.standard_normal((blocks, rows, inputs)), x, x + 0.1 * noise, rng.standard_normal((blocks, rows, columns))


@settings(max_examples=50, deadline=None)
@given(SIZES, st.booleans(), st.booleans(), st.sampled_from([0.01, 1.0]))
def test_fits_are_the_same(sizes, with_lost, centred, damping):
    weight, x, z, lost = problem(*sizes)
    y = weight @ x + (lost if with_lost else 0)
    columns = RegressionColumns(y, z)
    assert (
        regression_data(weight, x, z, lost if with_lost else None).sums().count == columns.count == columns.sums().count
    )
    kept = [np.arange(block % 2, z.shape[1], 2) for block in range(len(z))]
    start = [w[:, left] for w, left in zip(weight, kept, strict=True)]
    other = [np.cos(w) for w in start]
    some = [
        pairs.fits(kept, centred=centred)
        for pairs in (regression_data(weight, x, z, lost if with_lost else None), columns, columns.sums())
    ]
    for first, second, third, near, far in zip(*some, start, other, strict=True):
        best = first.fitted(near, damping)
        for fit in (second, third):
            np.testing.assert_allclose(fit.fitted(near, damping), best, rtol=1e-6, atol=1e-8)
            assert fit.error(near) - fit.error(far) == pytest.approx(
                first.error(near) - first.error(far), rel=1e-6, abs=1e-8
            )
    np.testing.assert_allclose(columns.residual(weight), columns.sums().residual(weight), atol=1e-9)
    np.testing.assert_allclose(columns.residual(weight), (y - weight @ z).sum(axis=2), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 6), st.floats(1e-3, 10), st.integers(0, 1000))
def test_steering_is_least_squares_with_a_pull(rows, inputs, columns, damping, seed):
    rng = np.random.default_rng(seed)
    z, y, start = (rng.standard_normal(shape) for shape in ((inputs, columns), (rows, columns), (rows, inputs)))
    strength = damping * np.square(z).sum() / inputs
    stacked = np.concatenate([z.T, np.sqrt(strength) * np.eye(inputs)])
    best = np.linalg.lstsq(stacked, np.concatenate([y.T, np.sqrt(strength) * start.T]), rcond=None)[0].T
    np.testing.assert_allclose(ridge_fit_by_columns(y, z, start, damping), best, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        ridge_fit(y @ z.T / columns, z @ z.T / columns, start, damping), best, rtol=1e-6, atol=1e-8
    )
    np.testing.assert_array_equal(ridge_fit_by_columns(y, np.zeros_like(z), start, damping), start)
    (fit,) = RegressionColumns(y[None], z[None]).fits([np.arange(inputs)], centred=False)
    assert fit.error(best) == pytest.approx(squared_error(best, y @ z.T / columns, z @ z.T / columns))


def test_columns_are_merged_while_they_are_few():
    weight, x, z, _ = problem(2, 3, 40, 8, 0)
    first, second = (regression_data(weight, x[:, :, some], z[:, :, some]) for some in (slice(5), slice(5, None)))
    assert isinstance(first + second, RegressionColumns)
    assert isinstance(first + second + second, RegressionSums)
    np.testing.assert_allclose(
        (first + second + second).target_total, (first.sums() + second.sums() + second.sums()).target_total
    )


@settings(max_examples=50, deadline=None)
@given(SIZES, st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_pieces_of_any_size_show_what_all_columns_show(sizes, cuts, with_lost):
    weight, x, z, lost = problem(*sizes)
    parts = (x, z, lost) if with_lost else (x, z)
    gathered = RegressionCollector(weight)
    for piece in zip(*(np.split(part, sorted(cuts), axis=2) for part in parts), strict=True):
        gathered.add(*piece)
    found, whole = gathered.data().sums(), regression_data(weight, *parts).sums()
    for name in ("cross", "gram", "target_total", "input_total", "count"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert RegressionCollector(weight).data() is None


def test_as_many_columns_as_there_are_inputs_are_added_up_at_a_time(monkeypatch):
    """Fewer would cost a product for every batch, more would hold all of them."""
    widths = []
    monkeypatch.setattr(
        regression, "regression_data", lambda *args: widths.append(args[1].shape[2]) or regression_data(*args)
    )
    weight, x, z, _ = problem(1, 2, 10, 30, 0)
    gathered = RegressionCollector(weight)
    for start in range(0, 30, 3):
        gathered.add(x[:, :, start : start + 3], z[:, :, start : start + 3])
    assert gathered.data().count == 30
    assert widths == [12, 12, 6]


def test_a_network_is_pruned_alike_whichever_form_is_taken(monkeypatch):
    """So few samples that the products behind the last pooling have few columns."""
    data = np.load(MODELS / "digits_resnet.npz")
    weights = []
    for few in (4, 10**9):
        monkeypatch.setattr(moments, "MIN_INPUTS_PER_COLUMN", few)
        cut = spa_onnx.prune(
            MODELS / "digits_resnet.onnx", 0.4, data={"image": data["x"][:12]}, samples=12, check=False
        )
        weights.append({tensor.name: numpy_helper.to_array(tensor) for tensor in cut.model.graph.initializer})
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        np.testing.assert_allclose(array, weights[1][name], rtol=1e-3, atol=1e-5)
