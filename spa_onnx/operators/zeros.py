"""Whether zero stays zero: what an operator makes of channels whose weights are masked.

A product of two activations that sums over removed channels adds f(0) * g(0) for each of them to the masked model, and nothing to the
pruned one: exp(q) @ exp(k) in linear attention, say. So the axis that it sums over is pinned, unless one factor holds zeros there. And an
operator that takes its scale from all of a tensor is exact only where removed channels are zero in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Pin
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import Held, KeepsZero, knowledge, multiplies


def first(_: Node, __: Model, held: Held) -> bool:
    """f(0) = 0, or only elements of the first input are moved."""
    return bool(held[0])


def any_input(_: Node, __: Model, held: Held) -> bool:
    """A product: one factor that is zero is enough."""
    return True in held


def every_input(node: Node, __: Model, held: Held) -> bool:
    """A sum: all residual_inputs have to be zero."""
    return all(held[slot] for slot, name in enumerate(node.inputs) if name)


def values(_: Node, __: Model, held: Held) -> bool:
    """Attention: the values are zero; they are in the first input where all three are packed in it."""
    return bool(held[2] if len(held) > 2 and held[2] is not None else held[0])


def all_but_first(node: Node, __: Model, held: Held) -> bool:
    """A choice by a condition, or a layer whose weights and states are all zero."""
    return all(held[slot] for slot, name in enumerate(node.inputs) if slot and name and held[slot] is not None)


def affine(node: Node, model: Model, held: Held) -> bool:
    """W x + b: a factor is zero and all residual_inputs are, and so is what a fused activation makes of zero."""
    residual_inputs = all(held[slot] for slot in range(2, len(node.inputs)) if node.inputs[slot])
    return True in held[:2] and residual_inputs and _activation_keeps_zero(node, model)


def _activation_keeps_zero(node: Node, model: Model) -> bool:
    """Return whether the activation that FusedConv and FusedGemm may have keeps zero; Clip does between bounds around it."""
    activation = str(node.attributes.get("activation", ""))
    if not activation:
        return True
    bounds = node.attributes.get("activation_params", ())
    fused = replace(
        node, op=activation, inputs=node.inputs[:1], attributes=dict(zip(("min", "max"), bounds, strict=False))
    )
    return knowledge(activation).zero(fused, model, (True,))


def scaled_by(*slots: int) -> KeepsZero:
    """Return the rule of a norm: its scale and its bias, at these input positions, are zero."""
    return lambda node, _, held: all(held[slot] for slot in slots if node.input(slot))


def sums_what_is_left(model: Model) -> bool:
    """Return whether any product has two activations, so that it matters what masked channels hold."""
    return any(multiplies(node.op) and not any(map(model.is_constant, node.inputs[:2])) for node in model.nodes)


class Zeros:
    """The axes of activations that hold zeros where channels are masked, node by node in the order of the graph."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._zero: set[Axis] = set()

    def add_shuffle(self, outputs: Iterable[str], facts: Iterable[Fact]) -> None:
        """Add the outputs of a channel shuffle, which only reorders."""
        self._add(outputs, facts, lambda axes: any(map(self._holds, axes)))

    def add_node(self, node: Node, facts: Sequence[Fact]) -> None:
        """Add the outputs of a node."""
        keeps = knowledge(node.op).zero

        def holds(axes: list[Axis]) -> bool:
            return keeps(node, self._model, [self._held(name, axes) if name else None for name in node.inputs])

        self._add(node.outputs, facts, holds)

    def pins(self, node: Node, facts: Iterable[Fact]) -> Iterator[Pin]:
        """Pin what a product sums over where neither factor holds zeros."""
        if not multiplies(node.op):
            return
        tied = _tied(facts)
        for axis, others in tied.items():
            made = any(other.tensor in node.outputs for other in others) or axis.tensor in node.outputs
            factors = [] if made else [other for other in others if other.tensor in node.inputs[:2]]
            if factors and axis.tensor in node.inputs[:2] and not any(map(self._holds, (axis, *factors))):
                yield Pin(axis, f"{node.op} sums over what is not zero there when masked", f"{node}, {axis}")

    def _add(self, outputs: Iterable[str], facts: Iterable[Fact], keeps: Callable[[list[Axis]], bool]) -> None:
        """Add the axes of the outputs that hold zeros, by the axes that each is tied to."""
        tied = _tied(facts)
        for name in outputs:
            for axis in (Axis(name, dim) for dim in range(len(self._model.shape(name) or ()))):
                if axis in tied and keeps(tied[axis]):
                    self._zero.add(axis)

    def _held(self, tensor: str, axes: list[Axis]) -> bool | None:
        mine = [axis for axis in axes if axis.tensor == tensor]
        return any(map(self._holds, mine)) if mine else None

    def _holds(self, axis: Axis) -> bool:
        return axis in self._zero or self._model.is_constant(axis.tensor)


def _tied(facts: Iterable[Fact]) -> Mapping[Axis, list[Axis]]:
    """Axis -> the axes that any coupling ties it to, whichever option holds."""
    found: dict[Axis, list[Axis]] = defaultdict(list)
    for fact in facts:
        given = [f for option in fact.options for f in option.facts] if isinstance(fact, Choice) else [fact]
        for one in given:
            if isinstance(one, Coupling):
                found[one.a.axis].append(one.b.axis)
                found[one.b.axis].append(one.a.axis)
    return found


def is_zero_when_masked(tensor: str, model: Model) -> bool:
    """Return whether the channels that a plan removes from a tensor are zero in the masked model, as far as can be told."""
    return _is_zero(tensor, model, {})


def _is_zero(tensor: str, model: Model, found: dict[str, bool]) -> bool:
    if tensor not in found:
        found[tensor] = True  # graph inputs keep all their channels
        node = model.producer.get(tensor)
        array = model.constant(tensor)
        if array is not None:  # one element holds for all channels alike and is never cut
            found[tensor] = array.size > 1 or not array.any()
        elif node is not None:
            held = [_is_zero(name, model, found) if name else None for name in node.inputs]
            found[tensor] = knowledge(node.op).zero(node, model, held)
    return found[tensor]


def bounded(node: Node, model: Model, held: Held) -> bool:
    """Clip: zero lies between the bounds, as far as these are known."""
    for slot, name, sign in ((1, "min", 1), (2, "max", -1)):
        bound = model.constant(node.input(slot)) if node.input(slot) else node.attributes.get(name, 0)
        if bound is None or sign * float(np.asarray(bound).item()) > 0:
            return False
    return bool(held[0])
