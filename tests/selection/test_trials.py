"""Trials: what lies behind the constants that change says as much as the whole model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from calibrated import calibrated_model, samples
from command import MODELS
from nets.build import net

from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import feed_size, open_session
from spa_onnx.pipeline import inspect
from spa_onnx.selection import trials
from spa_onnx.selection.trials import Trials
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.synthetic.working import working_inputs


@pytest.fixture(params=["digits_resnet", "digits_vit"])
def known(request):
    """The analysis of a model, and what is known about its inputs on synthetic samples, which take batch statistics."""
    proto = onnx.load(MODELS / f"{request.param}.onnx")
    analysis = inspect(proto)
    return analysis, calibrate(
        analysis.model, working_inputs(analysis.model, open_session(proto), {}), None, Sampling(24, 0)
    )


def cuts(analysis, many):
    """For each group the first channels, as many of each part."""
    return [{group.name: group.ranked(np.arange(group.size))[:many].ravel()} for group in analysis.prunable()]


def test_the_rest_of_the_model_says_what_the_whole_would(known, monkeypatch):
    """The order of trials does not matter.

    Along the graph, back to the start, again with other channels, or as if every node had to run.
    """
    analysis, calibration = known
    tried = [*cuts(analysis, 1), *cuts(analysis, 2)]
    found = [Trials(analysis, analysis.prunable(), calibration, 1).error(drop) for drop in tried]
    together = Trials(analysis, analysis.prunable(), calibration, 1)
    assert [together.error(drop) for drop in reversed(tried)] == pytest.approx(found[::-1], rel=1e-3)
    monkeypatch.setattr(trials.PartialExecution, "first_reader", lambda *_: 0)
    whole = Trials(analysis, analysis.prunable(), calibration, 1)
    assert [whole.error(drop) for drop in tried] == pytest.approx(found, rel=1e-3)
    assert min(found) > 0


def test_in_the_order_of_the_graph_no_part_of_the_dense_model_runs_twice(known, monkeypatch):
    analysis, calibration = known
    walks = []
    walk = trials.PartialExecution
    monkeypatch.setattr(trials, "PartialExecution", lambda *of: walks.append(1) or walk(*of))
    trial = Trials(analysis, analysis.prunable(), calibration, 1)
    for group in sorted(analysis.prunable(), key=trial.first_node):
        trial.error({group.name: group.ranked(np.arange(group.size))[0]})
    assert len(walks) == 1


def test_weights_as_they_are_change_nothing(known, monkeypatch):
    """The error is nothing then, though parts of a model round otherwise than the whole."""
    analysis, calibration = known
    trial = Trials(analysis, analysis.prunable(), calibration, 1)
    monkeypatch.setattr(trials, "zeroed", lambda model, name, *_: model.constant(name))
    assert [trial.error(drop, refits=False) for drop in cuts(analysis, 1)] == [0.0] * len(analysis.prunable())


def test_samples_follow_what_all_trials_cost(known, monkeypatch):
    analysis, calibration = known
    cost = trials.macs(analysis.model)

    def count(number):
        feeds = Trials(analysis, analysis.prunable(), calibration, number)._feeds
        return sum(map(feed_size, feeds))

    monkeypatch.setattr(trials, "MACS_OF_TRIALS", 10 * cost)
    assert [count(1), count(2), count(5), count(100)] == [10, 5, 2, 1]
    monkeypatch.setattr(trials, "MACS_OF_TRIALS", 10**9 * cost)
    assert count(1) == 24
    monkeypatch.setattr(trials, "SAMPLES_PER_TRIAL", 7)
    assert count(1) == 7


def test_inputs_that_are_given_count_too():
    proto = onnx.load(MODELS / "digits_resnet.onnx")
    analysis = inspect(proto)
    given = read_samples({"image": samples((1, 8, 8), 20)}, proto)
    calibration = calibrate(
        analysis.model, working_inputs(analysis.model, open_session(proto), {}), given, Sampling(20, 0)
    )
    assert all(Trials(analysis, analysis.prunable(), calibration, 1).error(drop) > 0 for drop in cuts(analysis, 1))


SEQUENCE = net(
    "float[N,6] x",
    "float[6,8] w1, float[8,8] w2, float[8,3] w3, int64 first = {0}",
    "a = MatMul(x, w1) s = SplitToSequence<axis=0>(x) b = Relu(a) c = MatMul(b, w2) d = Relu(c) "
    "e = SequenceAt(s, first) "
    "f = ReduceSum<keepdims=0>(e) g = Add(d, f) y = MatMul(g, w3)",
    "float[N,3] y",
)
"""Between its products lies what cannot be fed."""


JOINED = "a = Concat<axis=1>(x, x, x, x, x, x, x, x)"
LARGER = 'a = Resize<mode="nearest">(x, none, grown)'
CAST = "d = Cast<to=11>(x) e = Concat<axis=1>(d, d, d, d) f = Cast<to=1>(e) a = Concat<axis=1>(f, f)"


@pytest.mark.parametrize(
    ("head", "into"), [(JOINED, 8), (LARGER, 1), (CAST, 8)], ids=["joined", "larger", "joined twice"]
)
def test_what_is_held_in_front_of_the_first_weights_counts_towards_the_memory(head, into, monkeypatch):
    """No weight that loses inputs reads it."""
    proto = net(
        "float[N,1,20,20] x",
        f"float[8] none, float[4] grown = {{1, 1, 3, 3}}, float[6,{into},1,1] w1, float[4,6,1,1] w2",
        f"{head} b = Conv<strides=[5,5]>(a, w1) c = Relu(b) y = Conv(c, w2)",
    )()
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "none"))
    if head == LARGER:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.float32), "none"))
    memory = 4 * 10**5
    analysis = inspect(proto)
    inputs = working_inputs(analysis.model, open_session(proto), {})
    axes = {axis for group in analysis.prunable() for axis in group.owner}
    calibration = calibrate(analysis.model, inputs, None, Sampling(200, 0), axes)
    held = []

    def until(execution, index, known=trials.PartialExecution.until):
        known(execution, index)
        held.append(sum(array.nbytes for feed in execution.batches for array in feed.values()))

    monkeypatch.setattr(trials.PartialExecution, "until", until)
    trial = Trials(analysis, analysis.prunable(), replace(calibration, memory=memory), 1)
    assert [trial.error(drop) > 0 for drop in cuts(analysis, 1)] == [True]
    assert memory / 8 < max(held) <= memory


def trials_of(proto, x):
    analysis, calibration = calibrated_model(proto, x, len(x))
    return analysis, Trials(analysis, analysis.prunable(), calibration, 1)


def test_where_a_cut_cannot_be_fed_the_whole_model_runs():
    analysis, trial = trials_of(SEQUENCE(), samples((6,), 20))
    assert len(analysis.prunable()) == 2
    assert all(trial.error(drop) > 0 for drop in cuts(analysis, 2))


def test_what_onnxruntime_refuses_is_not_tried_again(monkeypatch):
    session = []

    def refuse(*_, **__):
        session.append(1)
        raise RefusedError("a kernel wants a constant")

    analysis, trial = trials_of(SEQUENCE(), samples((6,), 20))
    monkeypatch.setattr(trials._Rest, "of", refuse)
    drop = cuts(analysis, 2)[0]
    assert all(np.isnan(trial.error(drop)) for _ in range(5))
    assert len(session) == 2


CLASSIFIER = "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2)"
CLASSIFIER_WEIGHTS = "float[6,8] w1, float[8,4] w2, int64[2] s = {-1, 4}, float scale = {0.004}, uint8 zero = {0}"
CHOICES = [
    ("y = Softmax(c)", "float[N,4] y"),
    ("p = Softmax(c) q = QuantizeLinear(p, scale, zero) y = Reshape(q, s)", "uint8[N,4] y"),
    ("y = ArgMax<axis=1>(c)", "int64[N,1] y"),
    ("p = Softmax(c) y = Identity(p) z = ArgMax<axis=1>(p)", "float[N,4] y, int64[N,1] z"),
]


@pytest.mark.parametrize(("choice", "outputs"), CHOICES)
def test_probabilities_and_classes_count_as_their_logits(choice, outputs):
    x = samples((6,), 40)
    whole = net("float[N,6] x", CLASSIFIER_WEIGHTS, f"{CLASSIFIER} {choice}", outputs)()
    bare = net("float[N,6] x", CLASSIFIER_WEIGHTS, f"{CLASSIFIER} y = Identity(c)", "float[N,4] y")()
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(whole.graph.initializer)
    errors = []
    for proto in (whole, bare):
        analysis, trial = trials_of(proto, x)
        errors.append([trial.error(drop) for drop in cuts(analysis, 2)])
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert min(errors[0]) > 0
