"""Weights that the graph computes from constants alone are stored as constants when a model is opened."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from nets.build import Build, as_constant_nodes, net

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.model.computed_weights import computed_weights
from spa_onnx.model.model import graph_constants, parameters
from spa_onnx.model.source import open_source


def convolutions(weight: str, weights: str, **options) -> Build:
    """Two 1-D convolutions whose weights `W1` and `W2` are computed by `weight`, a text with `{}` for the number."""
    return net(
        "float[N,6,20] x",
        f"float[24,6,3] v1, float[4,24,3] v2, {weights}",
        f"{weight.replace('{}', '1')} {weight.replace('{}', '2')} "
        "a = Conv<pads=[1,1]>(x, W1) b = LeakyRelu(a) y = Conv<pads=[1,1]>(b, W2)",
        **options,
    )


NETS: dict[str, Build] = {
    "weight_norm": convolutions(
        "n{} = ReduceL2<axes=[1,2], keepdims=1>(v{}) u{} = Div(v{}, n{}) W{} = Mul(u{}, g{})",
        "float[24,1,1] g1, float[4,1,1] g2",
    ),
    "weight_norm_over_axes_given_as_input": convolutions(
        "q{} = Mul(v{}, v{}) s{} = ReduceSum(q{}, axes) n{} = Sqrt(s{}) u{} = Div(g{}, n{}) W{} = Mul(v{}, u{})",
        "float[24,1,1] g1, float[4,1,1] g2, int64[2] axes = {1,2}",
    ),
    "weight_standardisation": convolutions(
        "m{} = ReduceMean<axes=[1,2]>(v{}) d{} = Sub(v{}, m{}) q{} = Mul(d{}, d{}) r{} = ReduceMean<axes=[1,2]>(q{}) "
        "t{} = Add(r{}, e) s{} = Sqrt(t{}) W{} = Div(d{}, s{})",
        "float[1] e = {0.00001}",
    ),
    "spectral_norm": convolutions(
        "f{} = Flatten(v{}) h{} = MatMul(l{}, f{}) k{} = ReduceL2<keepdims=0>(h{}) W{} = Div(v{}, k{})",
        "float[1,24] l1, float[1,4] l2",
    ),
    "low_rank_update": convolutions(
        "p{} = MatMul(a{}, b{}) r{} = Reshape(p{}, s{}) W{} = Add(v{}, r{})",
        "float[24,2] a1, float[2,18] b1, float[4,2] a2, float[2,72] b2, int64[3] s1 = {24,6,3}, int64[3] s2 = {4,24,3}",
    ),
    "softplus": convolutions("W{} = Softplus(v{})", "float[1] unused"),
    "repeated_kernel": net(
        "float[N,3,12,12] x",
        "float[24,3,3,3] w1, float[1,1,3,3] k, float[5,24,1,1] w2, int64[4] times = {24,1,1,1}",
        "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) K = Tile(k, times) d = Conv<group=24, strides=[2,2]>(b, K) "
        "y = Conv(d, w2)",
    ),
    "repeated_and_scaled_kernel": net(
        "float[N,3,12,12] x",
        "float[24,3,3,3] w1, float[1,1,3,3] k, float[24,1,1,1] s, float[5,24,1,1] w2",
        "shape = Constant<value_ints=[24,1,3,3]>() a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) e = Expand(k, shape) "
        "t = ReduceSum(e) u = Div(e, t) K = Mul(u, s) d = Conv<group=24, strides=[2,2]>(b, K) y = Conv(d, w2)",
    ),
    "old_file": convolutions(
        "n{} = ReduceL2<axes=[1,2], keepdims=1>(v{}) u{} = Div(v{}, n{}) W{} = Mul(u{}, g{})",
        "float[24,1,1] g1, float[4,1,1] g2",
        ir=3,
        opset=9,
    ),
}
NETS["in_constant_nodes"] = as_constant_nodes(NETS["weight_norm"])


@pytest.mark.parametrize("name", NETS)
def test_weights_computed_from_constants_are_cut_like_any_other(name):
    proto = NETS[name]()
    before = proto.SerializeToString()
    result = spa_onnx.prune(proto, ratio=0.5, criterion="l1")
    assert proto.SerializeToString() == before
    assert {cause for *_, cause in result.report.pinned} <= {"graph input", "graph output"}
    assert result.report.params[1] < 0.6 * result.report.params[0]
    assert result.report.validation.gap < 1e-4
    left = set(graph_constants(result.model.graph))
    assert left <= {"W1", "W2", "K", "w1", "w2", "unused"}
    assert all(set(node.input) <= left | set("xabdy") for node in result.model.graph.node if node.op_type == "Conv")


@pytest.mark.parametrize("name", NETS)
def test_a_computed_weight_has_the_value_that_the_graph_computes(name):
    proto = NETS[name]()
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (want,), (got,) = (open_session(model).run({"x": x}) for model in (proto, open_source(proto).proto))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_calibration_refits_computed_weights():
    result = spa_onnx.prune(NETS["weight_norm"](), ratio=0.5, samples=32)
    assert result.plan["repaired"]
    assert result.report.params[1] < result.report.params[0]


def test_a_plan_lists_computed_weights_apart_and_can_be_applied(tmp_path):
    onnx.save(NETS["repeated_kernel"](), tmp_path / "m.onnx")
    result = spa_onnx.prune(tmp_path / "m.onnx", ratio=0.5, criterion="l1")
    assert [entry["source"] for entry in result.plan["tensors"]] == ["w1", "w2"]
    (entry,) = result.plan["computed"]
    assert (entry["name"], entry["source"], entry["shape"]) == ("K", "K", [24, 1, 3, 3])
    (tmp_path / "plan.json").write_text(json.dumps(result.plan))
    again = spa_onnx.apply_plan(tmp_path / "m.onnx", spa_onnx.read_plan(tmp_path / "plan.json"))
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_plan_without_computed_weights_has_no_such_list():
    proto = net("float[N,6] x", "float[6,8] w1, float[8,3] w2", "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)")()
    assert "computed" not in spa_onnx.prune(proto, ratio=0.5, criterion="l1").plan


# --- what stays as it is ---------------------------------------------------------------------------------------------

KEPT: dict[str, str] = {
    "moved": "t = Transpose<perm=[1,0]>(v) c = Cast<to=1>(t) r = Reshape(c, shape) w = Identity(r)",
    "expanded": "e = Expand(v, whole) w = Transpose<perm=[1,0]>(e)",
    "joined": "a, b = Split<axis=0>(v) c = Concat<axis=0>(b, a) w = Transpose<perm=[1,0]>(c)",
    "dequantised": "d = DequantizeLinear(i, scale) n = ReduceL2<axes=[0]>(d) w = Div(d, n)",
    "random": "r = RandomNormalLike<seed=1.0>(v) s = Add(r, v) w = Transpose<perm=[1,0]>(s)",
    "unknown": "s = mine.Scaled(v) w = Transpose<perm=[1,0]>(s)",
    "not_finite": "z = Sub(v, v) d = Div(v, z) w = Transpose<perm=[1,0]>(d)",
    "too_large": "t = Tile(v, often) s = ReduceMax<axes=[2,3,4,5]>(t) q = Squeeze(s, last) "
    "w = Transpose<perm=[1,0]>(q)",
    "whole_numbers": "n = Mul(j, j) c = Cast<to=1>(n) w = Transpose<perm=[1,0]>(c)",
}
"""Nodes that make `w` (6, 8) of `v` (8, 6)."""


@pytest.mark.parametrize("name", KEPT)
def test_other_constants_are_left_to_the_graph(name):
    proto = net(
        "float[N,6] x",
        "float[8,6] v, int8[6,8] i, int64[8,6] j, float scale, float[8,3] w2, int64[2] shape = {6,8}, "
        "int64[2] whole = {8,6}, int64[6] often = {1,1,30000,30000,30000,30000}, int64[4] last = {2,3,4,5}",
        f"{KEPT[name].replace('Tile(v', 'Tile(v6')} a = MatMul(x, w) b = Relu(a) y = MatMul(b, w2)".replace(
            "t = Tile", "ones = Constant<value_ints=[8,6,1,1,1,1]>() v6 = Reshape(v, ones) t = Tile"
        ),
        domains=', "mine": 1',
    )
    assert computed_weights(proto()) == {}


def test_a_weight_that_is_a_graph_output_is_left_to_the_graph():
    proto = NETS["weight_norm"]()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("W1", onnx.TensorProto.FLOAT, [24, 6, 3]))
    assert set(computed_weights(proto)) == {"W2"}


def test_what_a_constant_that_a_user_may_replace_is_multiplied_with_is_computed_and_the_product_is_not():
    proto = NETS["weight_norm"]()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("g1", onnx.TensorProto.FLOAT, [24, 1, 1]))
    assert set(computed_weights(proto)) == {"u1", "W2"}


def test_constants_that_are_read_elsewhere_stay():
    proto = net(
        "float[N,6] x, float[N,8] z",
        "float[6,8] v, float[8,3] w2",
        "n = ReduceL2<axes=[0]>(v) w = Div(v, n) a = MatMul(x, w) b = Relu(a) c = MatMul(b, w2) "
        "t = Transpose<perm=[1,0]>(v) d = MatMul(z, t) y = Identity(c)",
        "y, d",
    )()
    assert set(graph_constants(open_source(proto).proto.graph)) == {"v", "w", "w2"}


def test_a_weight_much_larger_than_its_constants_is_left_to_the_graph():
    """An outer product of 600 * 600 floats, of two vectors, takes more than a megabyte."""
    outer = net(
        "float[N,600] x",
        "float[600,1] c, float[1,600] r, float[600,3] w2",
        "p = Exp(c) w = Mul(p, r) a = MatMul(x, w) b = Relu(a) y = MatMul(b, w2)",
    )()
    assert computed_weights(outer) == {}
    assert open_source(outer).proto is outer


def test_a_weight_inside_a_branch_may_be_computed_outside():
    proto = net(
        "float[N,6] x, bool flag",
        "float[6,8] v, float[1,8] g, float[8,3] w2",
        "n = ReduceL2<axes=[0]>(v) u = Div(v, n) w = Mul(u, g) c = If(flag) <"
        "then_branch = t () => (float[N,8] o) { e = MatMul(x, w) o = Relu(e) }, "
        "else_branch = f () => (float[N,8] p) { h = MatMul(x, w) p = Tanh(h) }> y = MatMul(c, w2)",
    )()
    source = open_source(proto)
    assert source.computed == {"w"}
    assert parameters(source.proto) == 6 * 8 + 8 * 3
    assert spa_onnx.prune(proto, ratio=0.5, criterion="l1").report.validation.gap < 1e-4
