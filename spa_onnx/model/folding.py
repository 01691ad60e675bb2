"""Values that the graph computes from shapes: `Shape -> Gather -> Concat -> Reshape` chains, evaluated in numpy.

Every known value carries its origin: for each element, the axes whose sizes it was computed from (none for a literal).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from spa_onnx.model.facts import Axis
from spa_onnx.model.node import Node
from spa_onnx.model.numpy_ops import COMPUTED, NO_ARRAY, SIZED_BY, STRUCTURAL, TOGETHER, Array, slices

Origin: TypeAlias = tuple[frozenset[Axis], ...]

LIMIT = 4096
"""Elements a folded tensor may have: shapes and index lists are short, weights are not."""

LONG = 64
"""Elements from which on all of a computed tensor counts as one: shapes, pads and bounds have a few, whose origins differ."""


@dataclass(frozen=True, slots=True)
class Value:
    """A known tensor and, element by element in row-major order, the axes that its value depends on."""

    array: Array
    origin: Origin

    @property
    def is_literal(self) -> bool:
        """Whether no size of any activation enters it, so that it is a constant of the model."""
        return not any(self.origin)


def literal(array: Array) -> Value:
    """A constant of the model as a value."""
    return Value(array, (frozenset(),) * array.size)


NOTHING = literal(NO_ARRAY)
"""An optional input that is left out."""


def _shape_of(node: Node, shapes: Mapping[str, tuple[int, ...]], *, is_literal: bool) -> list[Value]:
    """Shape and Size of a tensor whose shape is known; what is computed from shapes (pads, say) is never cut, so its own is a literal."""
    shape = shapes.get(node.inputs[0])
    if shape is None or any(size < 0 for size in shape):
        return []
    axes = [frozenset() if is_literal else frozenset({Axis(node.inputs[0], dim)}) for dim in range(len(shape))]
    if node.op == "Size":
        return [Value(np.asarray(np.prod(shape), dtype=np.int64), (frozenset().union(*axes),))]
    window = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return [Value(np.asarray(shape[window], dtype=np.int64), tuple(axes[window]))]


def _moved(node: Node, inputs: list[Value]) -> list[Value]:
    """A structural operator, run once on the values and once on the numbers of the elements."""
    function, moving = STRUCTURAL[node.op]
    arrays = [value.array for value in inputs]
    numbers, pool = list(arrays), list[frozenset[Axis]]()
    for slot in range(*moving.indices(len(arrays))):
        numbers[slot] = np.arange(len(pool), len(pool) + arrays[slot].size).reshape(arrays[slot].shape)
        pool += inputs[slot].origin
    results, places = function(node, arrays), function(node, numbers)
    if not isinstance(results, list):
        results, places = [results], [np.asarray(places)]
    alike = pool[:1] if len(set(pool)) == 1 else None
    origins = [tuple(alike) * p.size if alike else tuple(pool[i] for i in p.ravel().tolist()) for p in places]
    return [Value(np.asarray(r), origin) for r, origin in zip(results, origins, strict=True)]


def _computed(node: Node, inputs: list[Value]) -> list[Value]:
    """An operator that computes: element by element, with broadcasting, unless it is among TOGETHER."""
    result = np.asarray(COMPUTED[node.op](node, [value.array for value in inputs]))
    every = frozenset().union(*(axes for value in inputs for axes in value.origin))
    given = [value for value in inputs if value.array.size]
    if not every or node.op in TOGETHER or result.size > LONG or all(value.array.size == 1 for value in given):
        return [Value(result, (every,) * result.size)]
    places = [
        np.broadcast_to(np.arange(v.array.size).reshape(v.array.shape), result.shape).ravel().tolist() for v in given
    ]
    origins = ([v.origin[i] for v, i in zip(given, row, strict=True)] for row in zip(*places, strict=True))
    return [Value(result, tuple(frozenset().union(*found) for found in origins))]


def fold(
    nodes: Iterable[Node], shapes: Mapping[str, tuple[int, ...]], literals: Mapping[str, Array]
) -> dict[str, Value]:
    """All values that follow from the given shapes and literals: tensor name -> value, the literals included.

    nodes: in topological order. shapes: tensor name -> sizes, negative where unknown. An operator that fails on the
    sizes at hand yields no value; the operators behind it then have none either.
    """
    known = {name: literal(array) for name, array in literals.items()}
    stretched: set[str] = set()  # known, but as long as an axis is large
    for node in nodes:
        if node.op in ("Shape", "Size"):
            name = node.inputs[0]
            made = _shape_of(node, shapes, is_literal=name in known and name not in stretched)
        elif node.op in STRUCTURAL or node.op in COMPUTED:
            if not node.inputs or not all(name in known for name in node.inputs if name):
                continue
            made = _evaluate(node, [known[name] if name else NOTHING for name in node.inputs])
            sized = node.inputs[SIZED_BY[node.op]] if node.op in SIZED_BY else ()
            if stretched.intersection(node.inputs) or not all(known[name].is_literal for name in sized if name):
                stretched.update(node.outputs)
        else:
            continue
        if made and all(value.array.size <= LIMIT for value in made) and not _is_data(node, made[0].array):
            known.update(zip(node.outputs, made, strict=False))
    return known


def _is_data(node: Node, made: Array) -> bool:
    """Whether it fills a tensor with floats along several axes: the first state of a recurrent layer, say, and no list of sizes."""
    return node.op in ("ConstantOfShape", "Expand") and made.dtype.kind == "f" and made.ndim > 1


def _evaluate(node: Node, inputs: list[Value]) -> list[Value]:
    if node.op == "ConstantOfShape" and inputs[0].array.size and np.prod(inputs[0].array.astype(float)) > LIMIT:
        return []
    try:
        with np.errstate(divide="raise", invalid="raise"):
            return _moved(node, inputs) if node.op in STRUCTURAL else _computed(node, inputs)
    except (ValueError, IndexError, KeyError, TypeError, ArithmeticError):
        return []


__all__ = ["NOTHING", "Array", "Origin", "Value", "fold", "literal", "slices"]
