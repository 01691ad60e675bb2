"""Repair of weights that are quantised, belong to recurrent layers or stand behind other operators.

They are stored as they were.
"""

from itertools import islice

import numpy as np
import onnx
import pytest
from nets import NETS
from nets.build import net
from onnx import numpy_helper
from runtimes import needs_runtime

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.layers import linear_layers
from spa_onnx.layers.find import LAYERS
from spa_onnx.model.model import Model
from spa_onnx.operators.recurrent import recurrent_layers

_QDQ = (
    "a = Conv(x, w1, b1) r = Relu(a) q = QuantizeLinear(r, sa, za) d = DequantizeLinear(q, sa, za) "
    "w2 = DequantizeLinear<axis=0>(q2, scale2, z2) "
    "b2 = DequantizeLinear(bias2, sb, zb) b = Conv<pads=[1,1,1,1]>(d, w2, b2) s = Relu(b) y = Conv(s, w3)"
)
CASES = {
    "qdq": net(
        "float[N,3,6,6] x",
        "float[12,3,1,1] w1, float[12] b1, float sa = {0.03}, uint8 za = {0}, int8[10,12,3,3] q2, float[10] scale2, "
        "int8[10] z2 = {0,0,0,0,0,0,0,0,0,0}, float sb = {0.001}, int32[10] bias2, int32 zb = {0}, float[4,10,1,1] w3",
        _QDQ,
        "float[N,4,6,6] y",
    ),
    "qlinear": net(
        "float[N,3,6,6] x",
        "float[12,3,1,1] w1, float[12] b1, float sa = {0.03}, uint8 za = {0}, uint8[10,12,3,3] w2, float s2 = {0.01}, "
        "uint8 z2 = {128}, "
        "int32[10] bias2, float sb = {0.4}, uint8 zb = {100}, float[4,10,1,1] w3",
        "a = Conv(x, w1, b1) r = Relu(a) q = QuantizeLinear(r, sa, za) "
        "b = QLinearConv<pads=[1,1,1,1]>(q, sa, za, w2, s2, z2, sb, zb, bias2) d = DequantizeLinear(b, sb, zb) "
        "y = Conv(d, w3)",
        "float[N,4,6,6] y",
    ),
    "integer": net(
        "float[N,3,6,6] x",
        "float[12,3,1,1] w1, float[12] b1, int8[10,12,3,3] w2, int8 z2 = {0}, float s2 = {0.01}, float[1,10,1,1] b2, "
        "float[4,10,1,1] w3",
        "a = Conv(x, w1, b1) r = Relu(a) q, s, p = DynamicQuantizeLinear(r) "
        "i = ConvInteger<pads=[1,1,1,1]>(q, w2, p, z2) "
        "f = Cast<to=1>(i) t = Mul(s, s2) g = Mul(f, t) b = Add(g, b2) u = Relu(b) y = Conv(u, w3)",
        "float[N,4,6,6] y",
    ),
    "bits": net(
        "float[N,6] x",
        "float[6,96] w1, float[96] b1, uint8[8,6,8] q2, float[8,6] scale2, float[8,5] w3",
        "m = MatMul(x, w1) a = Add(m, b1) r = Relu(a) "
        "b = com.microsoft.MatMulNBits<K=96, N=8, bits=4, block_size=16>(r, q2, scale2) "
        "y = MatMul(b, w3)",
        "float[N,5] y",
        domains=', "com.microsoft": 1',
    ),
    "lstm_input": net(
        "float[N,5,3] x",
        "float[3,16] w1, float[16] b1, float[1,24,16] wi, float[1,24,6] wr, float[1,48] b",
        "t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w1) a = Add(m, b1) r = Relu(a) "
        "h = LSTM<hidden_size=6>(r, wi, wr, b) "
        "y = Transpose<perm=[2,0,1,3]>(h)",
        "float[N,5,1,6] y",
    ),
    "gru_output": net(
        "float[N,5,3] x",
        "float[1,48,3] wi, float[1,48,16] wr, float[1,96] b, int64[1] one = {1}, float[16,7] w2, float[7] b2",
        "t = Transpose<perm=[1,0,2]>(x) h = GRU<hidden_size=16>(t, wi, wr, b) s = Squeeze(h, one) m = MatMul(s, w2) "
        "n = Add(m, b2) y = Transpose<perm=[1,0,2]>(n)",
        "float[N,5,7] y",
    ),
    "behind_transpose": net(
        "float[N,6] x",
        "float[24,6] w1, float[24] b1, float[5,24] w2, float[5] b2",
        "t = Transpose(w1) m = MatMul(x, t) a = Add(m, b1) r = Relu(a) u = Transpose(w2) c = MatMul(r, u) "
        "y = Add(c, b2)",
        "float[N,5] y",
    ),
    "behind_several": net(
        "float[N,3,6,6] x",
        "float[12,3,1,1] w1, float[12] b1, float[9,1,12,10] w2, float[1,10] b2, int64[4] kernel = {10, 12, 3, 3}, "
        "int64[1] first = {0}",
        "a = Conv(x, w1, b1) r = Relu(a) i = Identity(w2) t = Transpose<perm=[3,2,1,0]>(i) w = Reshape(t, kernel) "
        "c = Squeeze(b2, first) "
        "y = Conv<pads=[1,1,1,1]>(r, w, c)",
        "float[N,10,6,6] y",
    ),
    "left": net(
        "float[N,6,4] x",
        "float[24,6] w1, float[24,1] b1, float[5,24] w2",
        "m = MatMul(w1, x) a = Add(m, b1) r = Relu(a) y = MatMul(w2, r)",
        "float[N,5,4] y",
    ),
    "einsum": net(
        "float[N,4,6] x",
        "float[6,8,3] w1, float[8,3] b1, float[8,3,5] w2",
        'm = Einsum<equation="nld,dhk->nlhk">(x, w1) a = Add(m, b1) r = Relu(a) '
        'y = Einsum<equation="nlhk,hkd->nld">(r, w2)',
        "float[N,4,5] y",
    ),
    "fused": net(
        "float[N,3,6,6] x",
        "float[12,3,1,1] w1, float[12] b1, float[10,12,3,3] w2, float[10] b2, float[8,10] w3",
        'r = com.microsoft.FusedConv<activation="Relu">(x, w1, b1) '
        'c = com.microsoft.FusedConv<activation="Relu">(r, w2, b2) '
        "g = GlobalAveragePool(c) f = Flatten(g) y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(f, w3)",
        "float[N,8] y",
        domains=', "com.microsoft": 1',
    ),
}
WEIGHT = {"qdq": "q2", "bits": "q2", "lstm_input": "wi"}
"""The weight that reads the channels that go, where it is not w2."""


