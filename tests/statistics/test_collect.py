"""Sums over samples, and synthetic samples."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from nets.build import net
from observed import BIG

from spa_onnx.execution.session import open_session
from spa_onnx.layers import columns, linear_layers
from spa_onnx.linalg.obs import SUPPORT
from spa_onnx.model.model import Model
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.statistics.collect import Observation, Schedule, channel_moments, collect, observe, with_outputs
from spa_onnx.statistics.moments import MomentSums
from spa_onnx.statistics.subsampling import positions_per_sample
from spa_onnx.synthetic.working import WorkingInputs

MIXED = net(
    "float[N,4,5,5] x",
    "float[6,2,3,3] w1, float[6] b1, float[3,6,1,1] w2, float[3,2] w3",
    "a = Conv<group=2, pads=[1,1,1,1]>(x, w1, b1) c = Relu(a) d = Conv(c, w2) "
    "e = ReduceMean<axes=[2,3], keepdims=0>(d) y = MatMul(e, w3)",
    "float[N,2] y",
)


def batches(x, sizes):
    return [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]


def images(count, seed=0):
    return (np.random.default_rng(seed).standard_normal((count, 4, 5, 5)) + 0.5).astype(np.float32)


def collected(model, feeds, seed=0):
    found = list(linear_layers(model))
    collected_ = collect(model, model.proto, found, feeds, seed)
    return {layer.weight: collected_[layer.key] for layer in found}


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].count == other[key].count
        np.testing.assert_allclose(one[key].gram, other[key].gram, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(one[key].total, other[key].total, rtol=1e-5, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 100))
def test_neither_batch_size_nor_order_matters(sizes, seed):
    model, x = Model.of(MIXED()), images(sum(sizes), seed)
    whole = collected(model, [{"x": x}])
    assert whole["w1"].count == len(x) * 25
    assert_alike(whole, collected(model, batches(x, sizes), seed))
    assert_alike(whole, collected(model, [{"x": x[np.random.default_rng(seed).permutation(len(x))]}]))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_addition_is_merging(blocks, inputs, first, second, seed):
    x = np.random.default_rng(seed).standard_normal((blocks, inputs, first + second)) + 1
    both, whole = MomentSums.of(x[:, :, :first]) + MomentSums.of(x[:, :, first:]), MomentSums.of(x)
    assert both.count == whole.count == first + second
    np.testing.assert_allclose(both.gram, whole.gram, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(both.mean, x.mean(axis=2), rtol=1e-12, atol=1e-12)
    for block in range(blocks):
        np.testing.assert_allclose(
            both.covariance()[block], np.cov(x[block], bias=True).reshape(inputs, inputs), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0])
def test_few_columns_say_little_of_what_inputs_have_in_common(mean):
    x = np.random.default_rng(0).standard_normal((1, 20, 20 * SUPPORT)) + 1
    many, few = MomentSums.of(x), MomentSums.of(x[:, :, :10])
    np.testing.assert_allclose(
        many.hessian(mean=mean)[0], np.cov(x[0], bias=True) + mean * np.outer(many.mean, many.mean)
    )
    found, plain = few.hessian(mean=mean)[0], few.covariance()[0]
    found -= mean * np.outer(few.mean, few.mean)
    np.testing.assert_allclose(found, np.where(np.eye(20, dtype=bool), plain, plain / 3), atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > 10 * abs(
        np.linalg.eigvalsh(plain).min()
    )  # ten columns span ten of twenty directions


def test_the_covariance_of_a_constant_is_zero():
    x = np.random.default_rng(0).standard_normal((1, 3, 50))
    x[0, 1] = 1000.1
    covariance = MomentSums.of(x).covariance()[0]
    assert not covariance[1].any()
    assert not covariance[:, 1].any()
    assert covariance[0, 0] > 0.1


def test_collecting_equals_a_direct_computation():
    model, x = Model.of(MIXED()), images(7)
    found = collected(model, batches(x, [3, 4]))
    c, e = open_session(with_outputs(model.proto, ["c", "e"])).run({"x": x})
    c, e = c.astype(np.float64), e.astype(np.float64)
    for name, matrix in (("w2", np.moveaxis(c, 1, 0).reshape(6, -1)), ("w3", e.T)):
        np.testing.assert_allclose(found[name].gram[0], matrix @ matrix.T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[name].total[0], matrix.sum(axis=1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[name].covariance()[0], np.cov(matrix, bias=True), rtol=1e-5, atol=1e-5)
        assert found[name].count == matrix.shape[1]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]).astype(np.float64)
    total = [[padded[:, ch, i : i + 5, j : j + 5].sum() for ch in (2, 3) for i in range(3) for j in range(3)]]
    np.testing.assert_allclose(found["w1"].total[1:], total, rtol=1e-5, atol=1e-5)


def test_scalars_and_inputs_alone_can_be_fed():
    model = Model.of(
        net("float s, float[N,6] x", "float[6,4] w", "z = Mul(x, s) y = MatMul(x, w)", "float[N,4] y, float[N,6] z")()
    )
    x = np.ones((3, 6), np.float32)
    found = collected(model, [{"s": np.array(2, np.float32), "x": x}])
    np.testing.assert_array_equal(found["w"].gram[0], np.full((6, 6), 3.0))
    assert calibrate(model, WorkingInputs({"N": 2}), None, Sampling(8, 0)).feeds


def test_channel_moments_equal_numpy():
    model, x = Model.of(MIXED()), images(9)
    found = channel_moments(model, model.proto, ["a", "e"], batches(x, [2, 3, 4]))
    for name, tensor in zip(["a", "e"], open_session(with_outputs(model.proto, ["a", "e"])).run({"x": x}), strict=True):
        axes = tuple(axis for axis in range(tensor.ndim) if axis != 1)
        np.testing.assert_allclose(found[name][0], tensor.mean(axis=axes), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name][1], tensor.var(axis=axes), rtol=1e-4, atol=1e-5)


def test_channel_moments_of_a_graph_input_are_those_of_the_samples():
    """A BatchNormalization in front of everything standardises the raw input."""
    model = Model.of(
        net(
            "float[N,4,5,5] x",
            "float[4] scale, float[4] bias, float[4] mean, float[4] variance, float[5,4,1,1] w",
            "n = BatchNormalization(x, scale, bias, mean, variance) y = Conv(n, w)",
        )()
    )
    samples = 3 * images(6) + 1
    found = channel_moments(model, model.proto, ["x"], batches(samples, [4, 2]))
    np.testing.assert_allclose(found["x"][0], samples.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["x"][1], samples.var(axis=(0, 2, 3)), rtol=1e-5)
    assert calibrate(model, WorkingInputs({"N": 2}), None, Sampling(8, 0)).feeds


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 100))
def test_neither_batches_nor_order_nor_passes_matter_where_positions_are_drawn(sizes, seed):
    """Each sample has positions of its own, whatever batch it is in and whenever it comes."""
    model = Model.of(BIG())
    count = sum(sizes)
    x = np.random.default_rng(seed).standard_normal((count, 3, 24, 24)).astype(np.float32)
    found = list(linear_layers(model))
    assert all(positions_per_sample(layer, 100 * count) < 24 * 24 for layer in found)

    def seen(feeds, passes):
        found_there = observe(
            Observation(model.proto, model.inputs, found, ["a"], Schedule(100 * count, seed, passes)), feeds
        )
        return {c.weight: found_there.layers[c.key] for c in found}, found_there.channels["a"].moments()

    together = ["a", "b", "d", "f", "x"]
    whole, channels = seen([{"x": x}], [together])
    shuffled = x[np.random.default_rng(seed).permutation(count)]
    for feeds, passes in (
        (batches(x, sizes), [together]),
        ([{"x": shuffled}], [together]),
        (batches(shuffled, sizes[::-1]), [["x"], ["b", "a"], ["d", "f"]]),
        ([{"x": x}], [[name] for name in together]),
    ):
        other, found_channels = seen(feeds, passes)
        assert_alike(whole, other)
        for one, two in zip(channels, found_channels, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
@pytest.mark.parametrize("shares", [1, 2, 3, 9])
def test_workers_find_together_what_one_alone_finds(executor, shares):
    """More samples than those whose channels are observed, and an edge of that number within a share."""
    model = Model.of(MIXED())
    feeds = batches(np.random.default_rng(0).standard_normal((150, 4, 5, 5)).astype(np.float32), [60, 50, 30, 10])
    found = list(linear_layers(model))
    schedule = Schedule(150, 0, [["x", "c"], ["e"]])
    observation = Observation(model.proto, model.inputs, found, ["c"], schedule)
    whole = observe(observation, feeds)
    with executor(2) as workers:
        parts = observe(observation, feeds, workers, shares)
    assert whole.layers.keys() == parts.layers.keys()
    for key, sums in whole.layers.items():
        assert sums.count == parts.layers[key].count
        np.testing.assert_allclose(sums.sums().gram, parts.layers[key].sums().gram, rtol=1e-9, atol=1e-9)
    assert whole.channels["c"].count == parts.channels["c"].count == 140 * 25
    np.testing.assert_allclose(whole.channels["c"].squares, parts.channels["c"].squares, rtol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_layers_can_be_sent_to_another_process(name):
    model = Model.of(NETS[name]())
    for layer in linear_layers(model):
        other, weight = pickle.loads(pickle.dumps(layer)), model.weight(layer.weight)  # noqa: S301 - it is our own
        np.testing.assert_array_equal(other.matrix(weight), layer.matrix(weight))
        np.testing.assert_array_equal(
            other.tensor(layer.matrix(weight), weight), layer.tensor(layer.matrix(weight), weight)
        )


def test_samples_look_at_positions_of_their_own():
    model = Model.of(BIG())
    (layer, *_) = linear_layers(model)
    data = np.arange(24 * 24, dtype=np.float32).reshape(1, 1, 24, 24) + np.zeros((4, 3, 1, 1), np.float32)
    centre = columns(layer, data, 9, np.array([1, 20, 300, 4000], np.uint32))[0, 4].reshape(4, 9)
    assert all(len(set(row)) == 9 for row in centre.tolist())
    assert len({frozenset(row) for row in centre.tolist()}) == 4


def test_rows_of_a_sequence_belong_to_their_sample():
    model = Model.of(net("float[N,50,6] x", "float[6,4] w", "y = MatMul(x, w)", "float[N,50,4] y")())
    x = np.random.default_rng(0).standard_normal((8, 50, 6)).astype(np.float32)
    found = list(linear_layers(model))
    observation = Observation(model.proto, model.inputs, found, (), Schedule(400, 0, [["x"]]))
    whole = observe(observation, [{"x": x}]).layers
    parts = observe(observation, batches(x[::-1], [3, 1, 4])).layers
    for key, sums in whole.items():
        assert sums.count == parts[key].count == 8 * positions_per_sample(found[0], 400)
        np.testing.assert_allclose(sums.gram, parts[key].gram, rtol=1e-12)
