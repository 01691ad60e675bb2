"""The operators of shape arithmetic, implemented in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Evaluate

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
"""The value of an optional input that is left out; the functions here treat it as an empty list."""


def reduced_axes(node: Node, arrays: Sequence[Array]) -> tuple[int, ...] | None:
    """Return the `axes` of Squeeze, Unsqueeze and Reduce*; None for all axes.

    Args:
        node: The node; older operator sets store the axes as an attribute.
        arrays: Its inputs; newer operator sets store the axes as the second one.
    """
    axes = arrays[1].ravel().tolist() if len(arrays) > 1 else node.attributes.get("axes", ())
    return tuple(int(a) for a in axes) or None


def unsqueeze(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Unsqueeze."""
    axes = reduced_axes(node, arrays) or ()
    return np.expand_dims(arrays[0], axes)


def slice_(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Slice."""
    index = [slice(None)] * arrays[0].ndim
    for axis, start, end, step in slices(node, arrays[1:]):
        index[axis % arrays[0].ndim] = slice(start, None if step < 0 and end < -arrays[0].shape[axis] else end, step)
    return arrays[0][tuple(index)]


def slices(node: Node, parameters: Sequence[Array | None]) -> list[tuple[int, int, int, int]]:
    """Return the slices of a Slice node as stored, without resolving negative indices.

    Args:
        node: The node; before opset 10 the slices are attributes.
        parameters: Its inputs after the first one; None for an input that is left out.

    Returns:
        (axis, start, end, step) of each slice.
    """
    if "starts" in node.attributes:
        starts, ends = list(node.attributes["starts"]), list(node.attributes["ends"])
        axes = list(node.attributes.get("axes", range(len(starts))))
        return [(int(a), int(s), int(e), 1) for a, s, e in zip(axes, starts, ends, strict=True)]
    lists = [[] if p is None else [int(v) for v in p.ravel()] for p in parameters] + [[], []]
    starts, ends, axes, steps = lists[:4]
    axes = axes or list(range(len(starts)))
    return list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))


def split(node: Node, arrays: Sequence[Array]) -> list[Array]:
    """Evaluate Split."""
    axis = int(node.attributes.get("axis", 0))
    sizes = arrays[1].tolist() if len(arrays) > 1 else list(node.attributes.get("split", ()))
    if not sizes:  # equal parts, the last of which may be smaller
        sizes = [-(-arrays[0].shape[axis] // len(node.outputs))] * len(node.outputs)
    return np.split(arrays[0], np.cumsum(sizes)[:-1], axis)


def reshape(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Reshape."""
    shape = [arrays[0].shape[i] if s == 0 else int(s) for i, s in enumerate(arrays[1])]
    return arrays[0].reshape(shape)


def divide(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Div, which truncates integers towards zero."""
    a, b = arrays
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def clip(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Clip; the bounds are attributes before opset 11, and optional inputs since."""
    bounds = [*arrays[1:], NO_ARRAY, NO_ARRAY]
    low, high = (
        node.attributes.get(name, bound if bound.size else None)
        for name, bound in zip(("min", "max"), bounds, strict=False)
    )
    return arrays[0] if low is None and high is None else np.asarray(np.clip(arrays[0], low, high), arrays[0].dtype)


def one_hot(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate OneHot."""
    index, depth, values = arrays
    places = np.arange(int(depth.item())) == np.expand_dims(index % int(depth.item()), -1)
    return np.moveaxis(np.where(places, values[1], values[0]), -1, int(node.attributes.get("axis", -1)))


def constant_of_shape(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate ConstantOfShape."""
    fill = np.asarray(node.attributes.get("value", np.float32(0.0)))
    return np.full(arrays[0].astype(int).tolist(), fill.ravel()[0], dtype=fill.dtype)


def reduction(function: Callable[..., Any]) -> Evaluate:
    """Return a function that evaluates a Reduce* operator by a numpy reduction."""

    def run(node: Node, arrays: Sequence[Array]) -> Array:
        """Evaluate the operator."""
        axes = reduced_axes(node, arrays)
        if axes is None and node.attributes.get("noop_with_empty_axes"):
            return arrays[0]
        return np.asarray(function(arrays[0], axis=axes, keepdims=bool(node.attributes.get("keepdims", 1))))

    return run


def elementwise(function: Callable[..., Any]) -> Evaluate:
    """Return a function that evaluates an elementwise operator by a numpy function of its inputs."""
    return lambda _, arrays: np.asarray(function(*arrays))


def two_at_a_time(function: Callable[..., Any]) -> Evaluate:
    """Return a function that evaluates an operator with any number of inputs by a numpy function of two."""
    return lambda _, arrays: reduce(function, arrays)


def identity(_: Node, arrays: Sequence[Array]) -> Array:
    """Return the first input."""
    return arrays[0]


def gather(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Gather."""
    return np.take(arrays[0], arrays[1].astype(np.int64), axis=int(node.attributes.get("axis", 0)))


def concat(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Concat."""
    return np.concatenate(arrays, axis=int(node.attributes["axis"]))


def squeeze(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Squeeze."""
    return np.squeeze(arrays[0], reduced_axes(node, arrays))


def transpose(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Transpose."""
    return np.transpose(arrays[0], node.attributes.get("perm"))


def expand(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Expand."""
    return np.asarray(arrays[0] * np.ones(arrays[1].tolist(), arrays[0].dtype))


def tile(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Tile."""
    return np.tile(arrays[0], arrays[1].tolist())


def cast(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Cast."""
    return arrays[0].astype(NUMPY_TYPES[node.attributes["to"]])


def modulo(node: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Mod."""
    return np.asarray((np.fmod if node.attributes.get("fmod") else np.mod)(arrays[0], arrays[1]))


def power(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Pow."""
    return np.asarray(np.power(arrays[0], arrays[1]), dtype=arrays[0].dtype)


def range_(_: Node, arrays: Sequence[Array]) -> Array:
    """Evaluate Range."""
    start, limit, delta = (array.item() for array in arrays)
    return np.arange(start, limit, delta, dtype=arrays[0].dtype)
