"""Operators that reduce, rank or normalise along axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spa_onnx.model import numpy_ops
from spa_onnx.model.facts import Axis, Fact, Normalises, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Fold
from spa_onnx.operators.registry import knowledge, register
from spa_onnx.operators.zeros import first


def reduction_axes(node: Node, model: Model) -> tuple[int, ...] | None:
    """Return the non-negative axes that a reduction runs over; None if they are not constant."""
    rank = len(model.shape(node.inputs[0]) or ())
    axes = node.attributes.get("axes")
    if node.input(1):
        constant = model.constant(node.inputs[1])
        if constant is None:
            return None
        axes = constant.ravel().tolist()
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes") else tuple(range(rank))
    return tuple(int(axis) % rank for axis in axes)


def _remaining(node: Node, model: Model, reduced: tuple[int, ...], *, keeps: bool) -> Iterator[Fact]:
    """Couple each axis that is not reduced with its position in each output."""
    x = node.inputs[0]
    place = 0
    for dim, size in enumerate(model.shape(x) or ()):
        if dim not in reduced:
            for output in node.outputs:
                if output:
                    yield from same(Axis(x, dim), Axis(output, place), size, f"{node} reduces another axis")
        place += keeps or dim not in reduced


def reduction(node: Node, model: Model) -> Iterator[Fact]:
    """Y = reduction of x over some axes. Removing indices of these changes the statistic, but not a sum of zeros."""
    reduced = reduction_axes(node, model)
    if reduced is None:
        return
    yield from _remaining(node, model, reduced, keeps=bool(node.attributes.get("keepdims", 1)))
    for dim in reduced:
        yield Normalises(Axis(node.inputs[0], dim), node.name, f"{node.op} reduces over it", knowledge(node.op).sums)


def ranking(node: Node, model: Model) -> Iterator[Fact]:
    """Y = position of the extreme along one axis. That axis must stay, because removal would change the positions."""
    axis = int(node.attributes.get("axis", 0)) % len(model.shape(node.inputs[0]) or ())
    yield from _remaining(node, model, (axis,), keeps=bool(node.attributes.get("keepdims", 1)))


def top_k(node: Node, model: Model) -> Iterator[Fact]:
    """Y = the k largest elements along one axis, and their positions. That axis must stay."""
    axis = int(node.attributes.get("axis", -1)) % len(model.shape(node.inputs[0]) or ())
    yield from _remaining(node, model, (axis,), keeps=True)


def softmax(node: Node, model: Model) -> Iterator[Fact]:
    """Y = exp(x) / sum of exp(x) over `axis`; before opset 13, over all axes from `axis` on.

    These axes must stay, because removing an index would change all others.
    """
    rank = len(model.shape(node.inputs[0]) or ())
    several = model.opset < 13
    axis = int(node.attributes.get("axis", 1 if several else -1)) % rank
    yield from _remaining(node, model, tuple(range(axis, rank)) if several else (axis,), keeps=True)


register("ReduceL1", "ReduceL2", "ReduceSumSquare", coupling=reduction, parameters=(1,), zero=first, sums=True)
register("ReduceMean", coupling=reduction, parameters=(1,), zero=first)
register("ReduceLogSum", "ReduceLogSumExp", coupling=reduction, parameters=(1,))
for _name, _function in (
    ("ReduceMax", np.max),
    ("ReduceMin", np.min),
    ("ReduceProd", np.prod),
    ("ReduceSum", np.sum),
):
    register(
        _name,
        coupling=reduction,
        parameters=(1,),
        zero=first,
        sums=_name == "ReduceSum",
        fold=Fold(numpy_ops.reduction(_function), together=True),
    )
register("ArgMax", coupling=ranking, chooses=True)
register("ArgMin", coupling=ranking, saturates=True)
register("TopK", coupling=top_k, parameters=(1,), saturates=True)
register("Softmax", "Hardmax", coupling=softmax, chooses=True)
register("LogSoftmax", coupling=softmax)
