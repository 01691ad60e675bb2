"""Each criterion against a direct computation with plain loops, on a tiny net."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from nets.build import image, net
from onnx import numpy_helper

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import score_groups
from spa_onnx.scoring.context import ScoringContext

WEIGHTS_ONLY = ("bn-scale", "fpgm", "l1", "l2", "lamp", "linf", "random")
"""The criteria that look at nothing but weights; those that look at activations are tested elsewhere."""

plain = image("z = Relu(a)")
with_norm = image(
    "n = BatchNormalization(a, gamma, beta, mean, var) z = Relu(n)",
    "float[8] gamma, float[8] beta, float[8] mean, float[8] var",
)
vectors_only = net(
    "float[2,6] x",
    "float[6,1] w1, float[4] b1, float[4,1] w2",
    "a = MatMul(x, w1) b = Add(a, b1) y = MatMul(b, w2)",
)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(Model.of(plain()))


def only(found: Analysis) -> Group:
    (group,) = found.prunable()
    return group


def by_hand(model: Model, measure) -> dict[str, list[float]]:
    """`measure` of the weights that channel k is written with (w1[k]) and read with (w9[:, k])."""
    first, last = model.constant("w1").astype(float), model.constant("w9").astype(float)
    filters = [[float(v) for v in first[k].ravel()] for k in range(8)]
    readers = [[float(last[r, k, 0, 0]) for r in range(4)] for k in range(8)]
    return {"w1": measure(filters), "w9": measure(readers)}


def slice_by_slice(measure):
    return lambda rows: [measure(row) for row in rows]


def distances(rows):
    return [sum(sqrt(sum((a - b) ** 2 for a, b in zip(row, other, strict=True))) for other in rows) for row in rows]


def lamp(rows):
    energy = [sum(v * v for v in row) for row in rows]
    return [own / sum(e for e in energy if e >= own) for own in energy]


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("l1", slice_by_slice(lambda row: sum(abs(v) for v in row))),
        ("l2", slice_by_slice(lambda row: sqrt(sum(v * v for v in row)))),
        ("linf", slice_by_slice(lambda row: max(abs(v) for v in row))),
        ("fpgm", distances),
        ("lamp", lamp),
    ],
)
def test_a_weight_criterion_agrees_with_plain_loops(name, measure, analysis):
    scores = dict(CRITERIA[name](only(analysis), ScoringContext(analysis.model)))
    expected = by_hand(analysis.model, measure)
    assert set(scores) == {Axis("w1", 0), Axis("w9", 1)}
    for axis, found in scores.items():
        assert found.dtype == np.float64
        assert found == pytest.approx(expected[axis.tensor])


def test_biases_do_not_count_where_there_are_matrices(analysis):
    assert Axis("b1", 0) in only(analysis).owner
    for name in ("l1", "l2", "linf", "fpgm", "lamp"):
        assert "b1" not in {axis.tensor for axis, _ in CRITERIA[name](only(analysis), ScoringContext(analysis.model))}


def test_vectors_count_where_a_group_has_nothing_else():
    found = analyse(Model.of(vectors_only()))
    group = next(group for group in found.prunable() if any(axis.tensor == "b1" for axis in group.owner))
    scores = dict(CRITERIA["l1"](group, ScoringContext(found.model)))
    assert scores[Axis("b1", 0)] == pytest.approx(np.abs(found.model.constant("b1")))


def test_fpgm_finds_the_channel_at_the_geometric_median():
    proto = plain()
    points = np.asarray(
        [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [3, 3, 0], [-3, 3, 0], [0, -4, 0]], np.float32
    )
    model = Model.of(_with(proto, "w1", points.reshape(8, 3, 1, 1)))
    scores = dict(CRITERIA["fpgm"](only(analyse(model)), ScoringContext(model)))[Axis("w1", 0)]
    candidates = [sum(np.linalg.norm(p - q) for q in points) for p in points]
    assert int(np.argmin(scores)) == int(np.argmin(candidates)) == 0


def test_lamp_divides_by_the_survivors_so_that_the_largest_scores_one():
    model = Model.of(_with(plain(), "w1", np.arange(1, 25, dtype=np.float32).reshape(8, 3, 1, 1)))
    scores = dict(CRITERIA["lamp"](only(analyse(model)), ScoringContext(model)))[Axis("w1", 0)]
    assert scores[-1] == pytest.approx(1.0)
    assert (np.diff(scores) > 0).all()


def test_lamp_of_zeros_is_zero():
    model = Model.of(_with(plain(), "w1", np.zeros((8, 3, 1, 1), np.float32)))
    assert dict(CRITERIA["lamp"](only(analyse(model)), ScoringContext(model)))[Axis("w1", 0)].tolist() == [0.0] * 8


def test_bn_scale_is_the_absolute_scale_of_the_normalisation():
    model = Model.of(with_norm())
    ((axis, scores),) = CRITERIA["bn-scale"](only(analyse(model)), ScoringContext(model))
    assert axis == Axis("gamma", 0)
    assert scores == pytest.approx(np.abs(model.constant("gamma")))


def test_bn_scale_knows_nothing_where_there_is_no_normalisation(analysis):
    assert CRITERIA["bn-scale"](only(analysis), ScoringContext(analysis.model)) == []


def test_random_follows_the_seed_and_differs_between_groups_and_seeds(analysis):
    def drawn(group: Group, seed: int) -> list[float]:
        return score_groups([group], CRITERIA["random"], ScoringContext(analysis.model, seed), "sum", "none")[
            group.name
        ].tolist()

    group = only(analysis)
    other = Group("another", group.size, group.owner)
    assert drawn(group, 1) == drawn(group, 1)
    assert len({tuple(drawn(group, 1)), tuple(drawn(group, 2)), tuple(drawn(other, 1))}) == 3
    assert len(set(drawn(group, 1))) == group.size


def test_random_gives_one_number_per_channel_wherever_it_owns_several_indices():
    group = Group("g", 2, {Axis("t", 0): np.asarray([0, 1, -1, 0, 1])})
    ((_, scores),) = CRITERIA["random"](group, ScoringContext(None, 7))
    assert scores[0] == scores[3]
    assert scores[1] == scores[4]


@pytest.mark.parametrize("name", sorted(set(WEIGHTS_ONLY) - {"random"}))
def test_the_weakest_channel_is_the_first_to_go(name):
    """A channel whose weights are all next to nothing has the lowest score of any criterion that measures size."""
    proto = with_norm()
    for tensor, dim in (("w1", 0), ("gamma", 0), ("w9", 1)):
        array = np.array(Model.of(proto).constant(tensor))
        np.moveaxis(array, dim, 0)[5] *= 1e-4
        _with(proto, tensor, array)
    found = analyse(Model.of(proto))
    scores = score_groups(found.prunable(), CRITERIA[name], ScoringContext(found.model))
    assert int(np.argmin(scores[only(found).name])) == 5


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_scores_do_not_depend_on_the_order_of_channels(name):
    """Permuting the channels of a network permutes the scores; random numbers stay with the position."""
    model, order = Model.of(with_norm()), np.random.default_rng(3).permutation(8)
    proto = with_norm()
    for tensor in ("w1", "b1", "gamma", "beta", "mean", "var"):
        _with(proto, tensor, model.constant(tensor)[order])
    _with(proto, "w9", model.constant("w9")[:, order])
    first, second = (
        score_groups(f.prunable(), CRITERIA[name], ScoringContext(f.model))
        for f in (analyse(model), analyse(Model.of(proto)))
    )
    (before,), (after,) = first.values(), second.values()
    assert after == pytest.approx(before if name == "random" else before[order])


def test_the_rewritten_model_holds_the_slices_that_were_scored_highest(analysis):
    scores = score_groups(analysis.prunable(), CRITERIA["l1"], ScoringContext(analysis.model))
    (name, values), gone = next(iter(scores.items())), 3
    drop = np.sort(np.argsort(values)[:gone])
    rewritten = rewrite(analysis, Plan.removing({name: drop}, ""))
    kept = np.setdiff1d(np.arange(8), drop)
    assert (Model.of(rewritten.proto).constant("w1") == analysis.model.constant("w1")[kept]).all()


def _with(proto, name: str, array: np.ndarray):
    """The same model with another value for an initializer."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return proto
