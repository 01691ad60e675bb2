"""What is known about operators, registered by family: one call of `register` for all kinds of knowledge.

| kind | what it says | where it is missing |
|---|---|---|
| `coupling` | which channels of which axes go together | all axes are pinned, with the reason |
| `update` | how attributes and parameter inputs follow the new sizes | they stay as they are |
| `zero` | whether zero stays zero | it does not |
| `macs` | the axes whose sizes multiply to its multiply-accumulates | none, and the report says so where it reads weights |
| `layer` | how it is a linear layer Y = W X | its weights are not refitted |
| `moves` | what it does to elements, if it only moves them | it computes |
| `fold` | how shape arithmetic evaluates it | its output is not known before it runs |
| `shape` | standard nodes with the same shapes | ONNX infers its shapes |
| `quantised` | the float operator that it computes, and its scales | it is no quantised operator |
| `bounds` | the exclusive upper bound of integer inputs | ids are below a small number |
| `unmasked` | inputs that keep their values in the masked model | constants are masked |

A coupling rule is a pure function of a node and the model; it reads shapes, attributes and constants and yields facts. An axis about
which a rule says nothing is pinned, and so is every axis of an operator without a rule: the analysis is safe by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from spa_onnx.errors import RuleError
from spa_onnx.layers.find import LAYERS, LayerFinder
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Pin
from spa_onnx.model.model import UNKNOWN, Model
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import crossings
from spa_onnx.model.traits import TRAITS, Fold, Moves, Quantised, ShapeEquivalent, Traits
from spa_onnx.operators.updates import ShapeUpdate

CouplingRule: TypeAlias = Callable[[Node, Model], Iterator[Fact]]

Macs: TypeAlias = Callable[[Node, Model], list[list[Axis]]]
"""(node, model) -> axes whose sizes multiply to its multiply-accumulates; several such lists add up."""

Held: TypeAlias = Sequence[bool | None]
"""For each input: whether it holds zeros where channels are masked; None where it is left out or has no such axis."""

KeepsZero: TypeAlias = Callable[[Node, Model, Held], bool]
"""(node, model, what its inputs hold) -> whether its output holds zeros where channels are masked."""

Bound: TypeAlias = Callable[[Node, Model], int]
"""(node, model) -> the exclusive upper bound of an integer input."""

UNBOUNDED = 2**31
"""The bound of integers of which no table says how large they can be."""

WHOLE = "needs all of it"
"""What an operator does with an axis about which its rule says nothing, for the reason that users read."""


def never(_: Node, __: Model, ___: Held) -> bool:
    """Zero becomes another value, or nothing is known."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What the analysis and the rewriting know about an operator; see `register`."""

    coupling: CouplingRule | None = None
    parameters: frozenset[int] = frozenset()
    unsaid: str = WHOLE
    update: ShapeUpdate | None = None
    corrects: frozenset[int] = frozenset()
    zero: KeepsZero = never
    macs: Macs | None = None
    bounds: Mapping[int, Bound] = field(default_factory=dict)
    unmasked: frozenset[int] = frozenset()
    not_refitted: str = ""


OPERATORS: dict[str, Operator] = {}
"""Operator, with its domain in front unless it is ai.onnx -> what is known about it. Families fill it."""

UNREGISTERED = Operator()

