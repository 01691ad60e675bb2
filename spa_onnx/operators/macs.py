"""Count the multiply-accumulates (MACs) of a model from the `macs` property that its operators register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from spa_onnx.model.facts import Axis
from spa_onnx.model.model import UNKNOWN, Model
from spa_onnx.model.quantisation import float_form
from spa_onnx.model.shapes import Shape
from spa_onnx.operators.registry import OPERATORS, knowledge


def axes_of(model: Model, tensor: str) -> list[Axis]:
    """Return all axes of a tensor."""
    return [Axis(tensor, dim) for dim in range(len(model.shape(tensor) or ()))]


def size_of(model: Model, axis: Axis) -> int:
    """Return the size of an axis whose tensor has a known shape."""
    return (model.shape(axis.tensor) or ())[axis.dim]


def multiplications(model: Model) -> Iterator[list[Axis]]:
    """Yield one list of axes for each product of sizes that counts multiply-accumulates.

    Nodes with unknown sizes are skipped. A quantised node counts as its float form.
    """
    for node in model.nodes:
        operator, plain = float_form(node) or (node.op, node)
        count = knowledge(operator).macs
        shapes = [model.shape(name) for name in (*plain.inputs[:3], *plain.outputs[:1]) if name]
        if count is not None and all(shape is not None and UNKNOWN not in shape for shape in shapes):
            yield from count(plain, model)


def uncounted_operators(model: Model) -> list[str]:
    """Return the unregistered operators that read a weight of two axes or more; their MACs are not counted."""
    operators = {
        node.op: None
        for node in model.nodes
        if node.op not in OPERATORS and any(_is_matrix(model, name) for name in node.inputs if name)
    }
    return list(operators)


def _is_matrix(model: Model, tensor: str) -> bool:
    """Return whether a tensor is a weight with two or more axes that are larger than 1."""
    return model.is_weight(tensor) and sum(size > 1 for size in model.shape(tensor) or ()) > 1


def batch_size(model: Model) -> int:
    """Return the size that replaces a symbolic first axis of the first input; 1 if the axis is not symbolic."""
    for value in model.proto.graph.input:
        if value.name in model.inputs:
            dims = value.type.tensor_type.shape.dim
            symbolic = bool(dims) and dims[0].dim_value < 1
            return max((model.shape(value.name) or (1,))[0], 1) if symbolic else 1
    return 1


def macs(model: Model, shape: Callable[[str], Shape] | None = None) -> int:
    """Return the multiply-accumulates of one forward pass at batch size 1.

    Args:
        model: The model.
        shape: The function that returns the shape of a tensor, for example in the pruned model; the shapes of `model`
            if None.
    """
    sizes = shape or (lambda tensor: model.shape(tensor) or ())
    return sum(
        prod(sizes(axis.tensor)[axis.dim] for axis in product) for product in multiplications(model)
    ) // batch_size(model)
