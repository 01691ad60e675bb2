"""The constant behind a weight: operators in between only move its numbers, or round them, and can be undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Moves, traits

UNMOVED = frozenset({Moves.ROUND, Moves.IDENTITY, Moves.CAST})
"""What leaves every number where it is."""

CARRYING = UNMOVED | {Moves.RESHAPE, Moves.TRANSPOSE}
"""What an operator between a constant and a linear layer may do."""


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
    """An operator that keeps the order of numbers.

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
    """How a tensor that a linear layer reads is made of a constant.

    Args:
        constant: The constant, by the name of its use.
        movements: What is done to its numbers on the way, in order.
    """

    constant: str
    movements: tuple[Movement, ...] = ()

    def read(self, array: Array) -> Array:
        """Return what the layer reads for a value of the constant."""
        for movement in self.movements:
            array = movement.apply(array)
        return array

    def store(self, array: Array) -> Array:
        """Return the value of the constant for what the layer reads."""
        for movement in reversed(self.movements):
            array = movement.undo(array)
        return array


def weight_view(model: Model, name: str) -> WeightView:
    """Return how a tensor is made of a constant; the tensor itself where it is one, or is computed otherwise."""
    movements: list[Movement] = []
    constant, node = name, model.producer.get(name)
    while node is not None and traits(node.op).moves in CARRYING and not model.is_constant(constant):
        movement = _movement(model, node)
        if movement is None and traits(node.op).moves not in UNMOVED:
            return WeightView(name)
        movements += [] if movement is None else [movement]
        constant = node.inputs[0]
        node = model.producer.get(constant)
    return WeightView(constant, tuple(reversed(movements))) if model.is_constant(constant) else WeightView(name)


def count_uses(model: Model, name: str) -> int:
    """Return how often a tensor is used, behind the operators that only carry its numbers; graph outputs count as uses."""
    found = model.outputs.count(name)
    for node in model.consumers.get(name, ()):
        slots = [slot for slot, tensor in enumerate(node.inputs) if tensor == name]
        carried = slots == [0] and traits(node.op).moves in CARRYING
        found += count_uses(model, node.outputs[0]) if carried else max(len(slots), 1)
    return found


def _movement(model: Model, node: Node) -> Movement | None:
    """What an operator moves; None for one that moves nothing, or whose shapes are not known."""
    before, after = model.shape(node.inputs[0]) if node.inputs else None, model.shape(node.outputs[0])
    if before is None or after is None or min((*before, *after), default=0) < 0:
        return None
    moves = traits(node.op).moves
    if moves is Moves.TRANSPOSE:
        return Transposition(tuple(node.attributes.get("perm", range(len(before))[::-1])))
    return Reshaping(before, after) if moves is Moves.RESHAPE else None
