"""Consumers: the operators that read a group's channels through a weight, and so can be refitted when some of them go.

A consumer computes Y = W X for every position, with its input unfolded into columns X (inputs, positions) and its weight as a matrix
W (rows, inputs); a grouped convolution is several such products side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from spa_onnx.blas import Matrix
from spa_onnx.facts import Axis
from spa_onnx.fold import Array
from spa_onnx.model import Model
from spa_onnx.node import Node
from spa_onnx.quantised import ADDED, FLOAT_FORMS, OPERANDS, float_form

ROUNDING = frozenset({"DequantizeLinear", "QuantizeLinear", "com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"})
"""Operators between a constant and a product that do no more than round it or undo that."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One product with a constant weight.

    node: the operator in its float form, with the constants behind its weight and bias as inputs. data: the input tensor. weight: the
    constant as its uses name it. axis: the axis of the weight over which the product sums. blocks: products side by side (groups of a
    convolution). window: positions of the kernel that each input channel has. bias: the constant that is added and that may be changed
    for this product's sake, or empty. step, zero: the input tensor holds (number / step + zero).
    """

    node: Node
    data: str
    weight: str
    axis: Axis
    blocks: int
    window: int
    bias: str
    step: float = 1.0
    zero: float = 0.0

    def numbers(self, data: Array) -> Array:
        """What the input tensor stands for."""
        return data if self.step == 1.0 and self.zero == 0.0 else np.asarray((data.astype(np.float32) - self.zero) * self.step)

    def matrix(self, weight: Array) -> Matrix:
        """The weight as float64 (blocks, rows, inputs); inputs count channels first, then positions of the kernel."""
        return LAYOUTS[self.node.op].to_matrix(self, weight.astype(np.float64))

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`: a weight of the shape and type of `like`."""
        return LAYOUTS[self.node.op].to_tensor(self, matrix, like.shape).astype(like.dtype)

    def channel_axis(self) -> Axis:
        """The axis of the input that counts the channels."""
        return LAYOUTS[self.node.op].input_axis(self)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an operator stores its weight: to_matrix and to_tensor are inverses of each other."""

    find: Callable[[Node, Model], Consumer | None]
    to_matrix: Callable[[Consumer, Matrix], Matrix]
    to_tensor: Callable[[Consumer, Matrix, tuple[int, ...]], Matrix]
    input_axis: Callable[[Consumer], Axis]


def consumers(model: Model) -> Iterator[Consumer]:
    """Every product with a constant weight, float or quantised, in the order of the graph.

    Not those in branches and bodies: what these compute cannot be looked at from outside.
    """
    for node in (node for node in model.nodes if not node.inside):
        operator, plain = float_form(node) or (node.op, node)
        if operator in LAYOUTS and len(plain.inputs) > 1:
            held = tuple(_behind(model, name) if slot else name for slot, name in enumerate(plain.inputs))
            found = LAYOUTS[operator].find(replace(plain, op=operator, inputs=held), model)
            if found is not None:
                yield from _read(found, node, model)


def _read(found: Consumer, node: Node, model: Model) -> Iterator[Consumer]:
    """The consumer with an input that is float, or of known steps; none where these are known only while running."""
    added = node.input(ADDED[node.op]) if node.op in ADDED else ""
    found = replace(found, bias=_bias(model, added)) if added else found
    first = next((operand for operand in OPERANDS.get(node.op, ()) if operand.data == 0), None)
    source = model.producer.get(found.data)
    if first is None or node.op not in FLOAT_FORMS:
        yield found
    elif source is not None and source.op == "DynamicQuantizeLinear":
        yield replace(found, data=source.inputs[0])
    elif first.scale >= 0:
        step, zero = (model.constant(node.input(slot)) if node.input(slot) else np.zeros(()) for slot in (first.scale, first.zero))
        if step is not None and zero is not None and step.size == zero.size == 1:
            yield replace(found, step=float(step.item()), zero=float(zero.item()))


def _behind(model: Model, name: str) -> str:
    """The constant that a weight or bias is dequantised from, if nothing else reads it; else the tensor itself."""
    node = model.producer.get(name)
    while node is not None and node.op in ROUNDING and len(model.consumers.get(name, ())) == 1:
        name = node.inputs[0]
        node = model.producer.get(name)
    return name


def _constant(model: Model, name: str) -> bool:
    return bool(name) and model.is_weight(name)


def _bias(model: Model, name: str) -> str:
    """The name, if a constant of this product alone stands behind it: a bias that others share stays."""
    own = _constant(model, name) and name not in model.source and len(model.consumers.get(name, ())) == 1
    return name if own else ""


def _find_conv(node: Node, model: Model) -> Consumer | None:
    weight, shape = node.inputs[1], model.shape(node.inputs[1]) or ()
    groups = int(node.attributes.get("group", 1))
    if not _constant(model, weight) or len(shape) < 3 or shape[1] == 1:
        return None
    return Consumer(node, node.inputs[0], weight, Axis(weight, 1), groups, prod(shape[2:]), _bias(model, node.input(2)))


def _conv_matrix(consumer: Consumer, weight: Matrix) -> Matrix:
    """(M, C/g, k...) -> (g, M/g, C/g * k)."""
    return weight.reshape(consumer.blocks, weight.shape[0] // consumer.blocks, -1)


def _reshaped(_: Consumer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    return matrix.reshape(shape)


def _find_transposed(node: Node, model: Model) -> Consumer | None:
    weight, shape = node.inputs[1], model.shape(node.inputs[1]) or ()
    if not _constant(model, weight) or int(node.attributes.get("group", 1)) > 1:
        return None
    bias = _bias(model, node.input(2)) if prod(shape[2:]) == 1 else ""  # a position that few kernels reach gets but a part of the mean
    return Consumer(node, node.inputs[0], weight, Axis(weight, 0), 1, 1, bias)


def _transposed_matrix(_: Consumer, weight: Matrix) -> Matrix:
    """(C, M, k...) -> (1, M * k, C): every position of the input is spread over M * k outputs."""
    return np.asarray(weight.reshape(weight.shape[0], -1).T[None])


def _transposed_tensor(_: Consumer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    return np.asarray(matrix[0].T.reshape(shape))


def _find_gemm(node: Node, model: Model) -> Consumer | None:
    weight = node.inputs[1]
    if not _constant(model, weight) or node.attributes.get("transA") or node.attributes.get("alpha", 1.0) != 1.0:
        return None
    bias = _bias(model, node.input(2)) if node.attributes.get("beta", 1.0) == 1.0 and len(model.shape(node.input(2)) or ()) == 1 else ""
    return Consumer(node, node.inputs[0], weight, Axis(weight, 1 if node.attributes.get("transB") else 0), 1, 1, bias)


def _gemm_matrix(consumer: Consumer, weight: Matrix) -> Matrix:
    return np.asarray((weight if consumer.axis.dim == 1 else weight.T)[None])


def _gemm_tensor(consumer: Consumer, matrix: Matrix, _: tuple[int, ...]) -> Matrix:
    return np.asarray(matrix[0] if consumer.axis.dim == 1 else matrix[0].T)


def _find_matmul(node: Node, model: Model) -> Consumer | None:
    weight = node.inputs[1]
    if not _constant(model, weight) or len(model.shape(weight) or ()) != 2 or len(model.shape(node.inputs[0]) or ()) < 2:
        return None
    return Consumer(node, node.inputs[0], weight, Axis(weight, 0), 1, 1, _added(node, model))


def _added(node: Node, model: Model) -> str:
    """The bias of a MatMul: a constant vector added right behind it, as exporters write a linear layer."""
    behind = model.consumers.get(node.outputs[0], ())
    if len(behind) != 1 or behind[0].op != "Add" or node.outputs[0] in model.outputs:
        return ""
    columns = (model.shape(node.inputs[1]) or ())[-1]
    return next((name for name in behind[0].inputs if _bias(model, name) and model.shape(name) == (columns,)), "")


def _find_recurrent(node: Node, model: Model) -> Consumer | None:
    weight = node.inputs[1]
    if not _constant(model, weight):
        return None
    return Consumer(node, node.inputs[0], weight, Axis(weight, 2), 1, 1, "")


def _recurrent_matrix(_: Consumer, weight: Matrix) -> Matrix:
    """(directions, gates, I) -> (1, directions * gates, I): all of them read the same input."""
    return weight.reshape(1, -1, weight.shape[2])


def _find_of_bits(node: Node, model: Model) -> Consumer | None:
    weight, block = node.inputs[1], int(node.attributes["block_size"])
    whole = int(node.attributes["K"]) % block == 0
    return Consumer(node, node.inputs[0], weight, Axis(weight, 1), 1, block, "") if _constant(model, weight) and whole else None


def _of_bits_matrix(_: Consumer, weight: Matrix) -> Matrix:
    """(N, blocks, numbers of a block) -> (1, N, K)."""
    return weight.reshape(1, weight.shape[0], -1)


def _second_axis(consumer: Consumer) -> Axis:
    return Axis(consumer.data, 1)


LAYOUTS: Mapping[str, Layout] = {
    "Conv": Layout(_find_conv, _conv_matrix, _reshaped, _second_axis),
    "ConvTranspose": Layout(_find_transposed, _transposed_matrix, _transposed_tensor, _second_axis),
    "Gemm": Layout(_find_gemm, _gemm_matrix, _gemm_tensor, _second_axis),
    "MatMul": Layout(_find_matmul, _gemm_matrix, _gemm_tensor, lambda c: Axis(c.data, -1)),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), Layout(_find_recurrent, _recurrent_matrix, _reshaped, lambda c: Axis(c.data, 2))),
    "com.microsoft.MatMulNBits": Layout(_find_of_bits, _of_bits_matrix, _reshaped, lambda c: Axis(c.data, -1)),
}
"""Operator -> how its weight is a matrix."""
