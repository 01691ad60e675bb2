"""Optimal Brain Surgeon against direct least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import image, net

from spa_onnx.analysis import analyse
from spa_onnx.layers import linear_layers
from spa_onnx.linalg.obs import Surgeon, damped, refit, saliency
from spa_onnx.model.model import Model
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.obs import column_blocks, obspa, surgeons
from spa_onnx.statistics.collect import collect

CLOSE = 1e-8

problems = st.tuples(st.integers(1, 5), st.integers(2, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
"""rows of W, blocks of inputs, inputs per block, seed."""


def problem(rows, blocks, size, seed):
    """(W, X, blocks): the inputs of a block are scattered."""
    rng = np.random.default_rng(seed)
    inputs = blocks * size
    mixing = np.eye(inputs) + 0.3 * rng.standard_normal((inputs, inputs)) / inputs**0.5
    x = mixing @ rng.standard_normal((inputs, 6 * inputs + 20))
    return rng.standard_normal((rows, inputs)), x, rng.permutation(inputs).reshape(blocks, size)


def best(weight, hessian, kept):
    """Return (least 1/2 tr((W - W') H (W - W')'), the W' that uses the kept inputs only).

    Solved without the inverse.
    """
    root = np.linalg.cholesky(hessian)
    solution = np.linalg.lstsq(root[kept].T, (weight @ root).T, rcond=None)[0].T
    full = np.zeros_like(weight)
    full[:, kept] = solution
    return 0.5 * np.square((weight - full) @ root).sum(), full


def without(inputs, gone):
    return np.setdiff1d(np.arange(inputs), gone)


@settings(max_examples=100, deadline=None)
@given(problems)
def test_saliency_is_the_increase_of_the_squared_error(shape):
    weight, x, blocks = problem(*shape)
    hessian = damped(x @ x.T / x.shape[1])
    expected = [best(weight, hessian, without(len(x), gone))[0] for gone in blocks]
    np.testing.assert_allclose(saliency(weight, np.linalg.inv(hessian), blocks), expected, rtol=CLOSE)


@settings(max_examples=100, deadline=None)
@given(problems)
def test_refit_is_least_squares_on_the_kept_columns(shape):
    weight, x, blocks = problem(*shape)
    kept = without(len(x), blocks[0])
    expected = np.linalg.lstsq(x[kept].T, (weight @ x).T, rcond=None)[0].T
    np.testing.assert_allclose(refit(weight, x @ x.T, kept), expected, rtol=CLOSE, atol=CLOSE)


@settings(max_examples=60, deadline=None)
@given(problems, st.data())
def test_a_surgeon_knows_what_is_left(shape, data):
    weight, x, blocks = problem(*shape)
    gram = x @ x.T / x.shape[1]
    surgeon = Surgeon(weight, gram, blocks)
    order = data.draw(st.permutations(range(len(blocks))))
    removed = order[: data.draw(st.integers(1, len(blocks) - 1))]
    for number in removed:
        surgeon.remove(number)
    gone = blocks[removed].ravel()
    kept = without(len(x), gone)
    base, refitted = best(weight, damped(gram), kept)
    left = [number for number in range(len(blocks)) if number not in removed]
    found = surgeon.saliency()
    assert np.isfinite(found).all()
    places = np.searchsorted(kept, blocks[left])
    scratch = saliency(refitted[:, kept], np.linalg.inv(damped(gram)[np.ix_(kept, kept)]), places)
    np.testing.assert_allclose(found[left], scratch, rtol=CLOSE)
    in_all = [best(weight, damped(gram), without(len(x), [*gone, *blocks[number]]))[0] - base for number in left]
    np.testing.assert_allclose(found[left], in_all, rtol=1e-6, atol=CLOSE)


def test_energy_is_that_of_the_output():
    weight, x, blocks = problem(3, 4, 2, 0)
    surgeon = Surgeon(weight, x @ x.T / x.shape[1], blocks)
    assert surgeon.energy == pytest.approx(0.5 * np.square(weight @ x).sum() / x.shape[1])


def test_a_copy_costs_nothing_until_its_original_is_gone():
    weight, x, blocks = problem(3, 6, 1, 0)
    x[blocks[1]] = x[blocks[0]]
    surgeon = Surgeon(weight, x @ x.T / x.shape[1], blocks)
    before = surgeon.saliency()[1]
    surgeon.remove(0)
    assert before < 0.05 * surgeon.saliency()[1]


GRAMS = {
    "zeros": np.zeros((6, 6)),
    "rank one": np.ones((6, 6)),
    "one dead input": np.diag([1.0, 2.0, 0.0, 1.0, 3.0, 1.0]),
    "badly scaled": np.diag(10.0 ** np.array([-12, -6, 0, 3, 6, 12])),
    "huge": 1e30 * np.eye(6),
    "tiny": 1e-30 * np.eye(6),
    "subnormal": 1e-320 * np.eye(6),
    "only one alive": np.diag([0.0, 0, 0, 1e-20, 0, 0]),
}


@pytest.mark.parametrize("gram", GRAMS.values(), ids=GRAMS)
@pytest.mark.parametrize("size", [1, 2])
def test_damping_makes_any_gram_matrix_solvable(gram, size):
    blocks = np.arange(6).reshape(-1, size)
    weight = np.random.default_rng(0).standard_normal((2, 6))
    assert np.linalg.eigvalsh(damped(gram)).min() > 0
    assert np.isfinite(refit(weight, damped(gram), np.array([0, 2, 5]))).all()
    surgeon = Surgeon(weight, gram, blocks)
    for number in range(len(blocks)):
        losses = surgeon.saliency()
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()
        surgeon.remove(number)


def context(model, samples=8):
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((samples, *model.shape(name)[1:])).astype(np.float32) for name in model.inputs}
    found = tuple(linear_layers(model))
    return ScoringContext(model, 0, found, collect(model, model.proto, found, [feed], 0))


def only(model):
    (group,) = analyse(model).prunable()
    return group


wide = image("z = Relu(a)", wide=40, into=40, batch=8)
vectors = net(
    "float[8,6] x",
    "float[6,10] w1, float[10] b1, float[10,3] w2",
    "a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) y = MatMul(c, w2)",
)


@pytest.mark.parametrize("build", [wide, vectors])
def test_scores_rise_in_greedy_order(build):
    model = Model.of(build())
    group, known = only(model), context(model)
    scores = obspa(group, known)
    assert scores.shape == (group.size,)
    assert np.isfinite(scores).all()
    order = scores.argsort()
    assert (np.diff(scores[order]) > 0).all()
    (surgeon,) = surgeons(group, known)
    assert order[0] == surgeon.saliency().argmin()
    chunk = max(1, group.size // 16)
    for number in order[:chunk]:
        surgeon.remove(int(number))
    left = order[chunk:]
    assert left[0] == left[surgeon.saliency()[left].argmin()]


def test_the_first_score_is_the_relative_loss():
    model = Model.of(vectors())
    group, known = only(model), context(model)
    (surgeon,) = surgeons(group, known)
    assert obspa(group, known).min() == pytest.approx(surgeon.saliency().min() / surgeon.energy)


def test_nothing_is_known_without_a_consumer():
    model = Model.of(wide())
    group = only(model)
    assert obspa(group, ScoringContext(model)).shape == (0,)
    known = context(model)
    assert obspa(group, ScoringContext(model, 0, (), known.statistics)).shape == (0,)
    assert obspa(group, ScoringContext(model, 0, known.layers, {})).shape == (0,)


def test_a_channel_owns_the_whole_window_of_its_inputs():
    model = Model.of(image("z = Relu(a) q = Conv<pads=[1,1,1,1]>(z, w5)", "float[4,8,3,3] w5", outputs="y, q")())
    found = {c.weight: c for c in linear_layers(model)}
    group = next(g for g in analyse(model).prunable() if found["w5"].axis in g.owner)
    for name, window in (("w5", 9), ("w9", 1)):
        ((blocks, members),) = column_blocks(found[name], group)
        np.testing.assert_array_equal(blocks, np.arange(8 * window).reshape(8, window))
        np.testing.assert_array_equal(members, np.arange(8))
    assert not list(column_blocks(found["w1"], group))
