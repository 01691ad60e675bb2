"""Operators that work element by element, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spa_onnx.model.facts import Axis, Coupling, Fact, Free, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import rule

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Binarizer BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu com.microsoft.Gelu com.microsoft.QuickGelu"
).split()
"""y = f(x), the same f for every element."""

BROADCASTING = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul "
    "Or Pow PRelu Sub Sum Where Xor com.microsoft.BiasGelu com.microsoft.FastGelu"
).split()
"""y = f(a, b, ...), axes aligned from the last; size 1 is stretched."""


def broadcast(node: Node, model: Model, inputs: Sequence[str], output: str, ignore: int = 0) -> Iterator[Coupling]:
    """Index i of an input's axis meets index i of the output's, counted from the last axis; the last `ignore` are left out."""
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


@rule(*UNARY)
def unary(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(x[i])."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])


@rule(*BROADCASTING)
def broadcasting(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(a[i], b[i], ...) with broadcasting; the outputs' shape is the largest."""
    yield from broadcast(node, model, [name for name in node.inputs if name], node.outputs[0])


@rule("CastLike")
def cast_like(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = x[i] in the type of the second input, of which nothing else matters."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    for dim in range(len(model.shape(node.inputs[1]) or ())):
        yield Free(Axis(node.inputs[1], dim))


@rule("Clip", "Dropout", parameters=(1, 2))
def bounded(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = f(x[i]); the bounds of Clip and the ratio of Dropout are scalars. Dropout's mask has the shape of x."""
    for output in node.outputs:
        if output and model.shape(output) is not None:
            yield from broadcast(node, model, [node.inputs[0]], output)


@rule("CumSum", parameters=(1,))
def running_sum(node: Node, model: Model) -> Iterator[Fact]:
    """y[i] = sum of x up to i along one axis, which must stay whole; every other axis is carried through."""
    x, y = node.inputs[0], node.outputs[0]
    shape, axis = model.shape(x) or (), model.constant(node.inputs[1])
    if axis is None:
        return
    for dim, size in enumerate(shape):
        if dim != int(axis.item()) % len(shape):
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} runs over another axis")
