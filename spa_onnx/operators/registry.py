"""The operator registry. Each operator family calls `register` once for every set of operators that behave alike.

| keyword | what it describes | default |
|---|---|---|
| `coupling` | which channels of which axes are removed together | all axes are pinned, with the reason |
| `update` | how attributes and parameter inputs change with the new sizes | they do not change |
| `zero` | whether a masked channel is still zero in the output | it is not |
| `macs` | the axes whose sizes multiply to its multiply-accumulates | not counted; reported if it reads weights |
| `layer` | how it is a linear layer Y = W X | its weights are not refitted |
| `moves` | what it does to elements, if it only moves them | it computes |
| `fold` | how shape arithmetic evaluates it | its output is unknown before the model runs |
| `shape` | standard nodes with the same shapes | ONNX infers its shapes |
| `quantised` | the float operator that it computes, and its scales | it is not quantised |
| `random` | the fixed numbers in place of those that it draws | it draws none |
| `saturates` | whether a range of inputs has one output | it has not |
| `sums` | whether it adds up elements, so that zeros change nothing | removed elements change it |
| `bounds` | the exclusive upper bound of integer inputs | ids are below a small number |
| `unmasked` | inputs that keep their values in the masked model | constants are masked |

A coupling rule is a pure function of a node and the model. It reads shapes, attributes and constants and yields facts.
The analysis pins every axis that a rule does not mention, and every axis of an operator without a rule. A missing rule
can therefore cost channels, but never correctness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from spa_onnx.errors import RuleError
from spa_onnx.layers.find import LAYERS, LayerFinder
from spa_onnx.model.facts import Axis, Fact, Pin
from spa_onnx.model.model import UNKNOWN, Model
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import crossings
from spa_onnx.model.traits import TRAITS, FixedNumbers, Fold, Moves, Quantised, ShapeEquivalent, Traits
from spa_onnx.operators.data_sizes import DATA_SIZE, couplings, settled
from spa_onnx.operators.updates import ShapeUpdate

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

CouplingRule: TypeAlias = Callable[[Node, Model], Iterator[Fact]]

Macs: TypeAlias = Callable[[Node, Model], list[list[Axis]]]
"""(node, model) -> lists of axes. The sizes of each list are multiplied; the products of all lists are added."""

Held: TypeAlias = Sequence[bool | None]
"""For each input, whether it holds zeros where channels are masked. None: the input is omitted or has no such axis."""

KeepsZero: TypeAlias = Callable[[Node, Model, Held], bool]
"""(node, model, which inputs hold zeros) -> whether the output holds zeros where channels are masked."""

Bound: TypeAlias = Callable[[Node, Model], int]
"""(node, model) -> the exclusive upper bound of an integer input."""

UNBOUNDED = 2**31
"""The upper bound of integer inputs that do not index a table of known size."""

WHOLE = "needs all of it"
"""The default reason, shown to users, for pinning an axis that the coupling rule does not mention."""


def never(_: Node, __: Model, ___: Held) -> bool:
    """Return False: the operator maps zero to another value, or its behaviour is unknown."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The registered properties of an operator; see `Properties` for the fields."""

    coupling: CouplingRule | None = None
    parameters: frozenset[int] = frozenset()
    default_reason: str = WHOLE
    update: ShapeUpdate | None = None
    corrects: frozenset[int] = frozenset()
    zero: KeepsZero = never
    macs: Macs | None = None
    bounds: Mapping[int, Bound] = field(default_factory=dict)
    sums: bool = False
    unmasked: frozenset[int] = frozenset()
    not_refitted: str = ""


