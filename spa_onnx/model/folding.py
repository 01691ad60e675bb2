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
from spa_onnx.model.numpy_ops import NO_ARRAY, slices
from spa_onnx.model.traits import Array, Fold, traits

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


def _moved(node: Node, fold: Fold, moved: slice, inputs: list[Value]) -> list[Value]:
    """Evaluate an operator that moves elements, once on the values and once on the numbers of the elements."""
    arrays = [value.array for value in inputs]
    numbers, pool = list(arrays), list[frozenset[Axis]]()
    for slot in range(*moved.indices(len(arrays))):
        numbers[slot] = np.arange(len(pool), len(pool) + arrays[slot].size).reshape(arrays[slot].shape)
        pool += inputs[slot].origin
    results, places = fold.evaluate(node, arrays), fold.evaluate(node, numbers)
    if not isinstance(results, list):
        results, places = [results], [np.asarray(places)]
    alike = pool[:1] if len(set(pool)) == 1 else None
    origins = [tuple(alike) * p.size if alike else tuple(pool[i] for i in p.ravel().tolist()) for p in places]
    return [Value(np.asarray(r), origin) for r, origin in zip(results, origins, strict=True)]


def _computed(node: Node, fold: Fold, inputs: list[Value]) -> list[Value]:
    """Evaluate an operator that computes: element by element, with broadcasting, unless all elements count together."""
    result = np.asarray(fold.evaluate(node, [value.array for value in inputs]))
    every = frozenset().union(*(axes for value in inputs for axes in value.origin))
    given = [value for value in inputs if value.array.size]
    if not every or fold.together or result.size > LONG or all(value.array.size == 1 for value in given):
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
        rule: Fold | None = None
        if node.op in ("Shape", "Size"):
            name = node.inputs[0]
            made = _shape_of(node, shapes, is_literal=name in known and name not in stretched)
        elif (rule := traits(node.op).fold) is not None:
            if not node.inputs or not all(name in known for name in node.inputs if name):
                continue
            made = _evaluate(node, rule, [known[name] if name else NOTHING for name in node.inputs])
            sized = () if rule.sized_by is None else node.inputs[rule.sized_by]
            if stretched.intersection(node.inputs) or not all(known[name].is_literal for name in sized if name):
                stretched.update(node.outputs)
        else:
            continue
        if made and all(value.array.size <= LIMIT for value in made) and not _is_data(rule, made[0].array):
            known.update(zip(node.outputs, made, strict=False))
    return known


def _is_data(fold: Fold | None, made: Array) -> bool:
    """Whether a tensor is filled with floats along several axes: the first state of a recurrent layer, not a list of sizes."""
    return fold is not None and fold.fills and made.dtype.kind == "f" and made.ndim > 1


def _evaluate(node: Node, fold: Fold, inputs: list[Value]) -> list[Value]:
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
