"""Random feeds of a model, and the sizes of symbolic dimensions that are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import GUESSES, USUAL, choose_dims
from spa_onnx.model.traits import Array, Moves, traits
from spa_onnx.operators import knowledge

LARGEST_ID = 50
"""The exclusive upper bound of random integers, unless they index a smaller table."""

VOCABULARIES = ("keys_strings", "cats_strings", "classlabels_strings", "string_vocabulary")
"""Attributes that hold the words that an operator of ai.onnx.ml knows."""

ANY_WORDS = ("a", "b", "c")

SHIFTS = {"Add": 1, "Sub": -1}
"""Operator -> sign of the constant that it adds to ids."""

NUMBERS_PER_STEP = 2**20
"""The number of normal floats that are drawn together, so that float64 needs little memory beside the result."""

LARGEST_INPUT = 2**25
"""The most elements of an input at sizes that are only tried."""

SOME_OF_THEM = frozenset({"Gather", "Slice", "Split", "GatherND", "GatherElements", "Tile", "Expand", "Concat"})
"""Operators whose outputs hold some of the ids or words of their first input, or repeat them."""


@dataclass(frozen=True, slots=True)
class Style:
    """How random inputs are drawn.

    Args:
        most: An exclusive upper bound of integers, whatever they index.
        constants: Float input -> the value of all its elements, in place of normal numbers.
    """

    most: int = LARGEST_ID
    constants: Mapping[str, float] = field(default_factory=dict)


PLAIN = Style()


def random_feed(model: Model, dims: Mapping[str, int], seed: int, style: Style = PLAIN) -> Feed:
    """Draw an array for each input: normal floats, small integers, True, or words that the model knows.

    Args:
        model: The model.
        dims: The size of each symbolic dimension, by name.
        seed: The seed of the draw.
        style: How the inputs are drawn.

    Raises:
        RefusedError: An input is no tensor.
    """
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for value in feeds(model.proto.graph):
        element_type = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type"):
            raise RefusedError(f"input {value.name} is not a tensor, so it cannot be drawn at random")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
        shape = _sizes(value, dims)
        if element_type == onnx.TensorProto.STRING:
            feed[value.name] = rng.choice(np.asarray(_words(model, value.name), object), shape)
            continue
        bound = min(id_bound(model, value.name), style.most) if dtype.kind in "iu" else 0
        array = _draw(rng, dtype, shape, bound)
        constant = style.constants.get(value.name)
        if dtype.kind in "iu" and prod(shape) == 1 and value.name in dims:  # it holds the size of an axis
            constant = dims[value.name]
        feed[value.name] = array if constant is None else np.full(shape, constant, dtype)
    return feed


def _words(model: Model, name: str) -> Sequence[str]:
    """Return the words that the readers of a text input know, those of the operators of ai.onnx.ml; else any words."""
    for node in model.consumers.get(name, ()):
        known = next((node.attributes[key] for key in VOCABULARIES if key in node.attributes), None)
        if known is not None:
            return [str(word) for word in known]
        if node.op in SOME_OF_THEM or traits(node.op).moves is not Moves.NOTHING:
            return _words(model, node.outputs[0])
    return ANY_WORDS


def _draw(rng: np.random.Generator, dtype: np.dtype[np.generic], shape: Sequence[int], bound: int) -> Array:
    """Draw an array; `bound` is the exclusive upper bound of integers."""
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, bound, shape).astype(dtype)
    result = np.empty(prod(shape), dtype)
    for first in range(0, result.size, NUMBERS_PER_STEP):
        part = result[first : first + NUMBERS_PER_STEP]
        part[:] = rng.standard_normal(part.size)
    return result.reshape(shape)


def id_bound(model: Model, name: str) -> int:
    """Return the exclusive upper bound of an integer input.

    It is the number of rows of the smallest table that the input indexes: a constant or an activation, directly or
    behind operators that only move ids or add a constant to them.
    """
    return 2 if "mask" in name.lower() else max(_bound(model, name), 1)


def _bound(model: Model, name: str) -> int:
    """Return the exclusive upper bound of the integers in a tensor."""
    bound = LARGEST_ID
    for node in model.consumers.get(name, ()):
        bounds = knowledge(node.op).bounds
        bound = min([bound, *(bounds[slot](node, model) for slot in bounds if node.input(slot) == name)])
        if node.input(0) == name and (node.op in SOME_OF_THEM or traits(node.op).moves is not Moves.NOTHING):
            bound = min([bound, *(_bound(model, output) for output in node.outputs if output)])
        elif node.op in SHIFTS:
            bound = min(bound, _bound(model, node.outputs[0]) - SHIFTS[node.op] * _added(model, node, name))
    return bound


def _added(model: Model, node: Node, name: str) -> int:
    """Return the largest integer that an Add or Sub adds to ids; 0 if it is not constant."""
    other = next((model.constant(source) for source in node.inputs if source != name), None)
    return int(other.max()) if other is not None and other.size and other.dtype.kind in "iu" else 0


def dims_to_try(model: Model, user_dims: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield sizes of symbolic dimensions to try, those of shape inference first, and no inputs that fill the memory."""
    yield dict(model.inference.dims)
    inputs = feeds(model.proto.graph)
    for guess in (*GUESSES, *((1, size, size) for size in USUAL)):
        dims = choose_dims(inputs, user_dims, guess)
        if all(prod(_sizes(value, dims)) <= LARGEST_INPUT for value in inputs):
            yield dims


def _sizes(value: onnx.ValueInfoProto, dims: Mapping[str, int]) -> list[int]:
    """Return the shape of an input at these sizes of symbolic dimensions."""
    return [
        dim.dim_value if dim.dim_value > 0 else dims[dim.dim_param or f"{value.name}:{axis}"]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    ]


def runs(model: Model, session: Session, dims: Mapping[str, int], style: Style = PLAIN) -> bool:
    """Return whether the model runs at these sizes of symbolic dimensions."""
    try:
        session.run(random_feed(model, dims, 0, style))
    except RefusedError:
        return False
    return True
