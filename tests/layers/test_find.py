"""Layers are found however exporters write them."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from products import ALL, normal

from spa_onnx.execution.session import open_session
from spa_onnx.layers import columns, count_uses, linear_layers
from spa_onnx.model.model import Model

FORMS = {
    "gemm, data transposed": ("[6,5] x", "float[6,4] w", "y = Gemm<transA=1, alpha=2.0>(x, w)", "[5,4]", lambda y: y.T),
    "gemm, both transposed": ("[6,5] x", "float[4,6] w", "y = Gemm<transA=1, transB=1>(x, w)", "[5,4]", lambda y: y.T),
    "gemm with an activation": (
        "[5,6] x",
        "float[6,4] w",
        'y = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=1.0, alpha=0.5>(x, w)',
        "[5,4]",
        lambda y: y.T,
    ),
    "matrix of rank three": (
        "[3,5,6] x",
        "float[1,6,4] w",
        "y = MatMul(x, w)",
        "[3,5,4]",
        lambda y: y.reshape(15, 4).T,
    ),
    "vector": ("[3,5,6] x", "float[6] w", "y = MatMul(x, w)", "[3,5]", lambda y: y.reshape(1, 15)),
    "left of the data": (
        "[3,6,5] x",
        "float[4,6] w",
        "y = MatMul(w, x)",
        "[3,4,5]",
        lambda y: y.transpose(1, 0, 2).reshape(4, 15),
    ),
    "left of a matrix": ("[6,5] x", "float[4,6] w", "y = MatMul(w, x)", "[4,5]", lambda y: y),
    "fused, weight transposed": (
        "[3,5,6] x",
        "float[4,6] w",
        "y = com.microsoft.FusedMatMul<transB=1, alpha=3.0>(x, w)",
        "[3,5,4]",
        lambda y: y.reshape(15, 4).T,
    ),
    "fused, data transposed": (
        "[3,6,5] x",
        "float[6,4] w",
        "y = com.microsoft.FusedMatMul<transA=1>(x, w)",
        "[3,5,4]",
        lambda y: y.reshape(15, 4).T,
    ),
    "fused, left": (
        "[3,6,5] x",
        "float[6,4] w",
        "y = com.microsoft.FusedMatMul<transA=1>(w, x)",
        "[3,4,5]",
        lambda y: y.transpose(1, 0, 2).reshape(4, 15),
    ),
    "fused convolution": (
        "[2,6,5,5] x",
        "float[4,6,3,3] w",
        'y = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[1.0], pads=[1,1,1,1]>(x, w)',
        "[2,4,5,5]",
        lambda y: y.transpose(1, 0, 2, 3).reshape(4, 50),
    ),
    "einsum": (
        "[3,5,6] x",
        "float[6,4] w",
        'y = Einsum<equation="abc,cd->abd">(x, w)',
        "[3,5,4]",
        lambda y: y.reshape(15, 4).T,
    ),
    "einsum into heads": (
        "[3,5,6] x",
        "float[6,2,4] w",
        'y = Einsum<equation="abc,cde->aebd">(x, w)',
        "[3,4,5,2]",
        lambda y: y.transpose(3, 1, 0, 2).reshape(8, 15),
    ),
    "einsum over heads": (
        "[3,5,2,4] x",
        "float[2,4,7] w",
        'y = Einsum<equation="abhd,hde->abe">(x, w)',
        "[3,5,7]",
        lambda y: y.reshape(15, 7).T,
    ),
    "einsum, weight first": (
        "[3,2,5,4] x",
        "float[7,4,2] w",
        'y = Einsum<equation="hde,aebd->abh">(w, x)',
        "[3,5,7]",
        lambda y: y.reshape(15, 7).T,
    ),
    "behind a Transpose": ("[5,6] x", "float[4,6] w", "t = Transpose(w) y = MatMul(x, t)", "[5,4]", lambda y: y.T),
    "behind a Reshape": (
        "[5,6] x",
        "float[2,3,4] w, int64[2] s = {6, 4}",
        "t = Reshape(w, s) y = MatMul(x, t)",
        "[5,4]",
        lambda y: y.T,
    ),
    "behind several": (
        "[2,6,5,5] x",
        "float[6,3,4,3] w, int64[1] last = {-1}",
        (
            "i = Identity(w) t = Transpose<perm=[2,0,3,1]>(i) u = Unsqueeze(t, last) s = Squeeze(u, last) "
            "c = Cast<to=1>(s) y = Conv(x, c)"
        ),
        "[2,4,3,3]",
        lambda y: y.transpose(1, 0, 2, 3).reshape(4, 18),
    ),
}
"""Name -> (input, constants, nodes, output, what makes (rows, columns) of it)."""


@pytest.mark.parametrize("name", FORMS)
def test_however_a_product_is_written_it_is_one_of_its_columns(name):
    x, constants, nodes, made, arrange = FORMS[name]
    proto = net(f"float{x}", constants, nodes, f"float{made} y", domains=', "com.microsoft": 1')()
    model = Model.of(proto)
    (found,) = linear_layers(model)
    data, weight = normal(model.shape("x"), 1), model.weight(found.weight)
    numbers = found.numbers(data)
    y = found.matrix(weight) @ columns(found, numbers, ALL, np.arange(len(numbers), dtype=np.uint32))
    (output,) = open_session(proto).run({"x": data})
    np.testing.assert_allclose(y.reshape(-1, y.shape[2]), arrange(output), rtol=1e-4, atol=1e-5)
    matrix = found.matrix(weight)
    np.testing.assert_allclose(found.tensor(matrix, weight), weight, rtol=1e-6)
    assert matrix.shape[2] == found.inputs


@pytest.mark.parametrize(
    ("nodes", "used"),
    [
        ("t = Transpose(w) y = MatMul(x, t) z = Relu(x)", 1),
        ("t = Transpose(w) y = MatMul(x, t) z = Relu(t)", 2),
        ("t = Transpose(w) y = MatMul(x, t) z = Relu(w)", 2),
        ("t = Identity(w) y = MatMul(x, w) z = MatMul(t, t)", 3),
        ("z = Identity(w) y = MatMul(x, w)", 2),
        ("t = Relu(w) y = MatMul(x, t) z = Relu(x)", 1),
    ],
)
def test_a_constant_is_used_wherever_its_numbers_go(nodes, used):
    model = Model.of(net("float[5,6] x", "float[6,6] w", nodes, "float[?,6] y, float[?,6] z")())
    assert count_uses(model, "w") == used
    (first, *_) = [found.weight for found in linear_layers(model)] or [""]
    assert first == ("" if "Relu(w) y" in nodes else "w")


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_recurrent_layer_is_two_products(direction):
    """With an identity for its activation every step is W x + R h, h the state of the step before."""
    count = 2 if direction == "bidirectional" else 1
    names, ones, zeros = (str([each] * count).replace("'", '"') for each in ("Affine", 1.0, 0.0))
    activations = f"activations={names}, activation_alpha={ones}, activation_beta={zeros}"
    nodes = f'y = RNN<hidden_size=4, direction="{direction}", {activations}>(x, w, r)'
    proto = net("float[5,3,6] x", f"float[{count},4,6] w, float[{count},4,4] r", nodes, f"float[5,{count},3,4] y")()
    model = Model.of(proto)
    x = normal(model.shape("x"), 0)
    (y,) = open_session(proto).run({"x": x})
    forward, backward = linear_layers(model)
    assert (forward.data, backward.data, backward.blocks) == ("x", "y", count)
    made = {}
    for each, data in ((forward, x), (backward, y)):
        weight = model.weight(each.weight)
        seen = columns(each, each.numbers(data), ALL, np.arange(3, dtype=np.uint32))
        made[each.weight] = (
            (each.matrix(weight) @ seen).reshape(count, 4, 3, 5).transpose(3, 0, 2, 1)
        )  # (time, directions, batch, H)
        np.testing.assert_array_equal(each.tensor(each.matrix(weight), weight), weight)
    for number in range(count):
        h, wx, rh = (each[:: -1 if number else 1, number] for each in (y, made["w"], made["r"]))
        np.testing.assert_allclose(h[1:], wx[1:] + rh[:-1], rtol=1e-3, atol=1e-3 * np.abs(h).max())


def test_a_product_of_three_operands_is_left_out():
    proto = net("float[2,6] x, float[4] s", "float[6,4] w", 'y = Einsum<equation="ab,bc,c->ac">(x, w, s)')()
    assert list(linear_layers(Model.of(proto))) == []
