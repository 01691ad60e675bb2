"""Folding of shape arithmetic: `Shape -> Gather -> Concat -> Reshape` chains are evaluated in numpy.

Every folded value records its origin: for each element, the axes whose sizes it was computed from. The elements of a
literal have no such axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from spa_onnx.model.facts import Axis
from spa_onnx.model.node import Node
from spa_onnx.model.numpy_ops import NO_ARRAY, slices
from spa_onnx.model.traits import Array, Fold, traits

Origin: TypeAlias = tuple[frozenset[Axis], ...]
"""For each element in row-major order, the axes whose sizes it was computed from."""

LIMIT = 4096
"""Largest number of elements of a folded tensor: shapes and index lists are short, weights are not."""

LONG = 64
"""All elements of a computed tensor longer than this share one origin, the union of the origins of its inputs.

Shapes, pads and bounds are shorter, and the origins of their elements differ.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a tensor and its origin.

    Args:
        array: The value.
        origin: For each element in row-major order, the axes whose sizes it was computed from.
    """

    array: Array
    origin: Origin

    @property
    def is_literal(self) -> bool:
        """Whether the value depends on no axis size, so that it is a constant of the model."""
        return not any(self.origin)


def literal(array: Array) -> Value:
    """Return the value of a constant: all its elements have an empty origin."""
    return Value(array, (frozenset(),) * array.size)


NOTHING = literal(NO_ARRAY)
"""The value of an optional input that is left out."""


def _shape_of(node: Node, shapes: Mapping[str, tuple[int, ...]], *, is_literal: bool) -> list[Value]:
    """Evaluate Shape or Size; return no value if a size is unknown.

    The result is a literal if the input is itself the result of shape arithmetic, such as pads: it is never pruned.
    """
    shape = shapes.get(node.inputs[0])
    if shape is None or any(size < 0 for size in shape):
        return []
    axes = [frozenset() if is_literal else frozenset({Axis(node.inputs[0], dim)}) for dim in range(len(shape))]
    if node.op == "Size":
        return [Value(np.asarray(np.prod(shape), dtype=np.int64), (frozenset().union(*axes),))]
    window = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return [Value(np.asarray(shape[window], dtype=np.int64), tuple(axes[window]))]


def _moved(node: Node, fold: Fold, moved: slice, inputs: list[Value]) -> list[Value]:
    """Evaluate an operator that moves elements, once on the values and once on the positions of their origins."""
    arrays = [value.array for value in inputs]
    positions, pool = list(arrays), list[frozenset[Axis]]()
    for slot in range(*moved.indices(len(arrays))):
        positions[slot] = np.arange(len(pool), len(pool) + arrays[slot].size).reshape(arrays[slot].shape)
        pool += inputs[slot].origin
    results, sources = fold.evaluate(node, arrays), fold.evaluate(node, positions)
    if not isinstance(results, list):
        results, sources = [results], [np.asarray(sources)]
    common = pool[:1] if len(set(pool)) == 1 else None
    origins = [tuple(common) * s.size if common else tuple(pool[i] for i in s.ravel().tolist()) for s in sources]
    return [Value(np.asarray(r), origin) for r, origin in zip(results, origins, strict=True)]


def _computed(node: Node, fold: Fold, inputs: list[Value]) -> list[Value]:
    """Evaluate an operator that computes new values; elements of short results have separate origins."""
    result = np.asarray(fold.evaluate(node, [value.array for value in inputs]))
    all_axes = frozenset().union(*(axes for value in inputs for axes in value.origin))
    operands = [value for value in inputs if value.array.size]
    if not all_axes or fold.together or result.size > LONG or all(value.array.size == 1 for value in operands):
        return [Value(result, (all_axes,) * result.size)]
    positions = [
        np.broadcast_to(np.arange(v.array.size).reshape(v.array.shape), result.shape).ravel().tolist() for v in operands
    ]
    origins = ([v.origin[i] for v, i in zip(operands, row, strict=True)] for row in zip(*positions, strict=True))
    return [Value(result, tuple(frozenset().union(*axes) for axes in origins))]


def fold(
    nodes: Iterable[Node],
    shapes: Mapping[str, tuple[int, ...]],
    literals: Mapping[str, Array],
    sizes: Mapping[str, Value] = MappingProxyType({}),
) -> dict[str, Value]:
    """Evaluate the shape arithmetic of a graph.

    An operator that fails has no value, and neither have the operators that depend on it.

    Args:
        nodes: The operators in topological order.
        shapes: Tensor name -> sizes, negative if unknown.
        literals: Constant name -> value.
        sizes: Graph input that holds the size of an axis -> that size.

    Returns:
        Tensor name -> value, including the literals.
    """
    values = {name: literal(array) for name, array in literals.items()} | dict(sizes)
    stretched: set[str] = set()  # tensors with a value whose length is the size of an axis
    for node in nodes:
        rule: Fold | None = None
        if node.op in ("Shape", "Size"):
            name = node.inputs[0]
            outputs = _shape_of(node, shapes, is_literal=name in values and name not in stretched)
        elif (rule := traits(node.op).fold) is not None:
            if not node.inputs or not all(name in values for name in node.inputs if name):
                continue
            outputs = _evaluate(node, rule, [values[name] if name else NOTHING for name in node.inputs])
            sized = () if rule.sized_by is None else node.inputs[rule.sized_by]
            if stretched.intersection(node.inputs) or not all(values[name].is_literal for name in sized if name):
                stretched.update(node.outputs)
        else:
            continue
        if outputs and all(value.array.size <= LIMIT for value in outputs) and not _is_data(rule, outputs[0].array):
            values.update(zip(node.outputs, outputs, strict=False))
    return values


def _is_data(fold: Fold | None, result: Array) -> bool:
    """Return whether a result is a float tensor with several axes, such as the initial state of a recurrent layer."""
    return fold is not None and fold.fills and result.dtype.kind == "f" and result.ndim > 1


def _evaluate(node: Node, fold: Fold, inputs: list[Value]) -> list[Value]:
    """Return the values of the outputs; none if they would be too large or the operator fails."""
    if fold.sized_by == slice(0, 1) and inputs[0].array.size and np.prod(inputs[0].array.astype(float)) > LIMIT:
        return []
    try:
        with np.errstate(divide="raise", invalid="raise"):
            if fold.moved is None:
                return _computed(node, fold, inputs)
            return _moved(node, fold, fold.moved, inputs)
    except (ValueError, IndexError, KeyError, TypeError, ArithmeticError):
        return []


__all__ = ["NOTHING", "Array", "Origin", "Value", "fold", "literal", "slices"]
