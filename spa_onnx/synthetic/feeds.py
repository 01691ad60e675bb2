"""Inputs to try a model with: random feeds, and sizes of symbolic dimensions at which the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.shapes import GUESSES, USUAL, choose_dims
from spa_onnx.model.traits import Array, Moves, traits
from spa_onnx.operators import knowledge

LARGEST_ID = 50
"""The exclusive upper bound of random integers, unless they index a smaller table."""


LARGEST_INPUT = 2**25
"""The most elements of an input at sizes that are only tried."""


def random_feed(model: Model, dims: Mapping[str, int], seed: int) -> Feed:
    """Draw an array for each input: normal floats, small integers, or True.

    Args:
        model: The model.
        dims: The size of each symbolic dimension, by name.
        seed: The seed of the draw.

    Raises:
        RefusedError: An input is no tensor of numbers.
    """
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for value in feeds(model.proto.graph):
        element_type = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or element_type == onnx.TensorProto.STRING:
            raise RefusedError(
                f"input {value.name} is not a tensor of numbers, so it cannot be tried with random ones; "
                "use --no-validate"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
        feed[value.name] = _draw(rng, dtype, _sizes(value, dims), _bound(model, value.name))
    return feed


def _draw(rng: np.random.Generator, dtype: np.dtype[np.generic], shape: Sequence[int], bound: int) -> Array:
    """Draw an array; `bound` is the exclusive upper bound of integers."""
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, bound, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _bound(model: Model, name: str) -> int:
    """Return the exclusive upper bound of an integer input.

    It is the number of rows of the table that the input indexes, directly or through a Cast.
    """
    if "mask" in name.lower():
        return 2
    bound = LARGEST_ID
    for node in model.consumers.get(name, ()):
        bounds = knowledge(node.op).bounds
        bound = min([bound, *(bounds[slot](node, model) for slot in bounds if node.input(slot) == name)])
        if traits(node.op).moves is Moves.CAST:
            bound = min(bound, _bound(model, node.outputs[0]))
    return max(bound, 1)


def _dims_to_try(model: Model, user_dims: Mapping[str, int]) -> Iterator[dict[str, int]]:
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


def runs(model: Model, session: Session, dims: Mapping[str, int]) -> bool:
    """Return whether the model runs at these sizes of symbolic dimensions."""
    try:
        session.run(random_feed(model, dims, seed=0))
    except RefusedError:
        return False
    return True


def working_dims(model: Model, session: Session, user_dims: Mapping[str, int]) -> dict[str, int]:
    """Return sizes of symbolic dimensions at which the model runs.

    Args:
        model: The model.
        session: The same model, ready to run.
        user_dims: The sizes that the user gave.

    Raises:
        RefusedError: The model runs at none of the usual sizes.
    """
    first_error: RefusedError | None = None
    tried: list[dict[str, int]] = []
    for dims in _dims_to_try(model, user_dims):
        if dims not in tried:
            tried.append(dims)
            try:
                session.run(random_feed(model, dims, seed=0))
            except RefusedError as error:
                first_error = first_error or error
                continue
            return dims
    names = ", ".join(tried[0]) or "none symbolic"
    raise RefusedError(f"{first_error}; give sizes with --dim NAME=SIZE (dimensions: {names}), or use --no-validate")
