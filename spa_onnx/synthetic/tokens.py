"""Synthetic integer inputs. Their meaning is derived from their names and from the tables that they index."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.traits import Moves, traits

ID_PRESERVING = frozenset({Moves.IDENTITY, Moves.CAST, Moves.RESHAPE})
"""Operators whose output holds the ids of their input."""


def table_rows(model: Model, name: str) -> int:
    """Return the exclusive upper bound of ids: the number of rows of the smallest table that an integer input indexes.

    It is 0 if the input indexes no table.
    """
    row_counts = []
    for node in model.consumers.get(name, ()):
        if node.op == "Gather" and node.input(1) == name:
            shape = model.shape(node.inputs[0]) or ()
            axis = int(node.attributes.get("axis", 0))
            row_counts += [shape[axis]] if shape and model.is_constant(node.inputs[0]) and shape[axis] > 0 else []
        elif traits(node.op).moves in ID_PRESERVING and node.input(0) == name:
            row_counts.append(table_rows(model, node.outputs[0]))
    return min(filter(None, row_counts), default=0)


def _ones(drawn: Array, rows: int, rng: np.random.Generator) -> Array:
    """Return ones, which mask nothing."""
    del rows, rng
    return np.ones_like(drawn)


def _positions(drawn: Array, rows: int, rng: np.random.Generator) -> Array:
    """Return 0, 1, 2, ... along the last axis, up to the size of the table."""
    del rng
    return np.broadcast_to(np.arange(drawn.shape[-1]) % (rows or drawn.shape[-1]), drawn.shape).astype(drawn.dtype)


def _first_segment(drawn: Array, rows: int, rng: np.random.Generator) -> Array:
    """Return zeros: all tokens belong to the first segment."""
    del rows, rng
    return np.zeros_like(drawn)


def _random_ids(drawn: Array, rows: int, rng: np.random.Generator) -> Array:
    """Draw ids of all rows of the table; without a table, the drawn integers are ids already."""
    return rng.integers(0, rows, drawn.shape).astype(drawn.dtype) if rows else drawn


MEANINGS: Mapping[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "mask": _ones,
    "position": _positions,
    "pos_id": _positions,
    "token_type": _first_segment,
    "segment": _first_segment,
    "": _random_ids,
}
"""Part of an input's name -> function that returns values of the shape and type of a drawn array.

The first part that the name contains decides.
"""


def token_values(model: Model, name: str, drawn: Array, rng: np.random.Generator) -> Array:
    """Return values for an integer input with axes: ids within their table, masks of ones, counted positions.

    Args:
        model: The model.
        name: The name of the input.
        drawn: Random integers of the shape and type of the input.
        rng: The random generator.

    Returns:
        Integers of the shape of `drawn`.
    """
    meaning = next(meaning for part, meaning in MEANINGS.items() if part in name.lower())
    return meaning(drawn, table_rows(model, name), rng)
