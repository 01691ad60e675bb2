"""Multiply-accumulates and parameters of a model, and of a plan before it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import TypeAlias

from spa_onnx.model.facts import Axis
from spa_onnx.model.model import UNKNOWN, Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import float_form
from spa_onnx.model.shapes import Shape

Products: TypeAlias = list[list[Axis]]
"""Axes whose sizes multiply, product by product."""


def _conv(node: Node, model: Model) -> Products:
    """Each output element sums over one filter: W without its first axis."""
    return [[*axes_of(model, node.outputs[0]), *axes_of(model, node.inputs[1])[1:]]]


def _conv_transpose(node: Node, model: Model) -> Products:
    """Each input element spreads over one filter: W without its first axis."""
    return [[*axes_of(model, node.inputs[0]), *axes_of(model, node.inputs[1])[1:]]]


def _gemm(node: Node, model: Model) -> Products:
    return [[*axes_of(model, node.outputs[0]), Axis(node.inputs[0], 0 if node.attributes.get("transA") else 1)]]


def _matmul(node: Node, model: Model) -> Products:
    """Fused ones may swap the last two axes of the left side, and have had its first axis put before those."""
    axes = axes_of(model, node.inputs[0])
    swapped = axes[0] if node.attributes.get("transBatchA") else axes[-2:][0]
    return [[*axes_of(model, node.outputs[0]), swapped if node.attributes.get("transA") else axes[-1]]]


def _attention(node: Node, model: Model) -> Products:
    """Queries times keys, and weights times values; keys of a cache are not counted. Packed queries are as wide as the result."""
    result = axes_of(model, node.outputs[0])
    queries = axes_of(model, node.inputs[0]) if node.input(1) else result
    keys = node.input(1) or node.outputs[0]
    positions = Axis(keys, 2 if len(model.shape(keys) or ()) == 4 else 1)
    return [[*queries, positions], [*result, positions]]


def _projected(node: Node, model: Model) -> Products:
    """Queries, keys and values are made of one input first."""
    scores = [*axes_of(model, node.outputs[0]), Axis(node.inputs[0], 1)]
    return [[*axes_of(model, node.inputs[0]), Axis(node.inputs[1], 1)], scores, scores]


def _recurrent(node: Node, model: Model) -> Products:
    """Every step of every sequence goes through W, and the state before it through R."""
    steps = axes_of(model, node.inputs[0])[:2]
    return [[*steps, *axes_of(model, weight)] for weight in node.inputs[1:3]]


def _of_bits(node: Node, model: Model) -> Products:
    """Every element of the input meets every row of the weight."""
    return [[*axes_of(model, node.inputs[0]), axes_of(model, node.inputs[1])[0]]]


MACS: Mapping[str, Callable[[Node, Model], Products]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
    "com.microsoft.Attention": _projected,
    "com.microsoft.DynamicQuantizeLSTM": _recurrent,
    "com.microsoft.FusedConv": _conv,
    "com.microsoft.FusedGemm": _gemm,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.GroupQueryAttention": _attention,
    "com.microsoft.MatMulNBits": _of_bits,
    "com.microsoft.MultiHeadAttention": _attention,
    "com.microsoft.TransposeMatMul": _matmul,
}
"""Operator -> the axes whose sizes multiply to its multiply-accumulates; several such products add up."""


def axes_of(model: Model, tensor: str) -> list[Axis]:
    """Return all axes of a tensor."""
    return [Axis(tensor, dim) for dim in range(len(model.shape(tensor) or ()))]


def size_of(model: Model, axis: Axis) -> int:
    """Return the size of an axis whose tensor has a known shape."""
    return (model.shape(axis.tensor) or ())[axis.dim]


def multiplications(model: Model) -> Iterator[list[Axis]]:
    """The products of all nodes whose sizes are known, quantised ones as the float operators that they are."""
    for node in model.nodes:
        operator, plain = float_form(node) or (node.op, node)
        shapes = [model.shape(name) for name in (*plain.inputs[:3], *plain.outputs[:1]) if name]
        if operator in MACS and all(shape is not None and UNKNOWN not in shape for shape in shapes):
            yield from MACS[operator](plain, model)


def batch_size(model: Model) -> int:
    """The size that stands for the symbolic batch: the first dimension of the first input, if it is symbolic."""
    for value in model.proto.graph.input:
        if value.name in model.inputs:
            dims = value.type.tensor_type.shape.dim
            symbolic = bool(dims) and dims[0].dim_value < 1
            return max((model.shape(value.name) or (1,))[0], 1) if symbolic else 1
    return 1


def macs(model: Model, shape: Callable[[str], Shape] | None = None) -> int:
    """Multiply-accumulates of one forward pass at batch 1.

    shape: sizes of a tensor where they are others than the model's own, as once a plan has been carried out.
    """
    sizes = shape or (lambda tensor: model.shape(tensor) or ())
    return sum(
        prod(sizes(axis.tensor)[axis.dim] for axis in product) for product in multiplications(model)
    ) // batch_size(model)