def scaled(proto):
    """The net with float weights small enough that recurrent layers do not saturate."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1 and not tensor.name.startswith("scale"):
            tensor.CopyFrom(numpy_helper.from_array(array / np.float32(array.shape[-1]) ** 0.5, tensor.name))
        elif tensor.name.startswith("scale"):
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(0.01), tensor.name))
    return proto


def samples(model, count, seed):
    """Correlated inputs with a mean."""
    rng = np.random.default_rng(seed)
    shape = model.shape("x")[1:]
    mixed = rng.standard_normal((count, 3)) @ np.random.default_rng(99).standard_normal((3, int(np.prod(shape))))
    return (0.5 + mixed.reshape(count, *shape) + 0.3 * rng.standard_normal((count, *shape))).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_repair_lowers_the_error_and_keeps_types(name, tmp_path):
    needs_runtime("conv_integer" if name == "integer" else name)
    proto = scaled(CASES[name]())
    model = Model.of(proto)
    assert WEIGHT.get(name, "w2") in {layer.weight for layer in linear_layers(model)}
    np.savez(tmp_path / "data.npz", x=samples(model, 200, 0))
    held_out = {"x": samples(model, 100, 1)}
    dense = open_session(proto).run(held_out)[0]
    errors = {}
    for repair in ("obs", "none"):
        result = spa_onnx.prune(proto, 0.4, data=tmp_path / "data.npz", repair=repair, criterion="l1", scope="local")
        errors[repair] = np.square(open_session(result.model).run(held_out)[0] - dense).mean()
        stored = {t.name: t.data_type for t in result.model.graph.initializer}
        assert all(stored[t.name] == t.data_type for t in proto.graph.initializer if t.name in stored)
    assert errors["obs"] < 0.9 * errors["none"]


@pytest.mark.parametrize(
    "name",
    sorted(n for n in NETS if n.startswith(("lstm", "gru", "rnn", "qdq", "qlinear", "qgemm", "conv_int", "mat"))),
)
def test_every_weight_becomes_a_matrix_and_back(name):
    model = Model.of(NETS[name]())
    for layer in linear_layers(model):
        weight = model.weight(layer.weight)
        matrix = layer.matrix(weight)
        inputs = layer.inputs
        assert matrix.ndim == 3
        assert matrix.shape[2] == inputs
        assert np.array_equal(layer.tensor(matrix, weight), weight)
        assert np.array_equal(
            model.stored(layer.weight, layer.tensor(matrix, weight)).astype(float),
            model.constant(layer.weight).astype(float),
        )


def test_the_bias_of_a_quantised_convolution_is_repaired_in_its_own_steps():
    model = Model.of(scaled(CASES["qlinear"]()))
    (found,) = (layer for layer in linear_layers(model) if layer.weight == "w2")
    assert (found.bias, found.step, found.zero) == ("bias2", pytest.approx(0.03), 0.0)
    np.testing.assert_allclose(
        model.weight("bias2"), model.constant("bias2") * np.float32(0.03) * np.float32(0.01), rtol=1e-5
    )
    assert np.array_equal(model.stored("bias2", model.weight("bias2")), model.constant("bias2"))


def test_an_input_quantised_while_running_is_read_before_that():
    model = Model.of(CASES["integer"]())
    assert {layer.data for layer in linear_layers(model)} == {"x", "r", "u"}


@pytest.mark.parametrize("form", ["behind_transpose", "behind_several"])
def test_a_weight_behind_other_operators_is_refitted_as_it_would_be_without(form):
    """Channels, weights and biases are those of the same network with its constants as the products read them."""
    proto = scaled(CASES[form]())
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    moved = {layer.weight: layer for layer in linear_layers(Model.of(proto)) if layer.view.movements}
    assert "w2" in moved
    for tensor in plain.graph.initializer:
        if tensor.name in moved:
            array = moved[tensor.name].view.read(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), moved[tensor.name].axis.tensor))
        elif tensor.name == "b2" and tensor.dims[0] == 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[0], "c"))
    nodes = [node for node in plain.graph.node if node.op_type not in ("Transpose", "Identity", "Reshape", "Squeeze")]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    x = samples(Model.of(proto), 100, 0)
    first, second = (spa_onnx.prune(each, 0.4, data={"x": x}) for each in (proto, plain))
    held_out = {"x": samples(Model.of(proto), 20, 1)}
    want, got = (open_session(result.model).run(held_out)[0] for result in (second, first))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "gates", "share"), [("LSTM", 4, 1.0), ("GRU", 3, 0.85), ("RNN", 1, 0.75)])
def test_what_hidden_units_tell_each_other_counts_and_is_refitted(op, gates, share, monkeypatch):
    """A hidden unit is read by the recurrent weights of all others, not only by what comes behind the layer."""
    proto = net(
        "float[20,N,12] x",
        f"float[1,{48 * gates},12] wi, float[1,{48 * gates},48] wr, int64[1] one = {{1}}, float[48,5] w2",
        f"h = {op}<hidden_size=48>(x, wi, wr) s = Squeeze(h, one) y = MatMul(s, w2)",
        "float[20,N,5] y",
    )()
    rng = np.random.default_rng(0)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, scale in (("wi", 0.35), ("wr", 0.17)):
        array = numpy_helper.to_array(stored[name])
        if name == "wr":  # as of a trained layer, whose units stand in for each other
            array = (
                rng.standard_normal((*array.shape[:2], 12)) @ rng.standard_normal((1, 12, 48)) / 12**0.5 + 0.3 * array
            )
        stored[name].CopyFrom(numpy_helper.from_array((array * scale).astype(np.float32), name))
    mixing = rng.standard_normal((12, 12)) / 12**0.5
    x, held_out = (
        (np.cumsum(rng.standard_normal((20, 64, 12)), axis=0) / 3 @ mixing).astype(np.float32) for _ in range(2)
    )
    dense = open_session(proto).run({"x": held_out})[0]
    errors = []
    for states in (True, False):
        if not states:
            monkeypatch.setitem(LAYERS, op, lambda node, model: islice(recurrent_layers(node, model), 1))
        cut = spa_onnx.prune(proto, 0.4, samples=64, data=iter([{"x": x}]), check=False)
        errors.append(np.square(open_session(cut.model).run({"x": held_out})[0] - dense).mean())
    assert errors[0] < share * errors[1]
