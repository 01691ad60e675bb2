"""Inputs that are tried: those that the user gives, else random ones on which the model runs with finite outputs."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, is_batched
from spa_onnx.synthetic.working import working_inputs

TABLE = "float[12,16] t, float[16,64] w1, float[64,4] w2, int64[1] one = {1}, int64[1] zero = {0}, int64[1] four = {4}"
LOOKED_UP = "a = Gather(t, i) b = MatMul(a, w1) c = Relu(b) y = MatMul(c, w2)"
IDS = {
    "one more": "i = Add(ids, one) ",
    "behind a cast": "k = Cast<to=6>(ids) i = Cast<to=7>(k) ",
    "some of them": "k = Slice(ids, zero, four, one) i = Add(k, one) ",
    "one less and more": "k = Sub(ids, one) l = Add(k, one) i = Add(l, one) ",
    "doubled": "i = Add(ids, ids) ",
}


@pytest.mark.parametrize("nodes", IDS.values(), ids=IDS)
def test_ids_stay_in_their_table_behind_what_moves_or_shifts_them(nodes):
    report = spa_onnx.prune(net("int64[N,6] ids", TABLE, nodes + LOOKED_UP)(), 0.5, criterion="l1").report
    assert report.validation.gap is not None


GRAPH_NETWORK = net(
    "float[n,8] x, int64[2,e] edges",
    "float[8,32] w1, float[32,32] w2, float[32,3] w3, int64 zero = {0}, int64 one = {1}, int64[1] last = {1}",
    "src = Gather<axis=0>(edges, zero) dst = Gather<axis=0>(edges, one) p = MatMul(x, w1) q = Relu(p) "
    "m = Gather(q, src) k = MatMul(m, w2) s = Shape(k) d = Unsqueeze(dst, last) i = Expand(d, s) "
    'h = ScatterElements<axis=0, reduction="add">(q, i, k) y = MatMul(h, w3)',
    opset=16,
)
NODES, EDGES = np.float32(np.random.default_rng(0).standard_normal((20, 8))), np.arange(40).reshape(2, 20) % 20


@pytest.mark.parametrize("data", [None, [{"x": NODES, "edges": EDGES}]], ids=["made up", "given"])
def test_a_graph_network_is_pruned(data):
    report = spa_onnx.prune(GRAPH_NETWORK(), 0.5, criterion="l1", repair="none", data=data).report
    assert report.validation.gap is not None
    assert report.validation.inputs == ("random inputs" if data is None else "given samples")


def test_sizes_are_those_of_the_given_samples():
    proto = GRAPH_NETWORK()
    feed = {"x": NODES, "edges": EDGES}
    assert working_inputs(Model.of(proto), open_session(proto), {}, [feed]).dims == {"n": 20, "e": 20}


WORDS = net(
    "string[N,2] words, float[N,6] x",
    "float[6,16] w1, float[16,3] w2",
    "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) z = Identity(words)",
    "float[N,3] y, string[N,2] z",
)


def test_words_are_tried_whether_they_are_given_or_not():
    x = np.float32(np.random.default_rng(0).standard_normal((40, 6)))
    words = np.asarray([["a", "b"]] * 40)
    report = spa_onnx.prune(WORDS(), 0.5, criterion="l1", data={"words": words, "x": x}).report
    assert report.validation.gap is not None
    assert report.drift.samples == 40
    assert spa_onnx.prune(WORDS(), 0.5, criterion="l1").report.validation.gap is not None


ATTENTION = (
    "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) {} "
    "p = Softmax<axis=-1>(w) o = MatMul(p, v) y = MatMul(o, wo)"
)
MASKS = "float[16,32] wq, float[16,32] wk, float[16,32] wv, float[32,4] wo, float nil = {0.0}"
NOT_A_NUMBER = {
    "excluded keys": "c = Cast<to=9>(mask) l = Log(nil) w = Where(c, l, s)",
    "kept keys": "l = Log(mask) w = Add(s, l)",
    "by another name": "l = Log(other) w = Add(s, l)",
}


@pytest.mark.parametrize("name", NOT_A_NUMBER)
@pytest.mark.parametrize("criterion", ["l1", "obspa"])
def test_masks_are_tried_until_outputs_are_finite(name, criterion):
    mask = "other" if "other" in NOT_A_NUMBER[name] else "mask"
    proto = net(
        f"float[N,6,16] x, float[N,1,6] {mask}", MASKS, ATTENTION.format(NOT_A_NUMBER[name]), "float[N,6,4] y"
    )()
    report = spa_onnx.prune(proto, 0.3, criterion=criterion).report
    assert np.isfinite(report.drift.error)
    assert report.validation.gap is not None


IMAGE = (
    "float[8,3,3,3] w1, float[8,8,3,3] w2, float[8,5] w3, int64[4] image = {1, 3, 16, 16}, int64[1] five = {5}",
    (
        "i = Reshape(x, image) a = Conv<pads=[1,1,1,1], strides=[2,2]>(i, w1) b = Relu(a) "
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w2) d = Relu(c) e = GlobalAveragePool(d) f = Flatten(e) "
        "g = Gemm(f, w3) y = Reshape(g, five)"
    ),
)
ALONE = {
    "a picture in a row": net("float[768] x", *IMAGE, "float[5] y"),
    "frames": net(
        "float[30,12] x",
        "float[12,24] w1, float[24,4] w2",
        "a = MatMul(x, w1) b = Relu(a) c = ReduceMean<axes=[0], keepdims=1>(b) y = MatMul(c, w2)",
        "float[1,4] y",
    ),
    "points of pillars": net(
        "float[50,10,9] x",
        "float[9,16] w1, float[16,4] w2",
        "a = MatMul(x, w1) b = Relu(a) c = ReduceMax<axes=[0,1], keepdims=0>(b) y = MatMul(c, w2)",
        "float[4] y",
        opset=17,
    ),
}


@pytest.mark.parametrize("build", ALONE.values(), ids=ALONE)
def test_a_first_axis_that_no_output_has_does_not_count_samples(build):
    proto = build()
    assert not is_batched(Model.of(proto))
    report = spa_onnx.prune(proto, 0.3).report
    assert "512 synthetic samples" in report.repair
    assert report.drift.samples == 64
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.float32(np.random.default_rng(0).standard_normal((100, *shape)))
    report = spa_onnx.prune(proto, 0.3, data={"x": x}).report
    assert "50 given samples" in report.repair
    assert report.drift.samples == 50
    assert spa_onnx.prune(proto, 0.3, data={"x": x[0]}).report.unknown


@pytest.mark.parametrize("inputs", ["float[N,6] x", "float[4,6] x"])
def test_a_first_axis_that_is_free_or_that_outputs_have_counts_samples(inputs):
    proto = net(inputs, "float[6,8] w1, float[8,3] w2", "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)")()
    assert is_batched(Model.of(proto))
