"""From scores of indices to scores of channels: the tables of aggregations and normalisations."""

from __future__ import annotations

from math import log, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nets.build import image
from random_graphs import CI

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Group
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import AGGREGATIONS, NORMALISATIONS, score_groups
from spa_onnx.scoring.context import ScoringContext

WIDE, NARROW = Axis("wide", 0), Axis("narrow", 1)
GROUP = Group("g", 3, {WIDE: np.asarray([0, 0, 1, -1, 2, 1]), NARROW: np.asarray([2, 1, 0])})
"""Channel 0 owns wide 0 and 1 and narrow 2; channel 1 wide 2 and 5 and narrow 1; channel 2 wide 4 and narrow 0.

No channel owns wide 3.
"""
WIDE_SCORES, NARROW_SCORES = np.asarray([1.0, 2.0, 3.0, 100.0, 5.0, 7.0]), np.asarray([0.5, 11.0, 13.0])
OWNED = ([1.0, 2.0, 13.0], [3.0, 7.0, 11.0], [5.0, 0.5])


def scored(aggregate: str, normalise: str = "none") -> np.ndarray:
    def criterion(_group, _evidence):
        return [(WIDE, WIDE_SCORES), (NARROW, NARROW_SCORES)]

    return score_groups([GROUP], criterion, ScoringContext(None), aggregate, normalise)["g"]


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("sum", [sum(values) for values in OWNED]),
        ("mean", [sum(values) / len(values) for values in OWNED]),
        ("max", [max(values) for values in OWNED]),
        ("prod", [log(prod(values)) for values in OWNED]),
    ],
)
def test_aggregation_combines_all_that_a_channel_owns_and_nothing_else(aggregate, expected):
    assert scored(aggregate) == pytest.approx(expected)


def test_every_aggregation_and_normalisation_is_tested_here():
    assert set(AGGREGATIONS) == {"sum", "mean", "max", "prod"}
    assert set(NORMALISATIONS) == {"none", "sum", "mean", "max", "gaussian"}


def test_products_are_ordered_as_products_without_leaving_the_range_of_a_float():
    owner, values = np.repeat([0, 1], 500), np.concatenate([np.full(500, 1e-3), np.full(500, 2e-3)])
    first, second = AGGREGATIONS["prod"](owner, values, 2)
    assert np.isfinite(first)
    assert first < second
    assert np.isfinite(AGGREGATIONS["prod"](np.asarray([0, 1]), np.zeros(2), 2)).all()


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        ("none", [2.0, 6.0, 4.0]),
        ("sum", [2 / 12, 6 / 12, 4 / 12]),
        ("mean", [0.5, 1.5, 1.0]),
        ("max", [2 / 6, 1.0, 4 / 6]),
        ("gaussian", [-np.sqrt(1.5), np.sqrt(1.5), 0.0]),
    ],
)
def test_normalisation_divides_by_its_statistic(normalise, expected):
    assert NORMALISATIONS[normalise](np.asarray([2.0, 6.0, 4.0])) == pytest.approx(expected)


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(-1e6, 1e6)), st.sampled_from(list(NORMALISATIONS)))
@CI
def test_normalisation_never_changes_the_order_and_stays_finite(scores, name):
    result = NORMALISATIONS[name](scores)
    assert np.isfinite(result).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(result[order]) >= 0).all()


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_a_group_of_zeros_stays_zero(name):
    assert NORMALISATIONS[name](np.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("aggregate", list(AGGREGATIONS))
@pytest.mark.parametrize("normalise", list(NORMALISATIONS))
def test_every_combination_scores_every_group_of_a_network(aggregate, normalise):
    analysis = analyse(Model.of(image("z = Relu(a)")()))
    found = score_groups(analysis.prunable(), CRITERIA["l1"], ScoringContext(analysis.model), aggregate, normalise)
    assert set(found) == {group.name for group in analysis.prunable()}
    for group in analysis.prunable():
        assert found[group.name].shape == (group.size,)
        assert np.isfinite(found[group.name]).all()


def test_groups_of_which_a_criterion_knows_nothing_are_left_out():
    other = Group("h", 3, {NARROW: np.arange(3)})
    found = score_groups(
        [GROUP, other], lambda g, _: [(WIDE, WIDE_SCORES)] if WIDE in g.owner else [], ScoringContext(None)
    )
    assert set(found) == {"g"}
