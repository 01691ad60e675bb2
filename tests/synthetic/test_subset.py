"""Of many samples those are taken whose outputs say most, and none that repeats another.

A direct computation finds the same ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import net

from spa_onnx.errors import RefusedError
from spa_onnx.model.model import Model
from spa_onnx.synthetic.generate import generate_samples
from spa_onnx.synthetic.subset import EQUAL_SHARE, d_optimal_rows, d_optimal_subset
from spa_onnx.synthetic.working import WorkingInputs

LINEAR = Model.of(net("float[N,3] x", "float[3,4] w", "y = MatMul(x, w)", "float[N,4] y")())
FIXED = Model.of(net("float[2,3] x", "float[3,4] w", "y = MatMul(x, w)", "float[2,4] y")())
LOGARITHM = Model.of(net("float[N,3] x", "float[3,4] w", "z = MatMul(x, w) y = Log(x)", "float[N,3] y")())
APART = Model.of(net("float[N,3] x", "int64[1] flat = {-1}", "y = Reshape(x, flat)", "float[M] y")())
PICTURES = Model.of(net("float[N,1,8,8] x", "float[4,1,8,8] w", "y = Conv(x, w)", "float[N,4,1,1] y")())


def left_over(outputs, chosen):
    """The variance of each row that a ridge regression on the chosen rows leaves."""
    noise = EQUAL_SHARE * np.square(outputs).sum() / len(outputs)
    known = outputs[chosen]
    inner = outputs @ known.T
    return np.square(outputs).sum(axis=1) - np.einsum(
        "ij,jk,ik->i", inner, np.linalg.inv(known @ known.T + noise * np.eye(len(known))), inner
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_each_row_is_the_one_that_those_before_predict_worst(rows, entries, seed):
    outputs = np.random.default_rng(seed).standard_normal((rows, entries))
    order = d_optimal_rows(outputs, rows)
    assert sorted(order) == [*range(rows)]
    for step, row in enumerate(order):
        variance = left_over(outputs, order[:step])
        variance[order[:step]] = -np.inf
        assert variance[row] == pytest.approx(variance.max())


def test_what_repeats_another_comes_last():
    outputs = np.array([[1.0, 0], [1, 0], [0, 2], [0, 2], [-3, 0]])
    assert set(d_optimal_rows(outputs, 2)) == {4, 2} or set(d_optimal_rows(outputs, 2)) == {4, 3}


def test_where_outputs_say_nothing_any_will_do():
    assert len(set(d_optimal_rows(np.zeros((5, 0)), 3))) == 3
    assert len(set(d_optimal_rows(np.zeros((5, 2)), 3))) == 3


def drawn(rows, feeds=4):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((rows, 3)).astype(np.float32)} for _ in range(feeds)]


def test_samples_keep_their_order_and_the_size_of_their_batches():
    given_feeds = drawn(5)
    kept = d_optimal_subset(LINEAR, given_feeds, 2, 0)
    assert [feed["x"].shape for feed in kept] == [(5, 3), (5, 3)]
    everything = [sample.tobytes() for feed in given_feeds for sample in feed["x"]]
    places = [everything.index(sample.tobytes()) for feed in kept for sample in feed["x"]]
    assert places == sorted(set(places))
    assert places != [*range(10)]


def test_a_loud_sample_among_equal_ones_is_taken():
    feeds = [{"x": np.ones((3, 3), np.float32)} for _ in range(3)]
    feeds[2]["x"][1] *= -5
    (kept,) = d_optimal_subset(LINEAR, feeds, 1, 0)
    assert kept["x"].min() == -5


def test_feeds_of_a_fixed_batch_are_taken_whole():
    feeds = drawn(2)
    kept = d_optimal_subset(FIXED, feeds, 3, 0)
    assert len(kept) == 3
    assert all(any(np.array_equal(one["x"], other["x"]) for other in feeds) for one in kept)
    assert not any(np.shares_memory(one["x"], other["x"]) for one in kept for other in feeds)  # all others can be freed


def test_a_sample_whose_output_is_no_number_is_not_preferred():
    feeds = [{"x": np.full((2, 3), 2.0, np.float32)} for _ in range(2)]
    feeds[0]["x"][0] = -1.0
    feeds[1]["x"][1] = 100.0
    (kept,) = d_optimal_subset(LOGARITHM, feeds, 1, 0)
    assert (kept["x"] > 0).all()
    assert kept["x"].max() == 100.0


def test_outputs_that_do_not_tell_samples_apart_leave_as_many():
    assert [len(feed["x"]) for feed in d_optimal_subset(APART, drawn(5), 2, 0)] == [5, 5]


def test_of_large_outputs_the_same_numbers_of_each_sample_are_looked_at():
    """Samples that are equal stay so, and what is held does not grow with the outputs."""
    wide = Model.of(net("float[N,3] x", "float[3,5000] w", "y = MatMul(x, w)", "float[N,5000] y")())
    feeds = [{"x": np.ones((4, 3), np.float32)} for _ in range(2)]
    feeds[0]["x"][2] = 3.0
    feeds[1]["x"][1, 0] = -2.0
    kept = np.concatenate([feed["x"] for feed in d_optimal_subset(wide, feeds, 1, 0)])
    assert {tuple(row) for row in kept} == {(1, 1, 1), (3, 3, 3), (-2, 1, 1)}


def test_a_model_that_does_not_run_is_an_error():
    with pytest.raises(RefusedError, match="onnxruntime cannot run"):
        d_optimal_subset(LINEAR, [{"x": np.zeros((2, 5), np.float32)}], 1, 0)


@pytest.mark.parametrize(("samples", "batch", "some"), [(16, 8, 32), (5, 2, 15), (16, 8, 17), (16, 8, 0), (3, 8, 6)])
def test_made_up_samples_are_those_that_tell_most_of_more(samples, batch, some):
    def make(seed, more):
        return generate_samples(PICTURES, WorkingInputs({"N": 1}), samples, batch, seed, drawn=more).feeds

    plain, chosen, again = make(1, 0), make(1, some), make(1, some)
    assert [len(feed["x"]) for feed in chosen] == [len(feed["x"]) for feed in plain]
    assert all((a["x"] == b["x"]).all() for a, b in zip(chosen, again, strict=True))

    def spread(feeds):
        weight = PICTURES.constant("w").reshape(4, -1).astype(np.float64)
        y = np.concatenate([feed["x"].reshape(len(feed["x"]), -1) for feed in feeds]) @ weight.T
        return np.linalg.slogdet(np.cov(y.T) + 1e-3 * np.eye(4))[1]

    assert spread(chosen) >= spread(plain)
