"""What a product is added to, and how its rows are scaled before."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from onnx import numpy_helper

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.layers import linear_layers
from spa_onnx.model.model import Model
from spa_onnx.repair.residual import residual_inputs
from spa_onnx.statistics.collect import with_outputs

NORM = "float[6] g, float[6] h, float[6] m, float[6] var1"


def image(body: str, more: str = "", weight: str = "float[6,4,3,3] w"):
    return net("float[2,4,5,5] x, float[2,6,5,5] s", f"{weight}{', ' * bool(more)}{more}", body, "float[2,6,5,5] y")()


def rows(body: str, more: str = ""):
    return net("float[2,7,4] x, float[2,7,6] s", f"float[4,6] w{', ' * bool(more)}{more}", body, "float[2,7,6] y")()


CONV = "a = Conv<pads=[1,1,1,1]>(x, w)"
FOUND = {
    "at once": image(f"{CONV} y = Add(a, s)"),
    "from the other side": image(f"{CONV} y = Add(s, a)"),
    "normalised": image(f"{CONV} b = BatchNormalization<epsilon=0.01>(a, g, h, m, var1) y = Add(b, s)", NORM),
    "scaled by channel": image(f"{CONV} b = Mul(a, k) y = Add(b, s)", "float[6,1,1] k"),
    "scaled by channel, from the other side": image(f"{CONV} b = Mul(k, a) y = Add(b, s)", "float[1,6,1,1] k"),
    "scaled alike": image(f"{CONV} b = Mul(a, k) c = Identity(b) y = Add(c, s)", "float k"),
    "shifted": image(f"{CONV} b = Add(a, k) y = Add(b, s)", "float[6,1,1] k"),
    "in groups": image(
        "a = Conv<pads=[1,1,1,1], group=2>(x, w) b = Mul(a, k) c = BatchNormalization(b, g, h, m, var1) y = Add(c, s)",
        f"float[6,1,1] k, {NORM}",
        "float[6,2,3,3] w",
    ),
    "layer scale": rows("a = MatMul(x, w) b = Add(a, k) c = Mul(b, l) y = Add(s, c)", "float[6] k, float[1,1,6] l"),
    "rounded": image(
        f"{CONV} q = QuantizeLinear(a, k, z) b = DequantizeLinear(q, k, z) y = Add(b, s)",
        "float k = {0.25}, uint8 z = {128}",
    ),
}
NOT_FOUND = {
    "something bends it before": image(f"{CONV} b = Relu(a) y = Add(b, s)"),
    "something else reads it": image(f"{CONV} b = Add(a, s) y = Add(b, a)"),
    "scaled by position": image(f"{CONV} b = Mul(a, k) y = Add(b, s)", "float[5] k"),
    "scaled by row of a sequence": rows("a = MatMul(x, w) b = Mul(a, l) y = Add(s, b)", "float[7,1] l"),
    "normalised along a sequence": rows(
        "a = MatMul(x, w) b = BatchNormalization(a, g, h, m, var1) y = Add(s, b)",
        "float[7] g, float[7] h, float[7] m, float[7] var1",
    ),
    "scaled by something that is computed": rows(
        "a = MatMul(x, w) r = ReduceMax<axes=[1], keepdims=1>(s) b = Mul(a, r) y = Add(s, b)"
    ),
    "spread over a larger tensor": rows("r = ReduceMax<axes=[1], keepdims=1>(x) a = MatMul(r, w) y = Add(s, a)"),
    "something smaller is added": rows("a = MatMul(x, w) r = ReduceMax<axes=[1], keepdims=1>(s) y = Add(r, a)"),
    "added to itself": image(f"{CONV} y = Add(a, a)"),
    "an output by itself": net(
        "float[2,4] x, float[2,6] s", "float[4,6] w", "a = MatMul(x, w) y = Add(a, s)", "float[2,6] y, float[2,6] a"
    )(),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_sum_changes_by_what_the_rows_change_times_their_scale(name):
    model = Model.of(FOUND[name])
    (layer,) = linear_layers(model)
    (found,) = residual_inputs(model, [layer]).values()
    assert found.tensor == "s"
    rng = np.random.default_rng(0)
    outputs = []
    for _ in range(2):
        feed = {
            "x": rng.standard_normal(model.shape("x")).astype(np.float32),
            "s": np.zeros(model.shape("s"), np.float32),
        }
        outputs.append(open_session(with_outputs(model.proto, ["a", "y"])).run(feed))
    rows_, sums = (
        np.moveaxis(one.astype(np.float64) - two, 1 if layer.node.op == "Conv" else -1, 0).reshape(
            *found.scale.shape[:2], -1
        )
        for one, two in zip(*outputs, strict=True)
    )
    np.testing.assert_allclose(found.scale * rows_, sums, atol=0.26 if name == "rounded" else 1e-5)
    np.testing.assert_allclose(found.before(sums), rows_, rtol=1e-3, atol=0.26 if name == "rounded" else 1e-3)


@pytest.mark.parametrize("name", NOT_FOUND)
def test_nothing_is_found_where(name):
    model = Model.of(NOT_FOUND[name])
    assert not residual_inputs(model, list(linear_layers(model)))


def test_of_two_products_that_are_added_the_later_one_makes_up_for_the_earlier():
    proto = net(
        "float[2,4] x", "float[4,6] w, float[4,6] v", "a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)", "float[2,6] y"
    )()
    model = Model.of(proto)
    first, second = linear_layers(model)
    assert {index: found.tensor for index, found in residual_inputs(model, [first, second]).items()} == {
        second.node.index: "a"
    }


def test_rows_that_are_scaled_by_next_to_nothing_are_left_to_themselves():
    proto = image(f"{CONV} b = Mul(a, k) y = Add(b, s)", "float[6,1,1] k")
    stored = next(tensor for tensor in proto.graph.initializer if tensor.name == "k")
    stored.CopyFrom(numpy_helper.from_array(np.array([1, 0, 1e-6, -2, 0.5, 0.01], np.float32).reshape(6, 1, 1), "k"))
    model = Model.of(proto)
    (found,) = residual_inputs(model, list(linear_layers(model))).values()
    np.testing.assert_allclose(found.before(np.ones((1, 6, 1))).ravel(), [1, 0, 0, -0.5, 2, 100], rtol=1e-6)


def test_what_the_other_summand_has_lost_is_put_back():
    """All is linear here, and the second product sees all that the first one lost."""
    proto = net(
        "float[N,6] x",
        "float[6,8] w1, float[8,5] w2, float[6,5] w3",
        "a = MatMul(x, w1) b = MatMul(a, w2) c = MatMul(x, w3) y = Add(b, c)",
        "float[N,5] y",
    )()
    x, fresh = np.random.default_rng(0).standard_normal((2, 400, 6)).astype(np.float32)

    def outputs(model):
        return open_session(model).run({"x": fresh})[0]

    error = {
        repair: np.abs(
            outputs(spa_onnx.prune(proto, 0.6, data={"x": x}, samples=400, repair=repair).model) - outputs(proto)
        ).max()
        for repair in ("obs", "none")
    }
    assert error["obs"] < 0.05 * error["none"]
