"""Sensitivity: what a group's loss does to the outputs, measured by a trial cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibrated import CONV, calibrated_model, samples
from nets.build import net
from onnx import numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.linalg.obs import CALIBRATED
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.selection import trials
from spa_onnx.selection.sensitivity import SPREAD, sensitivities
from spa_onnx.selection.trials import distance
from spa_onnx.statistics import calibration

TWO_BRANCHES = net(
    "float[N,6] x",
    "float[6,16] w1, float[16,3] w2, float[6,16] v1, float[16,3] v2, float s",
    "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = MatMul(x, v1) e = Relu(d) f = MatMul(e, v2) g = Mul(f, s) "
    "y = Add(c, g)",
    "float[N,3] y",
)


def branches(factor):
    """Two equal branches, the second one's output times a factor."""
    proto = TWO_BRANCHES()
    stored = {t.name: t for t in proto.graph.initializer}
    for first, second in (("w1", "v1"), ("w2", "v2")):
        stored[second].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored[first]), second))
    stored["s"].CopyFrom(numpy_helper.from_array(np.float32(factor), "s"))
    return proto


def measured(proto, x):
    analysis, known = calibrated_model(proto, x)
    groups = list(analysis.prunable())
    context = ScoringContext(analysis.model, 0, known.layers, known.statistics)
    scores = score_groups(groups, CRITERIA["obspa"], context)
    groups = [group for group in groups if group.name in scores]
    found = sensitivities(analysis, groups, scores, known)
    return dict(zip([group.name for group in groups], found.tolist(), strict=True))


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_a_branch_counts_as_the_square_of_its_share_of_the_output(factor):
    found = measured(branches(factor), samples((6,), 200))
    assert len(found) == 2
    first, second = sorted(found.items())
    ratio = found[next(n for n in found if n.startswith("v"))] / found[next(n for n in found if n.startswith("w"))]
    assert ratio == pytest.approx(factor**2, rel=0.05), (first, second)


def test_a_branch_without_effect_is_no_free_ride():
    found = measured(branches(0.0), samples((6,), 200))
    assert min(found.values()) >= 1 / SPREAD
    assert max(found.values()) <= SPREAD


def test_doubtful_samples_make_no_group_less_sensitive_than_the_middle_one(monkeypatch):
    monkeypatch.setattr(calibration, "UNCERTAIN", CALIBRATED)  # so that both are refitted alike
    analysis, known = calibrated_model(branches(0.1), samples((6,), 200))
    scores = score_groups(
        analysis.prunable(), CRITERIA["obspa"], ScoringContext(analysis.model, 0, known.layers, known.statistics)
    )
    given, made = (
        sensitivities(analysis, analysis.prunable(), scores, replace(known, uncertain=m)) for m in (False, True)
    )
    assert given.min() < 1
    assert np.array_equal(made, np.maximum(given, 1))


def test_outputs_that_never_vary_say_nothing():
    proto = CONV()
    for tensor in proto.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), "w3"))
    assert set(measured(proto, samples((3, 6, 6), 40)).values()) == {1.0}


def test_distance_is_relative_and_skips_what_is_no_number():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((50, 4))
    assert distance([dense], [dense]) == 0
    assert distance([dense * 3 + 1], [dense * 3]) == pytest.approx(distance([dense + 1 / 3], [dense]))
    assert np.isnan(distance([np.ones((5, 2), bool)], [np.zeros((5, 2), bool)]))
    assert distance([dense, np.full((5, 1), np.nan)], [dense, np.full((5, 1), np.nan)]) == 0


def refuse(*_, **__):
    raise RefusedError("a kernel wants a constant")


@pytest.mark.parametrize("where", [(trials._Rest, "of"), (trials, "PartialExecution"), (trials._Rest, "outputs")])
def test_where_weights_cannot_be_inputs_all_groups_count_alike(monkeypatch, where):
    monkeypatch.setattr(*where, refuse)
    assert list(measured(branches(0.1), samples((6,), 200)).values()) == [1, 1]
