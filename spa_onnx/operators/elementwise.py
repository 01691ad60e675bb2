"""Elementwise operators, with the broadcasting of numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from spa_onnx.model import numpy_ops
from spa_onnx.model.contrib_shapes import like_first, sum_of_inputs
from spa_onnx.model.facts import Axis, Coupling, Fact, Free, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Fold, Moves
from spa_onnx.operators.registry import register
from spa_onnx.operators.zeros import all_but_first, any_input, bounded, every_input, first, power, quotient

UNARY_KEEPING_ZERO = (
    "Asin Asinh Atan Atanh Celu Elu Erf Gelu HardSwish LeakyRelu Mish Relu Selu Shrink Sign Sin Sinh Softsign Swish "
    "Tan Tanh ThresholdedRelu"
).split()
"""y = f(x) with f(0) = 0. Functions that shape arithmetic evaluates are registered separately."""

UNARY_MOVING_ZERO = (
    "Acos Acosh BitwiseNot Cos Cosh Exp HardSigmoid IsInf IsNaN Log Reciprocal Sigmoid Softplus ai.onnx.ml.Binarizer"
).split()
"""y = f(x) with f(0) other than 0."""

SATURATING = frozenset(
    "Atan Ceil Erf Floor HardSigmoid IsInf IsNaN Round Sigmoid Sign Softsign Tanh ai.onnx.ml.Binarizer".split()
)
"""Functions that map a range of inputs to one output, in float at least."""


def broadcast(node: Node, model: Model, inputs: Sequence[str], output: str, ignore: int = 0) -> Iterator[Coupling]:
    """Couple each axis of the inputs with the output axis that it broadcasts to, if both have the same size.

    Args:
        node: The node.
        model: The model.
        inputs: The input tensors.
        output: The output tensor.
        ignore: The number of last axes that are left out.
    """
    out = model.shape(output) or ()
    for name in inputs:
        shape = model.shape(name) or ()
        for back in range(1 + ignore, len(shape) + 1):
            if shape[-back] == out[-back]:
                yield from same(
                    Axis(name, len(shape) - back),
                    Axis(output, len(out) - back),
                    out[-back],
                    f"{node} works element by element",
                )


def unary(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(x[i])."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])


def broadcasting(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(a[i], b[i], ...) with broadcasting."""
    yield from broadcast(node, model, [name for name in node.inputs if name], node.outputs[0])


def cast_like(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = x[i] in the type of the second input, whose shape and values have no effect."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    for dim in range(len(model.shape(node.inputs[1]) or ())):
        yield Free(Axis(node.inputs[1], dim))


def clip_or_dropout(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(x[i]). The bounds of Clip and the ratio of Dropout are scalars; Dropout's mask has the shape of x."""
    for output in node.outputs:
        if output and model.shape(output) is not None:
            yield from broadcast(node, model, [node.inputs[0]], output)


def running_sum(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = sum of x[j] over j <= i along one axis, which is kept whole; all other axes are coupled."""
    x, y = node.inputs[0], node.outputs[0]
    shape, axis = model.shape(x) or (), model.constant(node.inputs[1])
    if axis is None:
        return
    for dim, size in enumerate(shape):
        if dim != int(axis.item()) % len(shape):
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} runs over another axis")


_FUSED_SUMS = ("com.microsoft.BiasGelu", "com.microsoft.FastGelu")


def _fold(function: Callable[..., Any]) -> Fold:
    """Return the fold of an elementwise numpy function."""
    return Fold(numpy_ops.elementwise(function))


for _name in UNARY_KEEPING_ZERO:
    register(_name, coupling=unary, zero=first, saturates=_name in SATURATING)
for _name in UNARY_MOVING_ZERO:
    register(_name, coupling=unary, saturates=_name in SATURATING)
register("com.microsoft.Gelu", "com.microsoft.QuickGelu", coupling=unary, zero=first, shape=like_first())
register("Identity", coupling=unary, zero=first, moves=Moves.IDENTITY, fold=Fold(numpy_ops.identity, slice(0, 1)))
register("Cast", coupling=unary, zero=first, moves=Moves.CAST, fold=Fold(numpy_ops.cast))
register("CastLike", coupling=cast_like, zero=first)
register("Not", coupling=unary, saturates=True, fold=_fold(np.invert))
for _name, _function in (
    ("Abs", np.abs),
    ("Ceil", np.ceil),
    ("Floor", np.floor),
    ("Neg", np.negative),
    ("Round", np.rint),
    ("Sqrt", np.sqrt),
):
    register(_name, coupling=unary, zero=first, saturates=_name in SATURATING, fold=_fold(_function))

register("Sum", "Mean", "BitwiseOr", "BitwiseXor", "Xor", coupling=broadcasting, zero=every_input)
register(*_FUSED_SUMS, coupling=broadcasting, zero=every_input, shape=sum_of_inputs)
register("Add", coupling=broadcasting, zero=every_input, fold=_fold(np.add))
register("Sub", coupling=broadcasting, zero=every_input, fold=_fold(np.subtract))
register("Max", coupling=broadcasting, zero=every_input, fold=Fold(numpy_ops.two_at_a_time(np.maximum)))
register("Min", coupling=broadcasting, zero=every_input, fold=Fold(numpy_ops.two_at_a_time(np.minimum)))
register("Or", coupling=broadcasting, zero=every_input, fold=_fold(np.bitwise_or))
register("Mul", coupling=broadcasting, zero=any_input, fold=_fold(np.multiply))
register("And", coupling=broadcasting, zero=any_input, fold=_fold(np.bitwise_and))
register("BitwiseAnd", coupling=broadcasting, zero=any_input)
register("BitShift", "PRelu", coupling=broadcasting, zero=first)
register("Div", coupling=broadcasting, zero=quotient, fold=Fold(numpy_ops.divide), unmasked=(1,))
register("Mod", coupling=broadcasting, zero=quotient, fold=Fold(numpy_ops.modulo), unmasked=(1,))
register("Pow", coupling=broadcasting, zero=power, fold=Fold(numpy_ops.power), unmasked=(1,))
register("Where", coupling=broadcasting, zero=all_but_first, fold=_fold(np.where))
for _name, _compare in (
    ("Equal", np.equal),
    ("Greater", np.greater),
    ("GreaterOrEqual", np.greater_equal),
    ("Less", np.less),
    ("LessOrEqual", np.less_equal),
):
    register(_name, coupling=broadcasting, saturates=True, fold=_fold(_compare))

register("Clip", coupling=clip_or_dropout, parameters=(1, 2), zero=bounded, saturates=True, fold=Fold(numpy_ops.clip))
register("Dropout", coupling=clip_or_dropout, parameters=(1, 2), zero=first, moves=Moves.DROPOUT)
register("CumSum", coupling=running_sum, parameters=(1,), zero=first)
