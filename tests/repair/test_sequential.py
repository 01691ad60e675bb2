"""Repair in the order of the graph: later products make up for what earlier ones lost; sums are exact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from calibrated import CONV, MLP, calibrated_model, outputs, samples
from command import MODELS
from nets.build import net

import spa_onnx
from spa_onnx.execution.partial import PartialExecution
from spa_onnx.execution.session import open_session
from spa_onnx.layers import linear_layers
from spa_onnx.linalg.obs import CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation, ridge_fit, squared_error
from spa_onnx.model.model import Model
from spa_onnx.operators.macs import macs
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.removal import Removal
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.repair import regression as pairs
from spa_onnx.repair import repair as refit
from spa_onnx.repair import sequential
from spa_onnx.repair.layerwise import refit_layers
from spa_onnx.repair.regression import RegressionSums, regression_data
from spa_onnx.repair.sequential import DAMPINGS, SampleRun, refit_in_order
from spa_onnx.statistics import calibration

NETS = {"conv": (CONV, (3, 6, 6)), "mlp": (MLP, (6,))}


def dropped(analysis, share=0.5):
    return {g.name: np.arange(max(1, int(g.size * share))) for g in analysis.prunable()}


@pytest.mark.parametrize("name", NETS)
def test_errors_are_corrected_and_not_added_up(name):
    build, shape = NETS[name]
    proto = build()
    analysis, known = calibrated_model(proto, samples(shape, 300), 300)
    drop = dropped(analysis)
    removal = Removal(analysis, drop)
    apart = refit_layers(analysis.model, known.layers, known.statistics, removal)
    together = refit_in_order(analysis.model, known.layers, SampleRun(list(known.feeds)), removal, apart)
    x = samples(shape, 200, seed=1)
    dense = outputs(proto, x)
    error = {
        label: np.square(outputs(rewrite(analysis, Plan.removing(drop, ""), values).proto, x) - dense).mean()
        for label, values in (("none", {}), ("apart", apart), ("together", together))
    }
    assert error["together"] < error["apart"] < error["none"]


@pytest.mark.parametrize("regularisation", [CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation(4.0, biased_damping=0.1)])
def test_layer_by_layer_weights_and_biases_are_those_of_least_squares(regularisation):
    """The fit is about the means, which the bias takes up.

    Where the means may be off, it is as if columns held nothing but the means.
    """
    proto = MLP()
    analysis, known = calibrated_model(proto, samples((6,), 400), 400)
    removal = Removal(analysis, dropped(analysis))
    model = analysis.model
    values = refit_layers(model, known.layers, known.statistics, removal, regularisation=regularisation)
    last = known.layers[-1]
    x = np.concatenate(PartialExecution(proto, list(known.feeds)).tensor(last.data)).astype(np.float64)
    weight, mean = np.asarray(model.constant(last.weight), np.float64), x.mean(axis=0)
    centred = np.concatenate([(x - mean) / np.sqrt(len(x)), np.sqrt(regularisation.mean) * mean[None]])
    strength = regularisation.biased_damping * np.square(centred).sum() / centred.shape[1]
    columns, kept = np.concatenate([centred, np.sqrt(strength) * np.eye(centred.shape[1])]), removal.kept(last.axis)
    best = np.linalg.lstsq(columns[:, kept], columns @ weight, rcond=None)[0]
    np.testing.assert_allclose(values[last.weight][kept], best, rtol=2e-3, atol=2e-4)
    bias = np.asarray(model.constant(last.bias), np.float64) + mean @ weight - mean[kept] @ best
    np.testing.assert_allclose(values[last.bias], bias, rtol=2e-3, atol=2e-4)


def test_the_weights_are_those_of_least_squares_towards_the_dense_outputs():
    proto = MLP()
    analysis, known = calibrated_model(proto, samples((6,), 400), 400)
    removal = Removal(analysis, dropped(analysis))
    model, feeds = analysis.model, list(known.feeds)
    values = refit_in_order(model, known.layers, SampleRun(feeds), removal, {})
    last = known.layers[-1]
    cut = rewrite(analysis, Plan.removing(dropped(analysis), ""), values).proto
    z = np.concatenate(PartialExecution(cut, feeds).tensor(last.data)).astype(np.float64)
    wanted = np.concatenate(PartialExecution(proto, feeds).tensor("f")).astype(np.float64)  # before the bias
    kept = removal.kept(last.axis)
    z, wanted = z - z.mean(axis=0), wanted - wanted.mean(axis=0)
    gram, start = z.T @ z / len(z), np.asarray(model.constant(last.weight), np.float64)[kept].T

    def best(damping):
        strength = damping * np.trace(gram) / len(gram)
        stacked = np.concatenate([z / np.sqrt(len(z)), np.sqrt(strength) * np.eye(len(gram))])
        right = np.concatenate([wanted / np.sqrt(len(z)), np.sqrt(strength) * start.T])
        return np.linalg.lstsq(stacked, right, rcond=None)[0]

    assert any(np.allclose(values[last.weight][kept], best(damping), rtol=2e-3, atol=2e-4) for damping in DAMPINGS)
    assert not np.allclose(best(DAMPINGS[0]), best(DAMPINGS[-1]), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("rows", [1, 7])
def test_sums_do_not_depend_on_how_columns_are_split(rows):
    rng = np.random.default_rng(0)
    weight, lost = rng.standard_normal((2, rows, 5)), rng.standard_normal((2, rows, 40))
    x, z = rng.standard_normal((2, 2, 5, 40))
    first, second = (
        regression_data(weight, x[:, :, some], z[:, :, some], lost[:, :, some]) for some in (slice(13), slice(13, None))
    )
    whole = regression_data(weight, x, z, lost).sums()
    for got, want in zip((first + second).sums().centred(), whole.centred(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    wanted = weight[1] @ x[1] + lost[1]
    np.testing.assert_allclose(whole.centred()[0][1], np.cov(wanted, z[1], bias=True)[:rows, rows:], atol=1e-12)
    np.testing.assert_allclose(whole.target_total[1], wanted.sum(axis=1), atol=1e-12)


def test_little_known_directions_stay_what_they_were():
    start = np.arange(6.0).reshape(2, 3)
    gram = np.diag([4.0, 0.0, 0.0])
    new = ridge_fit(np.zeros((2, 3)), gram, start)
    np.testing.assert_allclose(new[:, 1:], start[:, 1:])
    assert np.all(np.abs(new[:, 0]) < 0.02 * np.abs(start[:, 0]) + 1e-12)
    np.testing.assert_array_equal(ridge_fit(np.zeros((2, 3)), np.zeros((3, 3)), start), start)


def test_what_is_missed_is_the_squared_error_but_for_what_all_weights_share():
    rng = np.random.default_rng(2)
    z, y, first, second = (rng.standard_normal(shape) for shape in ((5, 40), (3, 40), (3, 5), (3, 5)))
    errors = [np.square(y - weight @ z).sum() / 40 for weight in (first, second)]
    found = [squared_error(weight, y @ z.T / 40, z @ z.T / 40) for weight in (first, second)]
    assert found[0] - found[1] == pytest.approx(errors[0] - errors[1])
    assert found[0] + np.square(y).sum() / 40 == pytest.approx(errors[0])


@pytest.mark.parametrize(("noise", "strongest"), [(0.0, False), (30.0, True)])
def test_weights_are_held_the_more_the_less_one_half_says_about_the_other(noise, strongest, monkeypatch):
    """Outputs that follow from the inputs are fitted freely; what is mostly noise stays near the start."""
    rng = np.random.default_rng(4)
    used = []
    monkeypatch.setattr(pairs, "ridge_fit", lambda *given: used.append(given[3]) or ridge_fit(*given))
    (layer,) = linear_layers(Model.of(net("float[N,6] x", "float[6,4] w1", "y = MatMul(x, w1)", "float[N,4] y")()))
    old = rng.standard_normal((1, 4, 6))
    halves = []
    for _ in range(2):
        z = rng.standard_normal((1, 6, 24))
        halves.append(regression_data(old, z + noise * rng.standard_normal(z.shape), z))
    sequential._fitted(layer, halves, np.zeros_like(old), [np.arange(6)])
    assert used[-1] == (DAMPINGS[-1] if strongest else DAMPINGS[0])


def test_a_few_samples_move_weights_less():
    """Where they make no two halves, the number of columns decides."""
    rng = np.random.default_rng(3)
    (layer,) = linear_layers(Model.of(net("float[N,20] x", "float[20,4] w1", "y = MatMul(x, w1)", "float[N,4] y")()))
    z, y, start = rng.standard_normal((1, 20, 10)), rng.standard_normal((1, 4, 10)), np.zeros((1, 4, 20))
    few = regression_data(start, z, z, y).sums()
    many = RegressionSums(
        1000 * few.cross, 1000 * few.gram, 1000 * few.target_total, 1000 * few.input_total, 1000 * few.count
    )
    moved = [np.square(sequential._fitted(layer, [known], start, [np.arange(20)])).sum() for known in (few, many)]
    assert moved[0] < 0.6 * moved[1]


def test_a_shared_weight_keeps_the_value_that_suits_all_its_users():
    proto = net(
        "float[N,6] x",
        "float[6,8] w1, float[8,8] w2, float[8,3] w3",
        "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) e = MatMul(d, w2) f = Relu(e) y = MatMul(f, w3)",
        "float[N,3] y",
    )()
    analysis, known = calibrated_model(proto, samples((6,), 100), 100)
    removal = Removal(analysis, dropped(analysis, 0.25))
    apart = refit_layers(analysis.model, known.layers, known.statistics, removal)
    together = refit_in_order(analysis.model, known.layers, SampleRun(list(known.feeds)), removal, apart)
    assert "w2" in apart
    np.testing.assert_array_equal(apart["w2"], together["w2"])
    assert not np.array_equal(apart["w3"], together["w3"])


def test_a_shared_weight_is_fitted_to_what_every_user_of_it_reads():
    proto = net(
        "float[N,6] x",
        "float[6,8] w1, float[8,8] w2, float[8,3] w3",
        "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) e = MatMul(d, w2) f = Relu(e) y = MatMul(f, w3)",
        "float[N,3] y",
    )()
    analysis, known = calibrated_model(proto, samples((6,), 100), 100)
    removal = Removal(analysis, dropped(analysis, 0.25))
    there, back = (
        refit_layers(analysis.model, users, known.statistics, removal)["w2"]
        for users in (known.layers, known.layers[::-1])
    )
    np.testing.assert_allclose(there, back, rtol=1e-4, atol=1e-6)
    inputs = [
        np.concatenate(PartialExecution(proto, list(known.feeds)).tensor(name)).astype(np.float64)
        for name in ("b", "d")
    ]
    columns, weight = np.concatenate(inputs), np.asarray(analysis.model.constant("w2"), np.float64)
    kept = removal.kept(known.layers[1].axis)
    strength = CALIBRATED.damping * np.square(columns).sum() / columns.shape[1]
    stacked = np.concatenate([columns, np.sqrt(strength) * np.eye(8)])
    best = np.linalg.lstsq(stacked[:, kept], stacked @ weight, rcond=None)[0]
    np.testing.assert_allclose(there[kept], best, rtol=2e-3, atol=2e-4)


def test_what_loses_nothing_makes_up_for_what_reaches_it():
    """A residual stream that is an output cannot be pruned; what reads it can be told what was lost before."""
    proto = net(
        "float[N,6] x",
        "float[6,8] w1, float[8,6] w2, float[6,3] w3",
        "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) s = Add(c, x) y = MatMul(s, w3)",
        "float[N,6] s, float[N,3] y",
    )()
    x, fresh = samples((6,), 300), samples((6,), 300, seed=1)
    result = spa_onnx.prune(proto, 0.5, samples=300, data={"x": x})
    w3 = {tensor.name: tensor for tensor in result.model.graph.initializer}["w3"]
    old = {tensor.name: tensor for tensor in proto.graph.initializer}["w3"]
    assert list(w3.dims) == [6, 3]
    assert w3.raw_data != old.raw_data

    def error(model):
        return np.square(open_session(model).run({"x": fresh})[1] - open_session(proto).run({"x": fresh})[1]).mean()

    before = onnx.ModelProto()
    before.CopyFrom(result.model)
    next(tensor for tensor in before.graph.initializer if tensor.name == "w3").CopyFrom(old)
    assert error(result.model) < 0.99 * error(before)


def test_large_models_are_refitted_layer_by_layer_only_with_made_up_samples(monkeypatch):
    called = []
    monkeypatch.setattr(refit, "refit_in_order", lambda *given, **_: called.append(given) or given[4])
    spa_onnx.prune(CONV(), 0.4, samples=32)
    assert len(called) == 1
    monkeypatch.setattr(calibration, "MOST_SYNTHETIC_MACS", 20 * macs(Model.of(CONV())))
    spa_onnx.prune(CONV(), 0.4, samples=32)
    assert len(called) == 1
    spa_onnx.prune(CONV(), 0.4, samples=32, data={"x": samples((3, 6, 6), 32)})
    assert len(called) == 2


@pytest.mark.parametrize("given", [False, True])
def test_batch_statistics_hold_while_made_up_samples_are_repaired_in_order(given, monkeypatch):
    """The stored statistics are far off for synthetic samples.

    The outputs of the original network would say nothing.
    """
    proto = net(
        "float[N,3,6,6] x",
        "float[8,3,3,3] w1, float[8] s, float[8] b, float[8] m, float[8] var1, float[4,8,3,3] w2",
        "a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, var1) r = Relu(n) y = Conv(r, w2)",
        "float[N,4,4,4] y",
    )()
    run = []
    walk = sequential.PartialExecution
    monkeypatch.setattr(sequential, "PartialExecution", lambda graph, feeds: run.append(graph) or walk(graph, feeds))
    spa_onnx.prune(proto, 0.4, samples=32, data={"x": samples((3, 6, 6), 32)} if given else None)
    assert [any(node.op_type == "BatchNormalization" for node in graph.graph.node) for graph in run] == [given, given]


def test_given_samples_keep_more_of_a_trained_network(tmp_path):
    data = np.load(MODELS / "digits_resnet.npz")
    path = tmp_path / "calibration.npz"
    np.savez(path, x=data["x"][:200])
    right = {}
    for label, options in (("given", {"data": path}), ("synthetic", {})):
        cut = spa_onnx.prune(MODELS / "digits_resnet.onnx", target="macs=0.4", check=False, **options)
        session = open_session(cut.model)
        right[label] = (session.run({"image": data["x"][200:]})[0].argmax(axis=1) == data["y"][200:]).mean()
    assert right["given"] > 0.9
    assert right["given"] >= right["synthetic"] - 0.01


def test_neighbouring_ridge_penalties_are_close_and_the_range_is_wide():
    """So that one of them is within a factor of two of any penalty between the least and the largest."""
    steps = np.divide(DAMPINGS[1:], DAMPINGS[:-1])
    assert steps.min() > 1
    assert steps.max() < 4
    np.testing.assert_allclose(DAMPINGS[-1] / DAMPINGS[0], 1000)
