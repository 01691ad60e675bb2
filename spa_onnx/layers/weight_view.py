"""The constant that holds a weight, if only invertible operators (Transpose, Reshape, Cast, ...) lie in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Moves, traits

KEEPS_PLACES = frozenset({Moves.ROUND, Moves.IDENTITY, Moves.CAST})
"""The kinds of operators that leave every element at its place."""

INVERTIBLE = KEEPS_PLACES | {Moves.RESHAPE, Moves.TRANSPOSE}
"""The kinds of operators that may lie between a constant and a linear layer."""


@dataclass(frozen=True, slots=True)
class Transposition:
    """A Transpose.

    Args:
        perm: The axis of the input for each axis of the output.
    """

    perm: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the operator's output for its input."""
        return np.asarray(array.transpose(self.perm))

    def undo(self, array: Array) -> Array:
        """Return the operator's input for its output."""
        return np.asarray(array.transpose(np.argsort(self.perm)))


@dataclass(frozen=True, slots=True)
class Reshaping:
    """An operator that keeps the order of the elements, such as Reshape.

    Args:
        before: The shape of its input.
        after: The shape of its output.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the operator's output for its input."""
        return array.reshape(self.after)

    def undo(self, array: Array) -> Array:
        """Return the operator's input for its output."""
        return array.reshape(self.before)


Movement: TypeAlias = Transposition | Reshaping


@dataclass(frozen=True, slots=True)
class WeightView:
    """How a tensor that a linear layer reads is computed from a constant.

    Args:
        constant: The name of the constant.
        movements: The operators in between that move elements, in execution order.
    """

    constant: str
    movements: tuple[Movement, ...] = ()

    def read(self, array: Array) -> Array:
        """Return the tensor that the layer reads, for a value of the constant."""
        for movement in self.movements:
            array = movement.apply(array)
        return array

    def store(self, array: Array) -> Array:
        """Return the value of the constant, for a tensor that the layer reads."""
        for movement in reversed(self.movements):
            array = movement.undo(array)
        return array


def weight_view(model: Model, name: str) -> WeightView:
    """Return how a tensor is computed from a constant; a view of the tensor itself if it is not."""
    movements: list[Movement] = []
    constant, node = name, model.producer.get(name)
    while node is not None and traits(node.op).moves in INVERTIBLE and not model.is_constant(constant):
        movement = _movement(model, node)
        if movement is None and traits(node.op).moves not in KEEPS_PLACES:
            return WeightView(name)
        movements += [] if movement is None else [movement]
        constant = node.inputs[0]
        node = model.producer.get(constant)
    return WeightView(constant, tuple(reversed(movements))) if model.is_constant(constant) else WeightView(name)


def count_uses(model: Model, name: str) -> int:
    """Return how often a tensor is used, behind operators that only move or round elements; graph outputs count too."""
    uses = model.outputs.count(name)
    for node in model.consumers.get(name, ()):
        slots = [slot for slot, tensor in enumerate(node.inputs) if tensor == name]
        carried = slots == [0] and traits(node.op).moves in INVERTIBLE
        uses += count_uses(model, node.outputs[0]) if carried else max(len(slots), 1)
    return uses


def _movement(model: Model, node: Node) -> Movement | None:
    """Return the movement of an operator; None if it moves nothing or its shapes are unknown."""
    before, after = model.shape(node.inputs[0]) if node.inputs else None, model.shape(node.outputs[0])
    if before is None or after is None or min((*before, *after), default=0) < 0:
        return None
    moves = traits(node.op).moves
    if moves is Moves.TRANSPOSE:
        return Transposition(tuple(node.attributes.get("perm", range(len(before))[::-1])))
    return Reshaping(before, after) if moves is Moves.RESHAPE else None
