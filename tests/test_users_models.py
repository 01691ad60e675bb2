"""Models as users have them, each pruned without data and with some."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from onnx import helper

import spa_onnx

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def recommender():
    """Two text inputs that a LabelEncoder turns into rows of tables."""
    proto = net(
        "string[N] user, string[N] item",
        "float[4,16] users, float[4,16] items, float[16,24] w1, float[24,1] w2",
        "u = Identity(i1) v = Identity(i2) a = Gather(users, u) b = Gather(items, v) m = Mul(a, b) c = MatMul(m, w1) "
        "d = Relu(c) y = MatMul(d, w2)",
        "float[N,1] y",
    )
    model = unresolved(proto)
    for source, target in (("user", "i1"), ("item", "i2")):
        model.graph.node.insert(
            0,
            helper.make_node(
                "LabelEncoder",
                [source],
                [target],
                domain="ai.onnx.ml",
                keys_strings=["ann", "bob", "cy", "dee"],
                values_int64s=[0, 1, 2, 3],
            ),
        )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return model


def unresolved(build):
    """A net that reads i1 and i2, which nodes are put in front for."""
    return build()


HALF = "n{e} = NonZero(g{e}) r{e} = Transpose<perm=[1,0]>(n{e}) t{e} = GatherND(x, r{e}) a{e} = MatMul(t{e}, w{e}1) "
EXPERT = (
    "g{e} = Gather<axis=1>(gate, i{e}) " + HALF + "b{e} = Relu(a{e}) o{e} = MatMul(b{e}, w{e}2) "
    's{e} = ScatterND<reduction="add">({last}, r{e}, o{e}) '
)
EXPERTS = net(
    "float[T,16] x",
    "float[16,2] r, int64 i0 = {0}, int64 i1 = {1}, float[16,32] w01, float[32,16] w02, float[16,32] w11, "
    "float[32,16] w12",
    "l = MatMul(x, r) gate = Relu(l) "
    + EXPERT.replace("{e}", "0").replace("{last}", "x")
    + EXPERT.replace("{e}", "1").replace("{last}", "s0")
    + "y = Identity(s1)",
    "float[T,16] y",
    opset=18,
)
WEIGHT_NORM = net(
    "float[N,8,64] x",
    "float[32,8,5] v1, float[32,1,1] g1, float[4,32,3] w2",
    "n = ReduceL2<axes=[1,2]>(v1) u = Div(v1, n) w1 = Mul(u, g1) a = Conv<pads=[2,2]>(x, w1) b = LeakyRelu(a) "
    "y = Conv<pads=[1,1]>(b, w2)",
)
MATLAB = net(
    "float[784] x",
    "int64[4] image = {1, 1, 28, 28}, float[16,1,5,5] w1, float[16,10] w2, int64[1] ten = {10}",
    "i = Reshape(x, image) a = Conv(i, w1) b = Relu(a) c = GlobalAveragePool(b) d = Flatten(c) e = Gemm(d, w2) "
    "y = Reshape(e, ten)",
    "float[10] y",
)
BACKBONE = "float[16,3,3,3] w1, float[6,16,1,1] w2, int64[2] flat = {6, -1}, int64 four = {4}, float nil = {0}"
DETECTED = (
    "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv(b, w2) d = Reshape(c, flat) t = Transpose<perm=[1,0]>(d) "
)
NONZERO = net(
    "float[1,3,8,8] x",
    BACKBONE,
    DETECTED + "s = Gather<axis=1>(t, four) h = Greater(s, nil) f = Cast<to=1>(h) n = NonZero(f) "
    "r = Transpose<perm=[1,0]>(n) y = GatherND(t, r)",
    "float[found,6] y",
)
SUPPRESSED = net(
    "float[1,3,8,8] x",
    BACKBONE + ", int64[1] zero = {0}, int64[1] to = {4}, int64[1] end = {5}, int64[1] one = {1}, int64 most = {9}, "
    "float over = {0.5}, int64[1] front = {0}",
    DETECTED + "b4 = Slice(t, zero, to, one) boxes = Unsqueeze(b4, front) s1 = Slice(d, to, end, zero) "
    "scores = Unsqueeze(s1, front) y = NonMaxSuppression(boxes, scores, most, over)",
    "int64[found,3] y",
)
GRAPH_NETWORK = net(
    "float[n,8] x, int64[2,e] edges",
    "float[8,32] w1, float[32,32] w2, float[32,3] w3, int64 zero = {0}, int64 one = {1}, int64[1] last = {1}",
    "src = Gather<axis=0>(edges, zero) dst = Gather<axis=0>(edges, one) p = MatMul(x, w1) q = Relu(p) "
    "m = Gather(q, src) k = MatMul(m, w2) s = Shape(k) d = Unsqueeze(dst, last) i = Expand(d, s) "
    'h = ScatterElements<axis=0, reduction="add">(q, i, k) y = MatMul(h, w3)',
    opset=16,
)
NAMES = np.asarray(["ann", "bob", "cy", "dee"])
MODELS = {
    "a detector that ends in NonZero": (NONZERO, {"x": floats(40, 3, 8, 8)}),
    "a detector with suppression": (SUPPRESSED, {"x": floats(40, 3, 8, 8)}),
    "a graph network": (
        GRAPH_NETWORK,
        [{"x": floats(20, 8), "edges": RNG.integers(0, 20, (2, 30))} for _ in range(40)],
    ),
    "a recommender": (recommender, {"user": NAMES[RNG.integers(0, 4, 60)], "item": NAMES[RNG.integers(0, 4, 60)]}),
    "a mixture of experts": (EXPERTS, {"x": floats(60, 16)}),
    "a network with weight normalisation": (WEIGHT_NORM, {"x": floats(60, 8, 64)}),
    "one picture in a row": (MATLAB, {"x": floats(60, 784)}),
}


@pytest.mark.parametrize("criterion", ["l1", "obspa"])
@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_and_compared(name, given, criterion):
    build, data = MODELS[name]
    result = spa_onnx.prune(build(), 0.5, criterion=criterion, data=data if given else None)
    report = result.report
    assert report.params[1] < 0.9 * report.params[0]
    assert report.validation.gap is not None
    assert np.isfinite(report.drift.error)
    assert report.drift.measured_on == (("held-out" if criterion == "obspa" else "given") if given else "synthetic")
