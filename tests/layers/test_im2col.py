"""Products written as W X + b against onnxruntime."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from packaging.version import Version
from products import ALL, normal

from spa_onnx.execution.session import open_session
from spa_onnx.layers import columns, linear_layers, outputs
from spa_onnx.model.model import Model

OLD_RUNTIME = Version(onnxruntime.__version__) < Version("1.22")
"""Where a stride is longer than the kernel, onnxruntime 1.19 pads SAME by less than nothing, against the standard."""


def product(op, shape, weight, bias, **attributes):
    """(model, its only layer): one node with random constants."""
    nodes = [
        helper.make_node(op, ["x", "w"] + (["b"] if bias is not None and op != "MatMul" else []), ["y"], **attributes)
    ]
    if bias is not None and op == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])]
    constants = [numpy_helper.from_array(weight, "w")] + (
        [numpy_helper.from_array(bias, "b")] if bias is not None else []
    )
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        constants,
    )
    model = Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (found,) = linear_layers(model)
    return model, found


def both(model, found, x, positions, seed):
    """(W X + b, (blocks, rows, columns); the output of onnxruntime)."""
    unfolded = columns(found, found.numbers(x), positions, np.random.default_rng(seed))
    y = found.matrix(model.constant("w")) @ unfolded
    bias = model.constant(found.bias) if found.bias else None
    (output,) = open_session(model.proto).run({"x": x})
    return y if bias is None else y + bias.reshape(len(y), -1, 1), output


def chosen(count, positions, seed):
    """The positions that are drawn."""
    rng = np.random.default_rng(seed)
    return np.arange(count) if count <= positions else np.sort(rng.choice(count, positions, replace=False))


@st.composite
def convolutions(draw):
    rank = draw(st.sampled_from([1, 2]))

    def each(least, most, number=rank):
        return draw(st.lists(st.integers(least, most), min_size=number, max_size=number))

    groups, kernel, dilations = draw(st.sampled_from([1, 1, 2, 3])), each(1, 3), each(1, 2)
    shape = (draw(st.integers(1, 3)), groups * draw(st.integers(2, 3)), *each(2, 7))
    attributes = {"group": groups, "strides": each(1, 3)}
    mode = draw(st.sampled_from(["", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode:
        attributes["auto_pad"] = mode
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        dilations = [1] * rank  # onnxruntime has no others here
        if OLD_RUNTIME:
            assume(all(stride <= size for stride, size in zip(attributes["strides"], kernel, strict=True)))
    attributes["dilations"] = dilations
    pads = each(0, 2, 2 * rank) if mode in ("", "NOTSET") else [0] * (2 * rank)
    if mode in ("", "NOTSET"):
        attributes["pads"] = pads
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if not mode.startswith("SAME"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        assume(all(n + a + b >= r for n, a, b, r in zip(shape[2:], pads[:rank], pads[rank:], reach, strict=True)))
    rows = groups * draw(st.integers(1, 3))
    return (
        shape,
        (rows, shape[1] // groups, *kernel),
        attributes,
        draw(st.booleans()),
        draw(st.sampled_from([1, 4, ALL])),
    )


@settings(max_examples=100, deadline=None)
@given(convolutions(), st.integers(0, 1000))
def test_a_convolution_is_a_product_of_its_columns(case, seed):
    shape, kernel, attributes, biased, positions = case
    model, found = product(
        "Conv", shape, normal(kernel, seed), normal(kernel[0], seed + 1) if biased else None, **attributes
    )
    y, output = both(model, found, normal(shape, seed + 2), positions, seed)
    flat = output.reshape(*output.shape[:2], -1)
    places = chosen(flat.shape[2], positions, seed)
    expected = flat[:, :, places].transpose(1, 0, 2).reshape(y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(convolutions(), st.integers(0, 1000))
def test_outputs_are_taken_where_columns_are(case, seed):
    """Keys say where each sample is looked at."""
    shape, kernel, attributes, _, positions = case
    model, found = product("Conv", shape, normal(kernel, seed), None, **attributes)
    x, keys = normal(shape, seed + 2), np.random.default_rng(seed).integers(0, 2**32, shape[0], np.uint32)
    (output,) = open_session(model.proto).run({"x": x})
    y = found.matrix(model.constant("w")) @ columns(found, found.numbers(x), positions, keys)
    np.testing.assert_allclose(y, outputs(found, output, positions, keys), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 4), (2, 7, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("positions", [ALL, 2])
def test_outputs_of_a_matmul_are_taken_where_columns_are(positions, shape):
    model, found = product("MatMul", shape, normal((4, 6), 0), None)
    x, keys = normal(shape, 2), np.arange(shape[0], dtype=np.uint32) * 12345
    (output,) = open_session(model.proto).run({"x": x})
    y = found.matrix(model.constant("w")) @ columns(found, found.numbers(x), positions, keys)
    np.testing.assert_allclose(y, outputs(found, output, positions, keys), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [ALL, 5])
def test_a_transposed_convolution_with_kernel_one_is_a_product(positions):
    model, found = product("ConvTranspose", (3, 4, 2, 5), normal((4, 6, 1, 1), 0), normal(6, 1))
    y, output = both(model, found, normal((3, 4, 2, 5), 2), positions, 7)
    flat = output.reshape(3, 6, 10)[:, :, chosen(10, positions, 7)]
    np.testing.assert_allclose(y, flat.transpose(1, 0, 2).reshape(y.shape), rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_spreads_each_position():
    weight = normal((4, 6, 2, 3), 0)
    model, found = product("ConvTranspose", (3, 4, 2, 5), weight, None, strides=[2, 3])
    y, output = both(model, found, normal((3, 4, 2, 5), 2), ALL, 0)
    tiles = output.reshape(3, 6, 2, 2, 5, 3).transpose(
        1, 3, 5, 0, 2, 4
    )  # kernels do not overlap: (M, kh, kw, samples, h, w)
    np.testing.assert_allclose(y[0], tiles.reshape(36, 30), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("positions", [ALL, 1])
def test_a_gemm_is_a_product(positions, transposed, biased):
    weight = normal((6, 4) if transposed else (4, 6), 0)
    model, found = product("Gemm", (5, 4), weight, normal(6, 1) if biased else None, transB=transposed)
    y, output = both(model, found, normal((5, 4), 2), positions, 3)
    assert bool(found.bias) == biased
    np.testing.assert_allclose(y[0], output.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (2, 7, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("positions", [ALL, 2])
def test_a_matmul_is_a_product(positions, shape, biased):
    model, found = product("MatMul", shape, normal((4, 6), 0), normal(6, 1) if biased else None)
    y, output = both(model, found, normal(shape, 2), positions, 3)
    assert bool(found.bias) == biased
    rows = chosen(prod(shape[:-1]), positions * shape[0], 3)
    np.testing.assert_allclose(y[0], output.reshape(-1, 6)[rows].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("op", "shape", "size", "attributes"),
    [
        ("Conv", (2, 6, 5), (4, 3, 3), {"group": 2}),
        ("Conv", (2, 6, 5, 5), (4, 6, 3, 2), {}),
        ("ConvTranspose", (2, 6, 5, 5), (6, 4, 3, 2), {}),
        ("Gemm", (2, 6), (6, 4), {}),
        ("Gemm", (2, 6), (4, 6), {"transB": 1}),
        ("MatMul", (2, 3, 6), (6, 4), {}),
    ],
)
def test_matrix_and_tensor_are_inverses(op, shape, size, attributes, dtype):
    weight = normal(size, 0)
    _, found = product(op, shape, weight, None, **attributes)
    weight = weight.astype(dtype)
    matrix = found.matrix(weight)
    assert matrix.dtype == np.float64
    assert matrix.shape[2] == size[found.axis.dim] * found.window
    back = found.tensor(matrix, weight)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, weight)


@pytest.mark.parametrize(
    ("op", "shape", "size", "attributes"),
    [
        ("Conv", (2, 4, 5, 5), (4, 1, 3, 3), {"group": 4}),
        ("ConvTranspose", (2, 4, 5, 5), (4, 2, 3, 3), {"group": 2}),
        ("MatMul", (3, 2, 6), (3, 6, 4), {}),
        ("MatMul", (6,), (6, 4), {}),
        ("Einsum", (2, 6), (6, 4), {"equation": "ab,bc->a"}),
        ("Einsum", (2, 6), (2, 6), {"equation": "ab,ab->a"}),
        ("Einsum", (6, 6), (6, 4), {"equation": "aa,ac->c"}),
        ("Einsum", (2, 6), (6, 4), {"equation": "...b,bc->...c"}),
        ("Einsum", (2, 6), (6, 4), {"equation": "ab,bc"}),
    ],
)
def test_what_is_no_plain_product_is_left_out(op, shape, size, attributes):
    with pytest.raises(ValueError, match="not enough values"):
        product(op, shape, normal(size, 0), None, **attributes)


def test_a_bias_that_cannot_take_up_means_is_none():
    _, spread = product("ConvTranspose", (2, 4, 5, 5), normal((4, 6, 3, 3), 0), normal(6, 1))
    _, scaled = product("Gemm", (2, 4), normal((4, 6), 0), normal(6, 1), beta=0.5)
    assert (spread.bias, scaled.bias) == ("", "")