WITH_SUBGRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that run graphs of their own, on what enters them."""


def register(  # noqa: PLR0913 - one keyword for each kind of knowledge
    *operators: str,
    coupling: CouplingRule,
    parameters: Iterable[int] = (),
    unsaid: str = WHOLE,
    update: ShapeUpdate | None = None,
    corrects: Iterable[int] = (),
    zero: KeepsZero = never,
    macs: Macs | None = None,
    layer: LayerFinder | None = None,
    not_refitted: str = "",
    moves: Moves = Moves.NOTHING,
    fold: Fold | None = None,
    shape: ShapeEquivalent | None = None,
    quantised: Quantised | None = None,
    chooses: bool = False,
    bounds: Mapping[int, Bound] | None = None,
    unmasked: Iterable[int] = (),
) -> None:
    """Register all that is known about operators that behave alike.

    Args:
        operators: Operator types, with the domain in front unless it is ai.onnx: `Conv`, `com.microsoft.FusedConv`.
        coupling: The coupling rule.
        parameters: Input positions of shapes, pads, axes and the like, which carry no channels.
        unsaid: What the operator does with an axis about which the rule says nothing.
        update: The shape update.
        corrects: Parameters that the shape update sets right even where they are computed from sizes that change.
        zero: Whether zero stays zero.
        macs: The axes whose sizes multiply to its multiply-accumulates.
        layer: How it is a linear layer with a constant weight.
        not_refitted: Why its weights are never refitted, for an operator that multiplies by a weight and is no linear layer.
        moves: What it does to the elements of its first input, if it only moves them.
        fold: How shape arithmetic evaluates it.
        shape: Standard nodes with the same shapes.
        quantised: What it computes, and where its scales are.
        chooses: Whether its output holds probabilities or classes.
        bounds: Input position -> the exclusive upper bound of the integers there.
        unmasked: Input positions whose constants keep their values in the masked model.

    Raises:
        ValueError: An operator is registered twice.
    """
    for name in operators:
        if name in OPERATORS:
            raise ValueError(f"operator {name} is registered twice")
        OPERATORS[name] = Operator(
            coupling=coupling,
            parameters=frozenset(parameters),
            unsaid=unsaid,
            update=update,
            corrects=frozenset(corrects),
            zero=zero,
            macs=macs,
            bounds=bounds or {},
            unmasked=frozenset(unmasked),
            not_refitted=not_refitted,
        )
        TRAITS[name] = Traits(moves, fold, shape, quantised, chooses)
        if layer is not None:
            LAYERS[name] = layer


def knowledge(operator: str) -> Operator:
    """Return what is known about an operator; of one that nobody has registered nothing is."""
    return OPERATORS.get(operator, UNREGISTERED)


def keeps_zero(operator: str) -> KeepsZero:
    """Return whether an operator keeps zero."""
    return knowledge(operator).zero


def multiplies(operator: str) -> bool:
    """Return whether an operator sums products of its first two inputs."""
    return knowledge(operator).macs is not None


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


def _said(node: Node, model: Model, entry: Operator, carriers: list[str]) -> Iterator[Fact]:
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


def _entry(node: Node) -> Operator | None:
    """The rule of a node; none for one whose branches or bodies are not looked into."""
    return OPERATORS.get(node.op) if node.bodies or node.op not in WITH_SUBGRAPHS else None


def is_pinned_throughout(node: Node, model: Model) -> bool:
    """Whether sizes around the node are known only while running, so that none of its axes loses anything."""
    entry = _entry(node)
    return entry is not None and _depends_on_data(_carriers(node, entry, model), model)


def _depends_on_data(tensors: list[str], model: Model) -> bool:
    return any(model.shape(name) is None or UNKNOWN in (model.shape(name) or ()) for name in tensors)


def _unruled(node: Node, model: Model) -> str:
    """Why a node that has no rule pins its axes."""
    if node.op in WITH_SUBGRAPHS:
        return f"enters or leaves a branch or body of {node.op}"
    if node.op in model.functions:
        return f"{node.op} is a function of the model, and is not looked into; onnx.inliner.inline_local_functions puts its nodes in place"
    return f"no coupling rule for operator {node.op}"


def _carriers(node: Node, entry: Operator, model: Model) -> list[str]:
    """The tensors of the node whose axes hold channels; an output of unknown rank that nothing reads holds none."""
    read = [name for slot, name in enumerate(node.inputs) if slot not in entry.parameters]
    made = [
        name
        for name in node.outputs
        if model.shape(name) is not None or name in model.consumers or name in model.outputs
    ]
    inside = crossings(node).inside() if node.bodies else []
    return [name for name in (*read, *made, *inside) if name]


def _checked(node: Node, model: Model, entry: Operator, carriers: list[str]) -> Iterator[Fact]:
    prompt: set[Axis] = set()
    for fact in entry.coupling(node, model) if entry.coupling else ():
        _check(fact, model)
        prompt.update(fact.axes())
        yield fact
    for name in carriers:
        for dim, size in enumerate(model.shape(name) or ()):
            if size > 1 and Axis(name, dim) not in prompt:
                yield Pin(Axis(name, dim), f"{node.op} {entry.unsaid}", f"{node}, {name}[{dim}]")


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
