"""Perturbation: masks, what they cost the model, and the regression on them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from calibrated import calibrated_model, samples
from command import MODELS
from nets.build import net
from test_activations import CONV, ROWS, inputs, observed

import spa_onnx
from spa_onnx.analysis.groups import Group
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.perturbation import MASKED_SHARE, MASKS_PER_GROUP, _masks, prior_scores, regression_scores
from spa_onnx.selection import propose as choice
from spa_onnx.selection import trials
from spa_onnx.selection.trials import Trials, distance


@pytest.mark.parametrize("build", [CONV, ROWS], ids=["convolutions", "rows"])
def test_the_prior_is_the_limit_of_a_regression_on_random_masks(build):
    group, context, tensors = observed(build)
    rng = np.random.default_rng(1)
    gone = (rng.random((8000, group.size)) < MASKED_SHARE).astype(float)
    loss = np.zeros(len(gone))
    for _, w, x in inputs(context, tensors):
        whole = np.einsum("rck,ckn->rn", w, x)
        parts = np.einsum("rck,ckn->crn", w, x).reshape(group.size, -1)
        loss += np.square(gone @ parts).sum(axis=1) / np.square(whole).sum()
    design = np.column_stack([gone, np.ones(len(gone))])
    fitted = np.linalg.lstsq(design, loss, rcond=None)[0][:-1]
    found = prior_scores(group, context)
    assert found.shape == (group.size,)
    np.testing.assert_allclose(found, fitted, atol=0.15 * np.abs(fitted).max())
    assert np.corrcoef(found, fitted)[0, 1] > 0.99


@pytest.mark.parametrize(("size", "parts"), [(12, 1), (3, 1), (2, 1), (24, 4), (7, 1)])
def test_masks_take_a_share_of_every_part_and_each_channel_once_before_any_twice(size, parts):
    group = Group("g", size, {}, parts=parts)
    step = max(1, round(MASKED_SHARE * group.steps))
    taken = list(islice(_masks(group, np.random.default_rng(0)), 2 * (group.steps // step)))
    for masks in (taken[: len(taken) // 2], taken[len(taken) // 2 :]):
        channels = np.concatenate(masks)
        assert len(set(channels.tolist())) == len(channels) > size - step * parts
    for mask in taken:
        assert np.bincount(mask // group.steps, minlength=parts).tolist() == [step] * parts


def test_costs_that_add_up_are_found():
    rng = np.random.default_rng(0)
    gone = (rng.random((200, 12)) < MASKED_SHARE).astype(float)
    prior, true = rng.uniform(0.5, 1.5, (2, 12))
    np.testing.assert_allclose(regression_scores(gone, gone @ true, prior), true, rtol=0.05)


def test_a_prior_that_says_it_all_is_only_scaled():
    rng = np.random.default_rng(1)
    gone, prior = (rng.random((MASKS_PER_GROUP, 30)) < MASKED_SHARE).astype(float), rng.uniform(0, 1, 30)
    np.testing.assert_allclose(regression_scores(gone, 3 * gone @ prior, prior), 3 * prior, rtol=1e-9)


def test_few_masks_are_better_than_the_prior_alone():
    rng = np.random.default_rng(2)
    prior = rng.uniform(0.5, 1.5, 100)
    true = prior * rng.uniform(0.2, 1.8, 100)
    gone, fresh = (rng.random((2, MASKS_PER_GROUP, 100)) < MASKED_SHARE).astype(float)
    found = regression_scores(gone, gone @ true, prior)
    scale = (gone @ true) @ (gone @ prior) / np.square(gone @ prior).sum()
    assert np.square(fresh @ (found - true)).mean() < 0.7 * np.square(fresh @ (scale * prior - true)).mean()


def test_a_channel_that_nothing_reads_costs_nothing():
    rng = np.random.default_rng(3)
    gone, prior = (rng.random((MASKS_PER_GROUP, 10)) < MASKED_SHARE).astype(float), rng.uniform(0, 1, 10)
    prior[4] = 0
    assert regression_scores(gone, rng.uniform(0, 1, MASKS_PER_GROUP), prior)[4] == 0


@pytest.mark.parametrize(("build", "shape"), [(CONV, (3, 6, 6)), (ROWS, (6,))])
@pytest.mark.parametrize("refits", [False, True])
def test_a_trial_is_what_the_pruned_model_would_do(build, shape, refits):
    proto, x = build(), samples(shape, 40)
    analysis, known_ = calibrated_model(proto, x, 40)
    group = analysis.prunable()[0]
    drop = {group.name: np.arange(3)}
    dense, cut = (
        open_session(model).run({"x": x}) for model in (proto, rewrite(analysis, Plan.removing(drop, "")).proto)
    )
    direct = distance([y.reshape(len(y), -1) for y in cut], [y.reshape(len(y), -1) for y in dense])
    error = Trials(analysis, [group], known_, 1).error(drop, refits=refits)
    assert error == pytest.approx(direct, rel=1e-3) if not refits else error < direct


def test_the_loss_of_the_model_decides():
    """Both halves of the channels look alike to the product that reads them.

    What the product makes of the first half is thrown away.
    """
    proto = net(
        "float[N,6] x",
        "float[6,16] w1, float[16,8] w2, float[8,3] w3",
        "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) y = MatMul(c, w3)",
        "float[N,3] y",
    )()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    rng = np.random.default_rng(0)
    second, third = np.zeros((16, 8), np.float32), np.zeros((8, 3), np.float32)
    second[:8, :4], second[8:, 4:], third[4:] = (
        rng.standard_normal((8, 4)),
        rng.standard_normal((8, 4)),
        rng.standard_normal((4, 3)),
    )
    stored["w2"].raw_data, stored["w3"].raw_data = second.tobytes(), third.tobytes()
    analysis, known_ = calibrated_model(proto, samples((6,), 200), 200)
    group = next(group for group in analysis.prunable() if group.size == 16)
    trial = choice._trial(analysis, [group], known_)
    context = ScoringContext(analysis.model, 0, known_.layers, known_.statistics, trial=trial)
    score, prior = CRITERIA["perturbation"](group, context), prior_scores(group, context)
    assert score[:8].sum() / score[8:].sum() < 0.6 * prior[:8].sum() / prior[8:].sum()


def test_where_weights_cannot_be_inputs_the_prior_is_the_score(monkeypatch):
    def refuse(*_):
        raise RefusedError("a kernel wants a constant")

    analysis, known_ = calibrated_model(ROWS(), samples((6,), 40), 40)
    (group,) = analysis.prunable()
    context = ScoringContext(
        analysis.model, 0, known_.layers, known_.statistics, trial=choice._trial(analysis, [group], known_)
    )
    assert not np.array_equal(CRITERIA["perturbation"](group, context), prior_scores(group, context))
    monkeypatch.setattr(trials._Rest, "outputs", refuse)
    assert np.array_equal(CRITERIA["perturbation"](group, context), prior_scores(group, context))


def test_the_same_seed_gives_the_same_masks():
    plans = [
        spa_onnx.prune(MODELS / "digits_resnet.onnx", 0.3, criterion="perturbation", samples=16, seed=seed).plan
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1]
    assert plans[0]["groups"] != plans[2]["groups"]
