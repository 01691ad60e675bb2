"""Made-up integer inputs: what they mean is told by their names, and by the tables that they look up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.traits import Moves, traits

CARRYING = frozenset({Moves.IDENTITY, Moves.CAST, Moves.RESHAPE})
"""What an operator may do to ids so that they are still the same ids."""

LARGEST = 50
"""Ids are drawn below this where no table bounds them."""


def table_rows(model: Model, name: str) -> int:
    """The exclusive upper bound of an integer input: table_rows of the smallest table that it looks up, 0 where it looks up none."""
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
    """Nothing is masked."""
    del most, rng
    return np.ones_like(drawn)


def _counted(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """0, 1, 2, .. along the last axis, as far as the table goes."""
    del rng
    return np.broadcast_to(np.arange(drawn.shape[-1]) % (most or drawn.shape[-1]), drawn.shape).astype(drawn.dtype)


def _kinds(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """All of the first kind, as of a single sentence."""
    del most, rng
    return np.zeros_like(drawn)


def _ids(drawn: Array, most: int, rng: np.random.Generator) -> Array:
    """Drawn from all table_rows of the table."""
    return rng.integers(0, most or LARGEST, drawn.shape).astype(drawn.dtype)


MEANINGS: Mapping[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "mask": _ones,
    "position": _counted,
    "pos_id": _counted,
    "token_type": _kinds,
    "segment": _kinds,
    "": _ids,
}
"""Part of an input's name -> its values, of the shape and type of what was drawn; the first that occurs counts."""


def token_values(model: Model, name: str, drawn: Array, rng: np.random.Generator) -> Array:
    """Values for an integer input with axes: ids within their table, masks of ones, counted positions. int of the shape of `drawn`."""
    meaning = next(meaning for part, meaning in MEANINGS.items() if part in name.lower())
    return meaning(drawn, table_rows(model, name), rng)