class Properties(TypedDict, total=False):
    """What can be registered of an operator.

    Args:
        coupling: The coupling rule. parameters: Input positions of shapes, pads, axes and similar parameters, which
        carry no channels. default_reason: The reason for pinning an axis that the rule does not mention: what the
        operator does with that axis. update: The shape update. corrects: Input positions of parameters that the shape
        update corrects even if the graph computes them from
            sizes that change.
        zero: Whether a masked channel is still zero in the output.
        macs: The axes whose sizes multiply to its multiply-accumulates.
        layer: How it is a linear layer with a constant weight.
        not_refitted: Why its weights are never refitted. For operators that multiply by a weight but are no linear
            layer.
        moves: What it does to the elements of its first input, if it only moves them.
        fold: How shape arithmetic evaluates it.
        shape: Standard nodes with the same shapes.
        quantised: The float operator that it computes, and where its scales are.
        chooses: Whether its output holds probabilities or classes.
        random: The nodes that compute fixed numbers in place of those that it draws.
        saturates: Whether it maps a range of inputs to one output: it clips, rounds or compares.
        bounds: Input position -> the exclusive upper bound of the integers in that input.
        sums: Whether it adds up elements along axes, so that zeros do not change it.
        unmasked: Input positions whose constants keep their values in the masked model.
    """

    coupling: Required[CouplingRule]
    parameters: Iterable[int]
    default_reason: str
    update: ShapeUpdate
    corrects: Iterable[int]
    zero: KeepsZero
    macs: Macs
    layer: LayerFinder
    not_refitted: str
    moves: Moves
    fold: Fold
    shape: ShapeEquivalent | None
    quantised: Quantised
    chooses: bool
    random: FixedNumbers
    saturates: bool
    bounds: Mapping[int, Bound]
    sums: bool
    unmasked: Iterable[int]


OPERATORS: dict[str, Operator] = {}
"""Operator type -> its registered properties. Types outside ai.onnx carry their domain as a prefix."""

UNREGISTERED = Operator()

_TRAITS = {trait.name for trait in fields(Traits)}
_POSITIONS = {"parameters", "corrects", "unmasked"}

