"""Synthetic samples: what they hold, and the statistics that stored BatchNormalizations give them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets.build import net
from observed import BIG
from onnx import helper, numpy_helper

from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.operators.macs import macs
from spa_onnx.statistics import calibration
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.statistics.collect import with_outputs
from spa_onnx.synthetic.generate import generate_samples, has_stored_statistics, with_batch_statistics
from spa_onnx.synthetic.working import WorkingInputs

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
        return generate_samples(model, WorkingInputs({"N": 3, "L": 7}), 16, 8, seed).feeds

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
    (feed,) = generate_samples(model, WorkingInputs({"N": 1, "L": 7}), 16, 16, 0).feeds
    assert feed["attention_mask"].min() == 1
    assert (feed["position_ids"] == np.arange(7)).all()
    assert not feed["token_type_ids"].any()
    assert 250 < feed["input_ids"].max() < 300
    assert all(array.shape == (16, 7) and array.dtype == np.int64 for array in feed.values())
    open_session(model.proto).run(feed)


def test_bytes_use_their_range():
    x = np.concatenate(
        [feed["x"] for feed in generate_samples(MADE["bytes"][0], WorkingInputs({"N": 1}), 64, 8, 0).feeds]
    )
    assert x.min() < 20
    assert x.max() > 235


def test_images_are_smooth_whether_statistics_are_stored_or_not():
    def roughness(model):
        x = generate_samples(model, WorkingInputs({"N": 8}), 8, 8, 0).feeds[0]["x"]
        return np.square(np.diff(x, axis=3)).mean() / x.var()

    assert roughness(MADE["image"][0]) < 1.7  # noise has 2
    assert roughness(Model.of(net(*IMAGE)())) < 1.7


@pytest.mark.parametrize("shape", [(1, 1, 784), (1, 64, 2000), (3, 600, 20), (900, 100, 1)])
@pytest.mark.parametrize("kind", [FLOAT, BYTES], ids=["floats", "bytes"])
def test_long_strips_are_noise_and_no_pictures(shape, kind):
    x = generate_samples(reader(kind, [2, *shape]), WorkingInputs(), 2, 8, 0).feeds[0]["x"].astype(np.float64)
    assert x.shape == (2, *shape)
    longest = int(np.argmax(shape)) + 1
    assert abs(np.diff(x, axis=longest).var() / x.var() - 2) < 0.2
    if kind == BYTES:
        assert x.min() < 20
        assert x.max() > 235


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 3 * 2**20 + 7])
def test_floats_that_are_drawn_in_steps_are_those_drawn_at_once(size):
    model = reader(FLOAT, [1, size])
    x = generate_samples(model, WorkingInputs(), 1, 0, 0).feeds[0]["x"]
    np.testing.assert_array_equal(x[0], np.random.default_rng(0).standard_normal(size).astype(np.float32))


@pytest.mark.parametrize(("work", "made"), [(0, 16), (10**6, 20), (10**12, 40)])
def test_large_models_are_shown_fewer_made_up_samples(monkeypatch, work, made):
    model = Model.of(BIG())
    monkeypatch.setattr(calibration, "MOST_SYNTHETIC_MACS", work * 20 * macs(model) // 10**6)
    assert calibrate(model, WorkingInputs({"N": 8}), None, Sampling(40, 0)).samples == made
