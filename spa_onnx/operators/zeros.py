"""Zero propagation: whether a masked channel is still zero in the output of an operator.

Consider a product of two activations that sums over removed channels, for example exp(q) @ exp(k) in linear attention.
For each removed channel, the masked model adds f(0) * g(0) and the pruned model adds nothing. The analysis therefore
pins the axis of the sum, unless one factor is zero in the masked channels. Likewise, an operator that computes a scale
from a whole tensor is exact only if the removed channels of that tensor are zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Free, Normalises, Pin
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import Held, KeepsZero, knowledge, multiplies


def first(_: Node, __: Model, held: Held) -> bool:
    """Return whether the first input is zero: for operators with f(0) = 0 and for those that only move elements."""
    return bool(held[0])


def any_input(_: Node, __: Model, held: Held) -> bool:
    """Return whether any input is zero: for products."""
    return True in held


def quotient(node: Node, model: Model, held: Held) -> bool:
    """Return whether the dividend is zero and the divisor is not; constants keep their values as divisors."""
    return bool(held[0]) and (not held[1] or _is_computed_from_constants(node.inputs[1], model))


def _is_computed_from_constants(tensor: str, model: Model) -> bool:
    """Return whether a tensor does not depend on the inputs of the model."""
    seen, waiting = {tensor}, [tensor]
    while waiting:
        name = waiting.pop()
        node = model.producer.get(name)
        if node is None and not model.is_constant(name):
            return False
        further = {read for read in (() if node is None else node.inputs) if read} - seen
        seen |= further
        waiting += further
    return True


def power(node: Node, model: Model, held: Held) -> bool:
    """Return whether the base is zero and all exponents are known to be positive: 0 ** 0 is 1, 0 ** -1 infinite."""
    exponents = model.constant(node.inputs[1])
    return bool(held[0]) and exponents is not None and bool((exponents > 0).all())


def every_input(node: Node, __: Model, held: Held) -> bool:
    """Return whether all inputs are zero: for sums."""
    return all(held[slot] for slot, name in enumerate(node.inputs) if name)


def values(_: Node, __: Model, held: Held) -> bool:
    """Return whether the values of attention are zero; packed queries, keys and values are in the first input."""
    return bool(held[2] if len(held) > 2 and held[2] is not None else held[0])


def all_but_first(node: Node, __: Model, held: Held) -> bool:
    """Return whether all inputs but the first are zero: for Where, and for layers whose weights and states are zero."""
    return all(held[slot] for slot, name in enumerate(node.inputs) if slot and name and held[slot] is not None)


def affine(node: Node, model: Model, held: Held) -> bool:
    """Return whether f(W x + b) is zero: one factor and all addends are zero, and the fused activation keeps zero."""
    addends_are_zero = all(held[slot] for slot in range(2, len(node.inputs)) if node.inputs[slot])
    return True in held[:2] and addends_are_zero and _activation_keeps_zero(node, model)


def _activation_keeps_zero(node: Node, model: Model) -> bool:
    """Return whether the optional activation of FusedConv and FusedGemm keeps zero."""
    activation = str(node.attributes.get("activation", ""))
    if not activation:
        return True
    bounds = node.attributes.get("activation_params", ())
    fused = replace(
        node, op=activation, inputs=node.inputs[:1], attributes=dict(zip(("min", "max"), bounds, strict=False))
    )
    return knowledge(activation).zero(fused, model, (True,))


def scaled_by(*slots: int) -> KeepsZero:
    """Return the rule of a normalisation: its output is zero if its scale and bias are.

    Args:
        *slots: Input positions of the scale and the bias.
    """
    return lambda node, _, held: all(held[slot] for slot in slots if node.input(slot))


def needs_zeros(model: Model) -> bool:
    """Return whether the analysis needs `Zeros`: the model has a product of two activations, or sums elements."""
    return any(
        knowledge(node.op).sums or (multiplies(node.op) and not any(map(model.is_constant, node.inputs[:2])))
        for node in model.nodes
    )


class Zeros:
    """Track which axes of activations are zero in masked channels.

    Nodes are added in the order of the graph.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._zero: set[Axis] = set()

    def add_shuffle(self, outputs: Iterable[str], facts: Iterable[Fact]) -> None:
        """Add the outputs of a channel shuffle, which only reorders channels."""
        self._add(outputs, facts, lambda axes: any(map(self._is_zero_along, axes)))

    def add_node(self, node: Node, facts: Sequence[Fact]) -> None:
        """Add the outputs of a node."""
        keeps = knowledge(node.op).zero

        def holds(axes: list[Axis]) -> bool:
            """Return whether the output is zero along an axis that is coupled to these axes."""
            return keeps(node, self._model, [self._held(name, axes) if name else None for name in node.inputs])

        self._add(node.outputs, facts, holds)

    def pins(self, node: Node, facts: Iterable[Fact]) -> Iterator[Pin]:
        """Yield a pin for each axis that a product sums over and along which no factor is zero in masked channels."""
        if not multiplies(node.op):
            return
        for axis, others in _coupled_axes(facts).items():
            in_output = any(other.tensor in node.outputs for other in others) or axis.tensor in node.outputs
            factors = [] if in_output else [other for other in others if other.tensor in node.inputs[:2]]
            if factors and axis.tensor in node.inputs[:2] and not any(map(self._is_zero_along, (axis, *factors))):
                yield Pin(axis, f"{node.op} sums over what is not zero there when masked", f"{node}, {axis}")

    def exact(self, facts: Iterable[Fact]) -> Iterator[Fact]:
        """Yield the facts; a statistic to which masked channels add nothing leaves its axis free."""
        for fact in facts:
            if isinstance(fact, Normalises) and fact.unless_zero and self._is_zero_along(fact.axis):
                yield Free(fact.axis)
            else:
                yield fact

    def _add(self, outputs: Iterable[str], facts: Iterable[Fact], keeps: Callable[[list[Axis]], bool]) -> None:
        """Mark the output axes that are zero in masked channels, given the axes that each is coupled to."""
        coupled = _coupled_axes(facts)
        for name in outputs:
            for axis in (Axis(name, dim) for dim in range(len(self._model.shape(name) or ()))):
                if axis in coupled and keeps(coupled[axis]):
                    self._zero.add(axis)

    def _held(self, tensor: str, axes: list[Axis]) -> bool | None:
        """Return whether a tensor is zero in masked channels along any of the axes; None if none is an axis of it."""
        own = [axis for axis in axes if axis.tensor == tensor]
        return any(map(self._is_zero_along, own)) if own else None

    def _is_zero_along(self, axis: Axis) -> bool:
        return axis in self._zero or self._model.is_constant(axis.tensor)


