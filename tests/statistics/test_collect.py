"""Sums over samples, and synthetic samples."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from nets.build import net
from onnx import helper, numpy_helper

import spa_onnx
from spa_onnx.config import parse_bytes
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import open_session
from spa_onnx.layers import columns, linear_layers
from spa_onnx.linalg.obs import SUPPORT
from spa_onnx.model.model import Model
from spa_onnx.operators.macs import macs
from spa_onnx.statistics import calibration, moments
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.statistics.collect import Observation, Schedule, channel_moments, collect, observe, with_outputs
from spa_onnx.statistics.memory import ARENA_FACTOR, MATRIX_COPIES, memory_budget, peak_bytes, peak_live_bytes
from spa_onnx.statistics.moments import MomentColumns, MomentSums
from spa_onnx.statistics.subsampling import Subsampling, positions_per_sample
from spa_onnx.synthetic.generate import generate_samples, has_stored_statistics, with_batch_statistics

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
    assert calibrate(model, {"N": 2}, None, Sampling(8, 0)).feeds


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
    assert calibrate(model, {"N": 2}, None, Sampling(8, 0)).feeds


# --- batch statistics -----------------------------------------------------------------------------------------------

NORM = "float[5] {0}1, float[5] {0}2, float[5] {0}3, float[5] var{0}"
IMAGE = (
    "float[N,3,8,8] x",
    f"float[5,3,3,3] w, {NORM.format('p')}, {NORM.format('q')}, float[5,5,1,1] v",
    (
        "a = Conv(x, w) n = BatchNormalization(a, p1, p2, p3, varp) r = Relu(n) c = Conv(r, v) "
        "y = BatchNormalization(c, q1, q2, q3, varq)"
    ),
    "float[N,5,6,6] y",
)
ROWS = (
    "float[N,6] x",
    f"float[6,5] w, {NORM.format('p')}, {NORM.format('q')}, float[5,5] v",
    (
        "a = MatMul(x, w) n = BatchNormalization(a, p1, p2, p3, varp) r = Relu(n) c = MatMul(r, v) "
        "y = BatchNormalization(c, q1, q2, q3, varq)"
    ),
    "float[N,5] y",
)


@pytest.mark.parametrize("parts", [IMAGE, ROWS], ids=["rank 4", "rank 2"])
@pytest.mark.parametrize("options", [{}, {"ir": 3, "opset": 9}], ids=["ir 8", "ir 3"])
def test_batch_statistics_give_each_output_its_stored_moments(parts, options):
    model = Model.of(net(*parts, **options)())
    assert has_stored_statistics(model)
    before = model.proto.SerializeToString()
    changed = with_batch_statistics(model, model.proto)
    assert model.proto.SerializeToString() == before
    names = {output for node in model.proto.graph.node for output in node.output}
    assert names <= {output for node in changed.graph.node for output in node.output}
    onnx.checker.check_model(changed)
    shape = [size if size > 2 else 64 for size in model.shape("x")]
    x = (3 * np.random.default_rng(0).standard_normal([64, *shape[1:]]) - 2).astype(np.float32)
    tensors = open_session(with_outputs(changed, ["n", "y"])).run({"x": x})
    for letter, tensor in zip("pq", tensors, strict=True):
        axes = tuple(axis for axis in range(tensor.ndim) if axis != 1)
        np.testing.assert_allclose(tensor.mean(axis=axes), model.constant(f"{letter}2"), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(tensor.var(axis=axes), model.constant(f"{letter}1") ** 2, rtol=1e-2, atol=1e-4)


# --- synthetic samples ----------------------------------------------------------------------------------------------


def reader(kind, shape, **constants):
    """A model with one input `x` that a Cast reads, or that looks up rows of `table`."""
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)]
    if constants:
        nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "reader",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


FLOAT, BYTES, IDS = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
TABLE = np.zeros((11, 4), np.float32)
MADE = {
    "image": (reader(FLOAT, ["N", 3, 16, 12]), (8, 3, 16, 12), np.float32),
    "image in float16": (reader(onnx.TensorProto.FLOAT16, ["N", 1, 8, 8]), (8, 1, 8, 8), np.float16),
    "bytes": (reader(BYTES, ["N", 16, 12, 3]), (8, 16, 12, 3), np.uint8),
    "tokens": (reader(IDS, ["N", "L"], table=TABLE), (8, 7), np.int64),
    "fixed batch": (reader(FLOAT, [2, 3, 8, 8]), (2, 3, 8, 8), np.float32),
    "rows": (reader(FLOAT, ["N", 6]), (8, 6), np.float32),
}


@pytest.mark.parametrize(("model", "shape", "dtype"), MADE.values(), ids=MADE)
def test_made_up_samples_fit_the_model(model, shape, dtype):
    def make(seed):
        return generate_samples(model, {"N": 3, "L": 7}, 16, 8, seed).feeds

    feeds, again, other = make(5), make(5), make(6)
    assert sum(len(feed["x"]) for feed in feeds) == 16
    for feed, same in zip(feeds, again, strict=True):
        x = feed["x"]
        assert (x.shape, x.dtype) == (shape, dtype)
        np.testing.assert_array_equal(x, same["x"])
        assert x.min() >= 0 or dtype in (np.float32, np.float16)
        assert np.isfinite(x).all()
        assert x.std() > 0.3
        if dtype == np.int64:
            assert x.max() < len(TABLE)
        open_session(model.proto).run(feed)
    assert not np.array_equal(feeds[0]["x"], other[0]["x"])
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])


def test_masks_are_ones_positions_are_counted_and_ids_fill_their_table():
    model = Model.of(
        net(
            "int64[N,L] input_ids, int64[N,L] attention_mask, int64[N,L] position_ids, int64[N,L] token_type_ids",
            "float[300,4] table, float[9,4] places, float[2,4] kinds, int64[1] last = {2}",
            "a = Gather(table, input_ids) b = Gather(places, position_ids) c = Gather(kinds, token_type_ids) "
            "d = Add(a, b) e = Add(d, c) "
            "f = Cast<to=1>(attention_mask) g = Unsqueeze(f, last) y = Mul(e, g)",
            "float[N,L,4] y",
        )()
    )
    (feed,) = generate_samples(model, {"N": 1, "L": 7}, 16, 16, 0).feeds
    assert feed["attention_mask"].min() == 1
    assert (feed["position_ids"] == np.arange(7)).all()
    assert not feed["token_type_ids"].any()
    assert 250 < feed["input_ids"].max() < 300
    assert all(array.shape == (16, 7) and array.dtype == np.int64 for array in feed.values())
    open_session(model.proto).run(feed)


def test_bytes_use_their_range():
    x = np.concatenate([feed["x"] for feed in generate_samples(MADE["bytes"][0], {"N": 1}, 64, 8, 0).feeds])
    assert x.min() < 20
    assert x.max() > 235


def test_images_are_smooth_whether_statistics_are_stored_or_not():
    def roughness(model):
        x = generate_samples(model, {"N": 8}, 8, 8, 0).feeds[0]["x"]
        return np.square(np.diff(x, axis=3)).mean() / x.var()

    assert roughness(MADE["image"][0]) < 1.7  # noise has 2
    assert roughness(Model.of(net(*IMAGE)())) < 1.7


@pytest.mark.parametrize(("work", "made"), [(0, 16), (10**6, 20), (10**12, 40)])
def test_large_models_are_shown_fewer_made_up_samples(monkeypatch, work, made):
    model = Model.of(BIG())
    monkeypatch.setattr(calibration, "MOST_SYNTHETIC_MACS", work * 20 * macs(model) // 10**6)
    assert calibrate(model, {"N": 8}, None, Sampling(40, 0)).samples == made


# --- memory ---------------------------------------------------------------------------------------------------------

BIG = net(
    "float[N,3,24,24] x",
    "float[8,3,3,3] w1, float[8,8,3,3] w2, float[6,8,3,3] w3, float[4,6,1,1] w4",
    "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c) "
    "e = Conv<pads=[1,1,1,1]>(d, w3) f = Relu(e) "
    "y = Conv(f, w4)",
    "float[N,4,24,24] y",
)


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


@pytest.mark.parametrize("memory", [3 * 10**5, 2 * 10**6, 10**9])
def test_a_budget_decides_about_passes_and_batches_and_not_about_statistics(memory):
    model = Model.of(BIG())
    x = np.random.default_rng(0).standard_normal((40, 3, 24, 24)).astype(np.float32)
    samples = read_samples({"x": x}, model.proto)
    plenty = calibrate(model, {"N": 2}, samples, Sampling(40, 0))
    known = calibrate(model, {"N": 2}, samples, Sampling(40, 0, memory=memory))
    assert (len(plenty.feeds), len(plenty.passes)) == (1, 1)
    assert (len(known.feeds) > 1) == (memory < 10**8)
    assert (len(known.passes) > 1) == (memory < 10**6)
    for key, sums in plenty.statistics.items():
        np.testing.assert_allclose(sums.gram, known.statistics[key].gram, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("asked", "channels"),
    [("a", [3, 8]), ("b", [3, 8]), ("c", [3, 8, 6]), ("d", [3, 14]), ("f", [3, 3]), ("x", []), ("acdf", [3, 8, 6])],
)
def test_the_widest_cut_holds_what_is_still_to_be_read(asked, channels):
    body = (
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Concat<axis=1>(b, c) e = Conv(d, w3) f = Tanh(e) y = Add(f, x)"
    )
    weights = "float[8,3,1,1] w1, float[6,8,1,1] w2, float[3,14,1,1] w3"
    model = Model.of(net("float[N,3,24,24] x", weights, body, "float[N,3,24,24] y")())
    assert peak_live_bytes(model, set(asked)) == 4 * 24 * 24 * sum(channels)


@pytest.mark.parametrize(
    ("kept", "channels"), [("", [3, 8, 6, 14]), ("a", [3, 8, 8, 6, 14]), ("xabcd", [3, 8, 8, 6, 14, 3, 3])]
)
def test_a_forward_pass_holds_what_is_kept_and_what_is_still_to_be_read(kept, channels):
    body = (
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Concat<axis=1>(b, c) e = Conv(d, w3) f = Tanh(e) y = Add(f, x)"
    )
    weights = "float[8,3,1,1] w1, float[6,8,1,1] w2, float[3,14,1,1] w3"
    model = Model.of(net("float[N,3,24,24] x", weights, body, "float[N,3,24,24] y")())
    assert peak_bytes(model, set(kept)) == 4 * 24 * 24 * sum(channels)


@pytest.mark.parametrize(("room_for", "fit"), [(100, 40), (40, 40), (36, 36), (20, 0)])
def test_as_many_samples_are_repaired_in_the_order_of_the_graph_as_memory_holds(room_for, fit, monkeypatch):
    model = Model.of(BIG())
    held = (
        2 * peak_live_bytes(model, {"x", "b", "d", "f"}) * (room_for + ARENA_FACTOR * 40)
    )  # and for a batch of all 40 that runs
    monkeypatch.setattr(
        calibration, "memory_budget", lambda *given: replace(memory_budget(*given), sequential_tensors=held)
    )
    x = np.random.default_rng(0).standard_normal((40, 3, 24, 24)).astype(np.float32)
    known = calibrate(model, {"N": 2}, read_samples({"x": x}, model.proto), Sampling(40, 0))
    assert (known.samples, known.sequential_samples) == (40, fit)
    assert sum(len(feed["x"]) for feed in known.first(known.sequential_samples)) == fit
    assert known.describe() == "40 given samples" + (", 36 of them in the order of the graph" if fit == 36 else "")


def wide(inputs, places=40):
    """Four products with so many inputs, each at so many places of a sample."""
    weights = ", ".join(f"float[{inputs},{inputs}] w{number}" for number in range(3))
    nodes = " ".join(f"a{number} = MatMul({source}, w{number})" for number, source in enumerate(("x", "a0", "a1")))
    return Model.of(
        net(
            f"float[N,{places},{inputs}] x",
            f"{weights}, float[{inputs},3] w3",
            f"{nodes} y = MatMul(a2, w3)",
            f"float[N,{places},3] y",
        )()
    )


def known_of(model, count, memory=10**9):
    x = np.random.default_rng(0).standard_normal((count, *model.shape("x")[1:])).astype(np.float32)
    return calibrate(model, {"N": 2}, read_samples({"x": x}, model.proto), Sampling(count, 0, memory=memory))


def test_matrices_that_do_not_all_fit_are_put_into_files(monkeypatch):
    model = wide(80)
    stored = []
    monkeypatch.setattr(
        moments, "on_disk", lambda array, keep=moments.on_disk: stored.append(array.nbytes) or keep(array)
    )
    plenty, tight = known_of(model, 20), known_of(model, 20, memory=6 * 8 * 80**2)
    assert len(plenty.passes) == 1
    assert stored == [8 * 80**2] * 4
    assert len(tight.passes) == 4
    for key, found in plenty.statistics.items():
        np.testing.assert_allclose(tight.statistics[key].gram, found.gram, rtol=1e-5, atol=1e-3)
        with pytest.raises(ValueError, match="read-only"):
            tight.statistics[key].gram[0, 0, 0] = 1.0


def test_a_folder_for_temporary_files_that_is_full_is_named(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moments, "TemporaryFile", full)
    with pytest.raises(
        RefusedError, match=r"a matrix of 0\.00 GB does not fit .*No space left on device.*--memory.*TMPDIR"
    ):
        known_of(wide(80), 20, memory=6 * 8 * 80**2)


@pytest.mark.parametrize("samples", [20, 200])
def test_of_what_is_too_wide_for_a_matrix_as_many_columns_are_looked_at_as_fit(samples):
    """One in some samples where even one position of each is too much."""
    model, memory = wide(400), MATRIX_COPIES * 8 * 400 * 90
    known = known_of(model, samples, memory)
    for layer in known.layers:
        found = known.statistics[layer.key]
        assert isinstance(found, MomentColumns)
        assert 10 <= found.count <= 130
    assert all(isinstance(found, MomentSums) for found in known_of(model, samples).statistics.values())


def test_either_half_has_samples_where_not_all_are_looked_at():
    keys = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    taken = keys[Subsampling(1, 4).takes(keys)]
    assert 200 < len(taken) < 300
    assert 0.4 < (taken % 2).mean() < 0.6


@pytest.mark.parametrize("memory", [1, 10**5, 10**7])
def test_a_network_is_pruned_whatever_the_memory(memory):
    result = spa_onnx.prune(wide(60).proto, 0.4, samples=40, memory=memory, check=False)
    assert result.report.params[1] < 0.7 * result.report.params[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("7", 7), (7, 7), ("3k", 3000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 TB", "1e9", "0", 0, -3, "nan"])
def test_sizes_that_are_none_are_wrong_usage(text):
    with pytest.raises(UsageError, match="is not a size like 2GB"):
        parse_bytes(text)
