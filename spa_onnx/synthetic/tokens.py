"""Synthetic integer inputs. Their names and the tables that they index give their meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.traits import Moves, traits

CARRYING = frozenset({Moves.IDENTITY, Moves.CAST, Moves.RESHAPE})
"""Operators behind which ids are still the same ids."""

LARGEST = 50
"""The exclusive upper bound of ids that index no table."""


def table_rows(model: Model, name: str) -> int:
    """Return the number of rows of the smallest table that an integer input indexes, which bounds its ids.

    0 without a table.
    """
    found = []
    for node in model.consumers.get(name, ()):
        if node.op == "Gather" and node.input(1) == name:
            shape = model.shape(node.inputs[0]) or ()
            axis = int(node.attributes.get("axis", 0))
            found += [shape[axis]] if shape and model.is_constant(node.inputs[0]) and shape[axis] > 0 else []
        elif traits(node.op).moves in CARRYING and node.input(0) == name:
            found.append(table_rows(model, node.outputs[0]))
    return min(filter(None, found), default=0)


def _ones(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """Return ones: nothing is masked."""
    del most, rng
    return np.ones_like(drawn)


def _counted(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """Return 0, 1, 2, ... along the last axis, up to the size of the table."""
    del rng
    return np.broadcast_to(np.arange(drawn.shape[-1]) % (most or drawn.shape[-1]), drawn.shape).astype(drawn.dtype)


def _kinds(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """Return zeros: all tokens belong to the first of several segments."""
    del most, rng
    return np.zeros_like(drawn)


def _ids(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """Draw ids from all rows of the table."""
    return rng.integers(0, most or LARGEST, drawn.shape).astype(drawn.dtype)


MEANINGS: Mapping[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "mask": _ones,
    "position": _counted,
    "pos_id": _counted,
    "token_type": _kinds,
    "segment": _kinds,
    "": _ids,
}
"""Part of an input name -> its values, of the shape and type of the drawn array. The first part that occurs counts."""


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
