"""The operators of shape arithmetic, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.model.node import Node

Array: TypeAlias = NDArray[Any]

NUMPY_TYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}

NO_ARRAY: Array = np.zeros(0, np.int64)
"""What stands for an optional input that is left out: the operators here take it for an empty list."""


def _axes(node: Node, arrays: Sequence[Array]) -> tuple[int, ...] | None:
    """The `axes` of Squeeze, Unsqueeze and Reduce*: an attribute in old operator sets, an input in new ones; None for all axes."""
    axes = arrays[1].ravel().tolist() if len(arrays) > 1 else node.attributes.get("axes", ())
    return tuple(int(a) for a in axes) or None


def _unsqueeze(node: Node, arrays: Sequence[Array]) -> Array:
    axes = _axes(node, arrays) or ()
    return np.expand_dims(arrays[0], axes)


def _slice(node: Node, arrays: Sequence[Array]) -> Array:
    index = [slice(None)] * arrays[0].ndim
    for axis, start, end, step in slices(node, arrays[1:]):
        index[axis % arrays[0].ndim] = slice(start, None if step < 0 and end < -arrays[0].shape[axis] else end, step)
    return arrays[0][tuple(index)]


def slices(node: Node, parameters: Sequence[Array | None]) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) of a Slice as written, from its attributes (opset < 10) or its constant inputs."""
    if "starts" in node.attributes:
        starts, ends = list(node.attributes["starts"]), list(node.attributes["ends"])
        axes = list(node.attributes.get("axes", range(len(starts))))
        return [(int(a), int(s), int(e), 1) for a, s, e in zip(axes, starts, ends, strict=True)]
    given = [[] if p is None else [int(v) for v in p.ravel()] for p in parameters] + [[], []]
    starts, ends, axes, steps = given[:4]
    axes = axes or list(range(len(starts)))
    return list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))