WITH_SUBGRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators with subgraphs: branches or loop bodies."""


def register(*operators: str, **properties: Unpack[Properties]) -> None:
    """Register operators that behave alike, with all their properties.

    Args:
        *operators: Operator types, with the domain as a prefix unless it is ai.onnx: `Conv`, `com.microsoft.FusedConv`.
        **properties: What is known about them; see `Properties`.

    Raises:
        ValueError: An operator is registered twice.
        TypeError: There is no such property.
    """
    given: dict[str, Any] = {**properties}
    layer = given.pop("layer", None)
    traits = Traits(**{name: given.pop(name) for name in _TRAITS & given.keys()})
    given |= {name: frozenset(given[name]) for name in _POSITIONS & given.keys()}
    operator = Operator(**given)
    for name in operators:
        if name in OPERATORS:
            raise ValueError(f"operator {name} is registered twice")
        OPERATORS[name], TRAITS[name] = operator, traits
        if layer is not None:
            LAYERS[name] = layer


def knowledge(operator: str) -> Operator:
    """Return the registered properties of an operator; the defaults if it is not registered."""
    return OPERATORS.get(operator, UNREGISTERED)


def keeps_zero(operator: str) -> KeepsZero:
    """Return the rule that decides whether the operator keeps zero."""
    return knowledge(operator).zero


def multiplies(operator: str) -> bool:
    """Return whether the operator sums products of its first two inputs."""
    return knowledge(operator).macs is not None


def facts(node: Node, model: Model) -> Iterator[Fact]:
    """Yield all facts of a node: those of its coupling rule, and a pin for each axis that the rule does not mention."""
    for name in node.captures:
        yield from _pin_all(name, model, "read inside a branch or body", str(node))
    operator = _registered(node)
    if operator is None:
        for name in (*node.inputs, *node.outputs):
            yield from _pin_all(name, model, _reason_without_rule(node, model), f"node '{node.name}'")
        return
    tensors = _channel_tensors(node, operator, model)
    for slot in operator.parameters:
        if node.input(slot) and (model.is_float(node.inputs[slot]) or not model.is_constant(node.inputs[slot])):
            reason = "is a setting, not channels" if model.is_constant(node.inputs[slot]) else "is computed from it"
            yield from _pin_all(node.inputs[slot], model, f"input {slot} of {node.op} {reason}", str(node))
    if is_pinned_throughout(node, model):
        for name in tensors:
            yield from _pin_all(name, model, DATA_SIZE, str(node))
        return
    yield from _facts_or_pins(node, model, operator, tensors)


def _facts_or_pins(node: Node, model: Model, operator: Operator, tensors: list[str]) -> Iterator[Fact]:
    """Yield the facts of the coupling rule; pin all axes if it fails inside a subgraph."""
    try:
        yield from _checked_facts(node, model, operator, tensors)
    # A branch that these sizes never take can hold shapes that its operators do not allow; a rule may raise anything.
    except Exception:
        if not node.inside:
            raise
        for name in tensors:
            yield from _pin_all(name, model, "the sizes inside a branch or body do not fit", str(node))


def _registered(node: Node) -> Operator | None:
    """Return the registered properties of a node; None for a node whose subgraphs are not analysed."""
    return OPERATORS.get(node.op) if node.bodies or node.op not in WITH_SUBGRAPHS else None


def is_pinned_throughout(node: Node, model: Model) -> bool:
    """Return whether all axes of a node are pinned because some of its sizes are unknown before the model runs.

    They also are if the rule does not accept a stand-in for such a size.
    """
    operator = _registered(node)
    if operator is None:
        return False
    tensors = _channel_tensors(node, operator, model)
    shapes = {name: model.shape(name) for name in tensors}
    if any(shape is None or UNKNOWN in shape for shape in shapes.values()):
        return True
    if not model.inference.data_axes or not any(
        model.depends_on_data(Axis(name, dim)) for name, shape in shapes.items() for dim in range(len(shape or ()))
    ):
        return False
    try:
        deque(_checked_facts(node, model, operator, tensors), maxlen=0)
    except Exception:  # noqa: BLE001 - a rule may raise anything where sizes do not fit each other
        return True
    return False


def _reason_without_rule(node: Node, model: Model) -> str:
    """Return the reason for pinning all axes of a node without a coupling rule."""
    if node.op in WITH_SUBGRAPHS:
        return f"enters or leaves a branch or body of {node.op}"
    if node.op in model.functions:
        return (
            f"{node.op} is a function of the model that cannot be inlined, because it needs another version of an "
            "operator set; export the model with one version"
        )
    return f"no coupling rule for operator {node.op}"


def _channel_tensors(node: Node, operator: Operator, model: Model) -> list[str]:
    """Return the tensors of a node whose axes can hold channels; unused outputs of unknown rank are left out."""
    inputs = [name for slot, name in enumerate(node.inputs) if slot not in operator.parameters]
    outputs = [
        name
        for name in node.outputs
        if model.shape(name) is not None or name in model.consumers or name in model.outputs
    ]
    inside = crossings(node).inside() if node.bodies else []
    return [name for name in (*inputs, *outputs, *inside) if name]


def _checked_facts(node: Node, model: Model, operator: Operator, tensors: list[str]) -> Iterator[Fact]:
    """Yield the facts of the coupling rule, then a pin for every axis that they do not mention."""
    mentioned: set[Axis] = set()
    stated = operator.coupling(node, model) if operator.coupling else ()
    for fact in (sound for found in stated for sound in settled(found, model, str(node))):
        _check_spans(fact, model)
        mentioned.update(fact.axes())
        yield fact
    for name in tensors:
        for dim, size in enumerate(model.shape(name) or ()):
            if size > 1 and Axis(name, dim) not in mentioned:
                yield Pin(Axis(name, dim), f"{node.op} {operator.default_reason}", f"{node}, {name}[{dim}]")


def _check_spans(fact: Fact, model: Model) -> None:
    """Raise RuleError if a span exceeds its axis, which shows that the coupling rule is wrong."""
    for coupling in couplings(fact):
        for span in (coupling.a, coupling.b):
            size = (model.shape(span.axis.tensor) or ())[span.axis.dim]
            last_channel = span.count - 1 if span.order is None else max(span.order, default=0)
            last = span.start + (span.outer - 1) * span.period + last_channel * span.inner + span.inner - 1
            if last >= size:
                raise RuleError(f"{coupling.why}: index {last} is outside {span.axis}, which has {size}")


def _pin_all(name: str, model: Model, why: str, where: str) -> Iterator[Pin]:
    """Pin all axes of a tensor."""
    for dim, size in enumerate(model.shape(name) or ()):
        if name and size != 1:
            yield Pin(Axis(name, dim), why, where)
