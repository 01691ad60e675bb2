"""Weights as exporters store them: shared, computed, in Constant nodes, listed as graph inputs."""

from nets.build import Build, as_constant_nodes, image, net

_CHAIN = "a = Conv(x, w1, b1) b = Conv(a, w2, b2) y = Conv(b, w3)"
_SIZES = "float[8,3,1,1] w1, float[8] b1, float[6,8,1,1] w2, float[6] b2, float[4,6,1,1] w3"
_INPUT = "float[2,3,4,4] x"

NETS: dict[str, Build] = {
    "weight_through_identity": net(_INPUT, _SIZES, f"v = Identity(w2) {_CHAIN}".replace("(a, w2", "(a, v")),
    "weight_through_transpose": net(
        "float[2,5,6] x",
        "float[8,6] w1, float[8] b1, float[4,8] w2",
        "v = Transpose<perm=[1,0]>(w1) m = MatMul(x, v) a = Add(m, b1) u = Transpose(w2) y = MatMul(a, u)",
    ),
    "weight_through_reshape": net(
        _INPUT,
        "float[8,3,1,1] w1, float[1,8,1,1] b1, float[4,8] w2, int64[4] s = {4, 8, 1, 1}, int64[1] t = {-1}",
        "c = Reshape(b1, t) a = Conv(x, w1, c) v = Reshape(w2, s) y = Conv(a, v)",
    ),
    "weight_through_cast": net(
        _INPUT,
        "float16[8,3,1,1] w1, float16[8] b1, float[4,8,1,1] w2",
        "v = Cast<to=1>(w1) c = Cast<to=1>(b1) a = Conv(x, v, c) y = Conv(a, w2)",
    ),
    "weight_shared": net(
        _INPUT,
        "float[6,3,1,1] w1, float[6,6,1,1] w2, float[4,6,1,1] w3",
        "a = Conv(x, w1) b = Conv(a, w2) c = Tanh(b) d = Conv(c, w2) y = Conv(d, w3)",
    ),
    "weight_shared_by_branches": net(
        "float[2,3,4,4] x, float[2,3,4,4] u",
        "float[6,3,1,1] w1, float[4,6,1,1] w2, float[3,6,1,1] w3",
        "a = Conv(x, w1) b = Conv(u, w1) y = Conv(a, w2) v = Conv(b, w3)",
        outputs="y, v",
    ),
    "weight_tied_embedding": net(
        "int64[2,5] x",
        "float[12,8] table, float[8,8] w1, float[8] b1",
        "e = Gather(table, x) m = MatMul(e, w1) a = Add(m, b1) t = Transpose(table) y = MatMul(a, t)",
    ),
    "bias_shared": net(
        _INPUT,
        _SIZES.replace("float[6] b2, ", "").replace("[6,8", "[8,8").replace("[4,6", "[4,8"),
        _CHAIN.replace("b2", "b1"),
    ),
    "bias_shared_through_identity": net(
        _INPUT,
        _SIZES.replace("float[6] b2, ", "").replace("[6,8", "[8,8").replace("[4,6", "[4,8"),
        f"b2 = Identity(b1) {_CHAIN}",
    ),
    "bias_shared_with_uncut": net(
        _INPUT, "float[8,3,1,1] w1, float[8] b1, float[8,8,1,1] w2", "a = Conv(x, w1, b1) y = Conv(a, w2, b1)"
    ),
    "scale_shared_scalar": image("b = Mul(a, c) d = Conv(b, w2) z = Mul(d, c)", "float c, float[6,8,1,1] w2", into=6),
    "initializers_as_inputs": net(_INPUT, _SIZES, _CHAIN, ir=3, opset=8),
    "initializers_as_inputs_shared_bias": net(
        _INPUT,
        "float[8,3,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[4,8,1,1] w3",
        _CHAIN.replace("b2", "b1"),
        ir=3,
        opset=8,
    ),
    "initializers_as_inputs_reshape": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, int64[2] s = {2, 96}, float[96,5] w2",
        "a = Conv(x, w1) f = Reshape(a, s) y = MatMul(f, w2)",
        ir=3,
        opset=8,
    ),
    "constant_nodes": as_constant_nodes(net(_INPUT, _SIZES, _CHAIN)),
    "constant_nodes_shared_bias": as_constant_nodes(
        net(_INPUT, "float[8,3,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[4,8,1,1] w3", _CHAIN.replace("b2", "b1"))
    ),
    "constant_node_floats": net(
        _INPUT,
        "float[4,3,1,1] w1, float[4,4,1,1] w2",
        "b = Constant<value_floats=[0.5, -1.0, 2.0, 1.5]>() a = Conv(x, w1, b) y = Conv(a, w2)",
    ),
    "shape_literal_shared": net(
        _INPUT,
        "float[6,3,1,1] w1, int64[2] s = {2, 96}, float[96,96] w2, float[96,5] w3, int64[4] back = {2, 6, 4, 4}",
        "a = Conv(x, w1) f = Reshape(a, s) m = MatMul(f, w2) b = Reshape(m, back) g = Reshape(b, s) y = MatMul(g, w3)",
    ),
    "shape_literal_shared_differs": net(
        _INPUT,
        "float[6,3,1,1] w1, float[24,3,1,1] w2, int64[2] s = {2, 96}, float[96,5] w3, float[96,5] w4",
        "a = Conv(x, w1) b = Conv<strides=[2,2]>(x, w2) f = Reshape(a, s) g = Reshape(b, s) p = MatMul(f, w3) "
        "q = MatMul(g, w4) y = Add(p, q)",
    ),
    "constant_nodes_reshape": as_constant_nodes(
        net(
            _INPUT,
            "float[6,3,1,1] w1, int64[2] s = {2, 96}, float[96,5] w2",
            "a = Conv(x, w1) f = Reshape(a, s) y = MatMul(f, w2)",
        )
    ),
    "weight_among_sizes": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, float[6] b1, float[4,6,1,1] w2, float[4] b2, float[3,4,1,1] w3, int64 two = {2}",
        "a = Conv(x, w1, b1) n = Shape(a) k = Gather(n, two) f = Cast<to=1>(k) c = Mul(b2, f) b = Conv(a, w2, c) "
        "y = Conv(b, w3)",
    ),
    "read_inside_branch": image(
        "b = Conv(a, w2) q = If(yes) <then_branch = first () => (float[2,6,6,6] t) { t = Relu(b) }, "
        "else_branch = second () => (float[2,6,6,6] u) "
        "{ u = Neg(b) }> z = Add(q, b)",
        "bool yes = {1}, float[6,8,1,1] w2",
        into=6,
    ),
    "operator_without_rule": image(
        "b = Conv(a, w2) z = CenterCropPad<axes=[2, 3]>(b, s)",
        "float[6,8,1,1] w2, int64[2] s = {6, 6}",
        into=6,
        opset=18,
    ),
}
