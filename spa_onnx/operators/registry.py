"""The table of coupling rules: operator -> what it demands of the axes it touches.

A rule is a pure function of a node and the model; it reads shapes, attributes and constants and yields facts. An axis about
which a rule says nothing is pinned, and so is every axis of an operator without a rule: the analysis is safe by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from spa_onnx.errors import RuleError
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Pin
from spa_onnx.model.model import UNKNOWN, Model
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import crossings

RuleFunction: TypeAlias = Callable[[Node, Model], Iterator[Fact]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule function and the input positions that are parameters (shapes, pads, axes) and carry no channels.

    silence: what the operator does with an axis about which the rule says nothing, for the reason that users read.
    """

    function: RuleFunction
    parameters: frozenset[int]
    silence: str = "needs all of it"


RULES: dict[str, Rule] = {}

WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that run graphs of their own, on what enters them."""


def rule(
    *operators: str, parameters: tuple[int, ...] = (), silence: str = "needs all of it"
) -> Callable[[RuleFunction], RuleFunction]:
    """Register one function for these operators. Raises ValueError where one of them has a rule already."""

    def register(function: RuleFunction) -> RuleFunction:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has two rules: {RULES[operator].function.__name__}, {function.__name__}")
            RULES[operator] = Rule(function, frozenset(parameters), silence)
        return function

    return register


def facts(node: Node, model: Model) -> Iterator[Fact]:
    """All that this node demands, the pins for what its rule leaves unsaid included."""
    for name in node.captures:
        yield from _pin_all(name, model, "read inside a branch or body", str(node))
    entry = _entry(node)
    if entry is None:
        for name in (*node.inputs, *node.outputs):
            yield from _pin_all(name, model, _unruled(node, model), f"node '{node.name}'")
        return
    carriers = _carriers(node, entry, model)
    for slot in entry.parameters:
        if node.input(slot) and (model.is_float(node.inputs[slot]) or not model.is_constant(node.inputs[slot])):
            what = "is a setting, not channels" if model.is_constant(node.inputs[slot]) else "is computed from it"
            yield from _pin_all(node.inputs[slot], model, f"input {slot} of {node.op} {what}", str(node))
    if _depends_on_data(carriers, model):
        for name in carriers:
            yield from _pin_all(name, model, "its size depends on data", str(node))
        return
    yield from _said(node, model, entry, carriers)


def _said(node: Node, model: Model, entry: Rule, carriers: list[str]) -> Iterator[Fact]:
    """What the rule of a node says."""
    try:
        yield from _checked(node, model, entry, carriers)
    except (
        Exception
    ):  # whatever a rule raises about shapes that no operator could have, as in a branch that such sizes never take
        if not node.inside:
            raise
        for name in carriers:
            yield from _pin_all(name, model, "the sizes inside a branch or body do not fit", str(node))


def _entry(node: Node) -> Rule | None:
    """The rule of a node; none for one whose branches or bodies are not looked into."""
    return RULES.get(node.op) if node.bodies or node.op not in WITH_BODIES else None


def is_pinned_throughout(node: Node, model: Model) -> bool:
    """Whether sizes around the node are known only while running, so that none of its axes loses anything."""
    entry = _entry(node)
    return entry is not None and _depends_on_data(_carriers(node, entry, model), model)


def _depends_on_data(tensors: list[str], model: Model) -> bool:
    return any(model.shape(name) is None or UNKNOWN in (model.shape(name) or ()) for name in tensors)


def _unruled(node: Node, model: Model) -> str:
    """Why a node that has no rule pins its axes."""
    if node.op in WITH_BODIES:
        return f"enters or leaves a branch or body of {node.op}"
    if node.op in model.functions:
        return f"{node.op} is a function of the model, and is not looked into; onnx.inliner.inline_local_functions puts its nodes in place"
    return f"no coupling rule for operator {node.op}"


def _carriers(node: Node, entry: Rule, model: Model) -> list[str]:
    """The tensors of the node whose axes hold channels; an output of unknown rank that nothing reads holds none."""
    read = [name for slot, name in enumerate(node.inputs) if slot not in entry.parameters]
    made = [
        name
        for name in node.outputs
        if model.shape(name) is not None or name in model.consumers or name in model.outputs
    ]
    inside = crossings(node).inside() if node.bodies else []
    return [name for name in (*read, *made, *inside) if name]


def _checked(node: Node, model: Model, entry: Rule, carriers: list[str]) -> Iterator[Fact]:
    said: set[Axis] = set()
    for fact in entry.function(node, model):
        _check(fact, model)
        said.update(fact.axes())
        yield fact
    for name in carriers:
        for dim, size in enumerate(model.shape(name) or ()):
            if size > 1 and Axis(name, dim) not in said:
                yield Pin(Axis(name, dim), f"{node.op} {entry.silence}", f"{node}, {name}[{dim}]")


def _check(fact: Fact, model: Model) -> None:
    """Raises RuleError where a span reaches beyond its axis: a wrong rule must not go unseen."""
    couplings = [fact] if isinstance(fact, Coupling) else []
    if isinstance(fact, Choice):
        couplings = [f for option in fact.options for f in option.facts if isinstance(f, Coupling)]
    for coupling in couplings:
        for span in (coupling.a, coupling.b):
            size = (model.shape(span.axis.tensor) or ())[span.axis.dim]
            top = span.count - 1 if span.order is None else max(span.order, default=0)
            last = span.start + (span.outer - 1) * span.period + top * span.inner + span.inner - 1
            if last >= size:
                raise RuleError(f"{coupling.why}: index {last} is outside {span.axis}, which has {size}")


def _pin_all(name: str, model: Model, why: str, where: str) -> Iterator[Pin]:
    for dim, size in enumerate(model.shape(name) or ()):
        if name and size != 1:
            yield Pin(Axis(name, dim), why, where)