def _coupled_axes(facts: Iterable[Fact]) -> Mapping[Axis, list[Axis]]:
    """Return axis -> the axes that it is coupled to, in any option of a choice."""
    coupled: dict[Axis, list[Axis]] = defaultdict(list)
    for fact in facts:
        alternatives = [f for option in fact.options for f in option.facts] if isinstance(fact, Choice) else [fact]
        for coupling in alternatives:
            if isinstance(coupling, Coupling):
                coupled[coupling.a.axis].append(coupling.b.axis)
                coupled[coupling.b.axis].append(coupling.a.axis)
    return coupled


def is_zero_when_masked(tensor: str, model: Model) -> bool:
    """Return whether the removed channels of a tensor are certain to be zero in the masked model."""
    return _is_zero(tensor, model, {})


def _is_zero(tensor: str, model: Model, cache: dict[str, bool]) -> bool:
    """Return `is_zero_when_masked` of a tensor; `cache` holds the tensors that are decided already."""
    if tensor not in cache:
        cache[tensor] = True  # graph inputs keep all their channels
        node = model.producer.get(tensor)
        array = model.constant(tensor)
        if array is not None:  # a single element applies to all channels and is never masked
            cache[tensor] = array.size > 1 or not array.any()
        elif node is not None:
            held = [_is_zero(name, model, cache) if name else None for name in node.inputs]
            cache[tensor] = knowledge(node.op).zero(node, model, held)
    return cache[tensor]


def bounded(node: Node, model: Model, held: Held) -> bool:
    """Return whether Clip keeps zero: its bounds are known and zero lies between them."""
    for slot, name, sign in ((1, "min", 1), (2, "max", -1)):
        bound = model.constant(node.input(slot)) if node.input(slot) else node.attributes.get(name, 0)
        if bound is None or sign * float(np.asarray(bound).item()) > 0:
            return False
    return bool(held[0])