def _split(node: Node, arrays: Sequence[Array]) -> list[Array]:
    axis = int(node.attributes.get("axis", 0))
    sizes = arrays[1].tolist() if len(arrays) > 1 else list(node.attributes.get("split", ()))
    if not sizes:  # equal parts, the last of which may be smaller
        sizes = [-(-arrays[0].shape[axis] // len(node.outputs))] * len(node.outputs)
    return np.split(arrays[0], np.cumsum(sizes)[:-1], axis)


def _reshape(_: Node, arrays: Sequence[Array]) -> Array:
    shape = [arrays[0].shape[i] if s == 0 else int(s) for i, s in enumerate(arrays[1])]
    return arrays[0].reshape(shape)


def _divide(_: Node, arrays: Sequence[Array]) -> Array:
    """ONNX Div truncates integers towards zero."""
    a, b = arrays
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _clip(node: Node, arrays: Sequence[Array]) -> Array:
    """Bounds are attributes before opset 11, then inputs that may be left out."""
    given = [*arrays[1:], NO_ARRAY, NO_ARRAY]
    low, high = (
        node.attributes.get(name, bound if bound.size else None)
        for name, bound in zip(("min", "max"), given, strict=False)
    )
    return arrays[0] if low is None and high is None else np.asarray(np.clip(arrays[0], low, high), arrays[0].dtype)


def _one_hot(node: Node, arrays: Sequence[Array]) -> Array:
    index, depth, values = arrays
    places = np.arange(int(depth.item())) == np.expand_dims(index % int(depth.item()), -1)
    return np.moveaxis(np.where(places, values[1], values[0]), -1, int(node.attributes.get("axis", -1)))


def _constant_of_shape(node: Node, arrays: Sequence[Array]) -> Array:
    fill = np.asarray(node.attributes.get("value", np.float32(0.0)))
    return np.full(arrays[0].astype(int).tolist(), fill.ravel()[0], dtype=fill.dtype)


Fold: TypeAlias = Callable[[Node, Sequence[Array]], "Array | list[Array]"]


def _reduction(function: Callable[..., Any]) -> Fold:
    def run(node: Node, arrays: Sequence[Array]) -> Array:
        axes = _axes(node, arrays)
        if axes is None and node.attributes.get("noop_with_empty_axes"):
            return arrays[0]
        return np.asarray(function(arrays[0], axis=axes, keepdims=bool(node.attributes.get("keepdims", 1))))

    return run


STRUCTURAL: dict[str, tuple[Fold, slice]] = {
    "Identity": (lambda _, a: a[0], slice(0, 1)),
    "Gather": (lambda n, a: np.take(a[0], a[1].astype(np.int64), axis=int(n.attributes.get("axis", 0))), slice(0, 1)),
    "Concat": (lambda n, a: np.concatenate(a, axis=int(n.attributes["axis"])), slice(0, None)),
    "Slice": (_slice, slice(0, 1)),
    "Squeeze": (lambda n, a: np.squeeze(a[0], _axes(n, a)), slice(0, 1)),
    "Unsqueeze": (_unsqueeze, slice(0, 1)),
    "Reshape": (_reshape, slice(0, 1)),
    "Transpose": (lambda n, a: np.transpose(a[0], n.attributes.get("perm")), slice(0, 1)),
    "Split": (_split, slice(0, 1)),
    "Expand": (lambda _, a: a[0] * np.ones(a[1].tolist(), a[0].dtype), slice(0, 1)),
    "Tile": (lambda _, a: np.tile(a[0], a[1].tolist()), slice(0, 1)),
}
"""Operators that only move elements, with the inputs whose elements they move."""

COMPUTED: dict[str, Fold] = {
    "Cast": lambda n, a: a[0].astype(NUMPY_TYPES[n.attributes["to"]]),
    "Add": lambda _, a: np.asarray(a[0] + a[1]),
    "Sub": lambda _, a: np.asarray(a[0] - a[1]),
    "Mul": lambda _, a: np.asarray(a[0] * a[1]),
    "Div": _divide,
    "Mod": lambda n, a: np.asarray((np.fmod if n.attributes.get("fmod") else np.mod)(a[0], a[1])),
    "Abs": lambda _, a: np.asarray(np.abs(a[0])),
    "Clip": _clip,
    "Neg": lambda _, a: np.asarray(-a[0]),
    "Floor": lambda _, a: np.asarray(np.floor(a[0])),
    "Ceil": lambda _, a: np.asarray(np.ceil(a[0])),
    "Round": lambda _, a: np.asarray(np.rint(a[0])),
    "Sqrt": lambda _, a: np.asarray(np.sqrt(a[0])),
    "Pow": lambda _, a: np.asarray(np.power(a[0], a[1]), dtype=a[0].dtype),
    "Max": lambda _, a: reduce(np.maximum, a),
    "Min": lambda _, a: reduce(np.minimum, a),
    "Equal": lambda _, a: np.asarray(a[0] == a[1]),
    "Greater": lambda _, a: np.asarray(a[0] > a[1]),
    "Less": lambda _, a: np.asarray(a[0] < a[1]),
    "GreaterOrEqual": lambda _, a: np.asarray(a[0] >= a[1]),
    "LessOrEqual": lambda _, a: np.asarray(a[0] <= a[1]),
    "And": lambda _, a: np.asarray(a[0] & a[1]),
    "Or": lambda _, a: np.asarray(a[0] | a[1]),
    "Not": lambda _, a: np.asarray(~a[0]),
    "Where": lambda _, a: np.where(a[0], a[1], a[2]),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "Range": lambda _, a: np.arange(a[0].item(), a[1].item(), a[2].item(), dtype=a[0].dtype),
    "ConstantOfShape": _constant_of_shape,
    "OneHot": _one_hot,
}
"""Operators that compute."""

TOGETHER = {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Range", "ConstantOfShape", "OneHot"}
"""Those of COMPUTED in whose result every element depends on every element given."""

SIZED_BY: Mapping[str, slice] = {
    "ConstantOfShape": slice(0, 1),
    "Expand": slice(1, 2),
    "OneHot": slice(1, 2),
    "Range": slice(0, 3),
    "Reshape": slice(1, 2),
    "Slice": slice(1, 5),
    "Split": slice(1, 2),
    "Tile": slice(1, 2),
}
"""Operator -> the inputs whose values say how large its result is."""
