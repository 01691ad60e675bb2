"""Constants behind operators that only move numbers, or round them: what a product reads, and how that is put back into the constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node

ROUNDING = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"}
)
"""Operators between a constant and a product that do no more than round it or undo that."""

UNMOVED = ROUNDING | {"Identity", "Cast"}
"""Operators that leave every number where it is."""

RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the order of numbers, and only count them along other axes."""

Step: TypeAlias = "Transposed | Reshaped"


@dataclass(frozen=True, slots=True)
class Transposed:
    """perm: as the operator has it."""

    perm: tuple[int, ...]

    def there(self, array: Array) -> Array:
        """The operator's output for its input."""
        return np.asarray(array.transpose(self.perm))

    def back(self, array: Array) -> Array:
        """Its input for its output."""
        return np.asarray(array.transpose(np.argsort(self.perm)))


@dataclass(frozen=True, slots=True)
class Reshaped:
    """before, after: shapes of the operator's input and output."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def there(self, array: Array) -> Array:
        """The operator's output for its input."""
        return array.reshape(self.after)

    def back(self, array: Array) -> Array:
        """Its input for its output."""
        return array.reshape(self.before)


@dataclass(frozen=True, slots=True)
class Form:
    """constant: by the name of its use. steps: from it to what is read."""

    constant: str
    steps: tuple[Step, ...] = ()

    def there(self, array: Array) -> Array:
        """What is read, for the constant."""
        for step in self.steps:
            array = step.there(array)
        return array

    def back(self, array: Array) -> Array:
        """The constant, for what is read."""
        for step in reversed(self.steps):
            array = step.back(array)
        return array


def form_of(model: Model, name: str) -> Form:
    """How a tensor is made of a constant; the tensor itself where it is one, or is computed otherwise."""
    steps: list[Step] = []
    constant, node = name, model.producer.get(name)
    while node is not None and _carries(node) and not model.is_constant(constant):
        step = _step(model, node)
        if step is None and node.op not in UNMOVED:
            return Form(name)
        steps += [] if step is None else [step]
        constant = node.inputs[0]
        node = model.producer.get(constant)
    return Form(constant, tuple(reversed(steps))) if model.is_constant(constant) else Form(name)


def uses(model: Model, name: str) -> int:
    """How often a tensor is used, behind the operators that only move or round its numbers; as an output of the graph too."""
    found = model.outputs.count(name)
    for node in model.consumers.get(name, ()):
        slots = [slot for slot, tensor in enumerate(node.inputs) if tensor == name]
        found += uses(model, node.outputs[0]) if slots == [0] and _carries(node) else max(len(slots), 1)
    return found


def _carries(node: Node) -> bool:
    """Whether its output holds the numbers of its first input."""
    return node.op in UNMOVED or node.op in RESHAPING or node.op == "Transpose"


def _step(model: Model, node: Node) -> Step | None:
    """What an operator moves; None for one that moves nothing, or whose shapes are not known."""
    before, after = model.shape(node.inputs[0]) if node.inputs else None, model.shape(node.outputs[0])
    if before is None or after is None or min((*before, *after), default=0) < 0:
        return None
    if node.op == "Transpose":
        return Transposed(tuple(node.attributes.get("perm", range(len(before))[::-1])))
    return Reshaped(before, after) if node.op in RESHAPING else None
