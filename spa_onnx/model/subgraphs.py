"""Branches and bodies: the graphs that a node runs, seen as parts of the graph around them.

Their operators stand in one list with the others, before the node that runs them, and read tensors of the graph around by name. What
crosses into a branch or body and out of it is a table: operator -> which tensor inside is which one outside. Rules tie the axes of such
pairs, and shape inference hands sizes across them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
from onnx import AttributeProto, TensorProto, helper

from spa_onnx.model.node import Body, Node

Pair: TypeAlias = tuple[str, str]

Attributes: TypeAlias = Mapping[str, Any]

Opened: TypeAlias = Mapping[str, frozenset[str]]
"""The nodes, by their first output, whose branches or bodies are looked into -> the names of those that are tied, since what they give is
what leaves the node: all of them; of branches that give different shapes the one that is taken, where that is known, or none.
"""


@dataclass(frozen=True, slots=True)
class Strip:
    """A tensor outside that is made of what one inside is from run to run, side by side along an axis which that one does not have.

    runs: (tensor outside, its axis) as long as there are runs; nothing where their number is not known beforehand.
    """

    inside: str
    outside: str
    axis: int = 0
    runs: tuple[str, int] | None = None

    def beside(self, dim: int) -> int:
        """The axis outside of an axis inside."""
        return dim + (dim >= self.axis)


@dataclass(frozen=True, slots=True)
class Crossings:
    """RegressionData of tensors that are the same one on the two sides of a border, and so have the same shape.

    entering: (outside, inside). leaving: (inside, outside); of the branches of an If several leave as one. returning: (inside, inside):
    what one run of a body leaves behind and the next one finds. sliced: what enters in strips, one for each run. stacked: what leaves so.
    loose: inside, what leaves in a shape that is not known outside. numbers: inputs of a body that the operator makes by itself, scalars,
    each with its type.
    """

    entering: tuple[Pair, ...] = ()
    leaving: tuple[Pair, ...] = ()
    returning: tuple[Pair, ...] = ()
    sliced: tuple[Strip, ...] = ()
    stacked: tuple[Strip, ...] = ()
    loose: tuple[str, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()

    def same(self) -> Iterator[Pair]:
        """The pairs of equal shape."""
        yield from (*self.entering, *self.leaving, *self.returning)

    def inside(self) -> list[str]:
        """The tensors on the inner side, each once."""
        taken = [name for _, name in (*self.entering, *self.returning)]
        given = [name for name, _ in (*self.leaving, *self.returning)]
        return list(
            dict.fromkeys([*taken, *given, *(strip.inside for strip in (*self.sliced, *self.stacked)), *self.loose])
        )


def _branches(_: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], __: Attributes) -> Crossings:
    """https://onnx.ai/onnx/operators/onnx__If.html: outputs are those of the branch that is run."""
    tied = [body for body in bodies if body.tied]
    loose = () if tied else tuple(name for body in bodies for name in body.outputs)
    return Crossings(
        leaving=tuple(pair for body in tied for pair in zip(body.outputs, outputs, strict=True)), loose=loose
    )


def _repeated(inputs: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], _: Attributes) -> Crossings:
    """https://onnx.ai/onnx/operators/onnx__Loop.html: every run of the body turns states into states, and adds to what is stacked.

    Loop: (count, condition, states) -> (states, stacked). Body: (number, condition, states) -> (condition, states, to be stacked).
    """
    (body,) = bodies
    start, end = inputs[2:], body.outputs[1:]
    states = len(start)
    return Crossings(
        entering=tuple(zip(start, body.inputs[2:], strict=True)),
        leaving=tuple(zip(end[:states], outputs[:states], strict=True)),
        returning=tuple(zip(end[:states], body.inputs[2:], strict=True)),
        stacked=tuple(Strip(*pair) for pair in zip(end[states:], outputs[states:], strict=True)),
        numbers=tuple(zip(body.inputs[:2], (TensorProto.INT64, TensorProto.BOOL), strict=True)),
    )


def _scanned(
    inputs: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], attributes: Attributes
) -> Crossings:
    """https://onnx.ai/onnx/operators/onnx__Scan.html: a run for each strip of what is scanned turns states into states, and adds strips.

    Scan: (states, scanned) -> (states, stacked). Body: (states, strips) -> (states, strips). Raises ValueError for axes counted from the
    end, and for the first version of the operator, which scans batches.
    """
    (body,) = bodies
    states = len(inputs) - attributes.get("num_scan_inputs", 0)
    start, scanned, end, stacked = inputs[:states], inputs[states:], body.outputs[:states], body.outputs[states:]
    along = attributes.get("scan_input_axes") or [0] * len(scanned)
    across = attributes.get("scan_output_axes") or [0] * len(stacked)
    if not scanned or any(axis < 0 for axis in (*along, *across)):
        raise ValueError("nothing is scanned, or an axis is counted from the end")
    return Crossings(
        entering=tuple(zip(start, body.inputs[:states], strict=True)),
        leaving=tuple(zip(end, outputs[:states], strict=True)),
        returning=tuple(zip(end, body.inputs[:states], strict=True)),
        sliced=tuple(Strip(*each) for each in zip(body.inputs[states:], scanned, along, strict=True)),
        stacked=tuple(
            Strip(*each, (scanned[0], along[0])) for each in zip(stacked, outputs[states:], across, strict=True)
        ),
    )


CROSSINGS: Mapping[str, Callable[[Sequence[str], Sequence[str], Sequence[Body], Attributes], Crossings]] = {
    "If": _branches,
    "Loop": _repeated,
    "Scan": _scanned,
}
"""Operator -> what crosses: (inputs, outputs, bodies, attributes). Other operators with graphs of their own are not looked into."""


def crossings(node: Node) -> Crossings:
    """What crosses the borders of a node whose bodies are looked into."""
    return CROSSINGS[node.op](node.inputs, node.outputs, node.bodies, node.attributes)


def _crossings(node: onnx.NodeProto, tied: Container[str] | None = None) -> Crossings:
    """The same of a node as it is stored. Raises ValueError where inputs, outputs and bodies are not as many as the operator says."""
    attributes = {
        a.name: helper.get_attribute_value(a)
        for a in node.attribute
        if a.type in (AttributeProto.INT, AttributeProto.INTS)
    }
    return CROSSINGS[node.op_type](node.input, node.output, bodies(node, tied), attributes)


def nested(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node runs, in the order of its attributes."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def read_inside(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors of the graph around it that a node's branches or bodies read by name."""
    inner = [each for graph in nested(node) for each in graphs(graph)]
    defined = {tensor.name for each in inner for tensor in (*each.initializer, *each.input)}
    defined |= {name for each in inner for reader in each.node for name in reader.output}
    read = {name for each in inner for reader in each.node for name in reader.input}
    read |= {value.name for each in inner for value in each.output}
    return tuple(sorted(name for name in read - defined if name))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph nested in its nodes (branches, bodies)."""
    yield graph
    for node in graph.node:
        for inner in nested(node):
            yield from graphs(inner)


def looked_into(graph: onnx.GraphProto, opened: Opened) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of opened nodes."""
    yield graph
    for node in graph.node:
        for inner in nested(node) if node.output[0] in opened else ():
            yield from looked_into(inner, opened)


def operators(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every operator of the graph and of those nested in it, in the order in which Node.index counts them."""
    for node in graph.node:
        for inner in nested(node):
            yield from operators(inner)
        yield node


def visible(
    graph: onnx.GraphProto, opened: Opened, first: int = 0, *, inside: bool = False
) -> Iterator[tuple[int, onnx.NodeProto, bool]]:
    """(index, operator, whether it is nested) of the graph and of the bodies of opened nodes. first: the index to count from."""
    index = first
    for node in graph.node:
        for inner in nested(node):
            if node.output[0] in opened:
                yield from visible(inner, opened, index, inside=True)
            index += sum(1 for _ in operators(inner))
        yield index, node, inside
        index += 1


def openable(graph: onnx.GraphProto) -> Opened:
    """The nodes whose bodies can be looked into.

    Not those that name a tensor as another graph does, since tensors are known by their names, or that store constants sparse.
    """
    owners = [
        node
        for node in operators(graph)
        if node.op_type in CROSSINGS and node.domain in ("", "ai.onnx") and nested(node)
    ]
    if not owners:
        return {}
    count = Counter(name for each in graphs(graph) for name in _defined(each))
    return {
        node.output[0]: frozenset(body.name for body in bodies(node))
        for node in owners
        if all(_is_plain(each, count) for inner in nested(node) for each in graphs(inner)) and _fits(node)
    }


def _is_plain(graph: onnx.GraphProto, count: Mapping[str, int]) -> bool:
    """Whether what it defines has a name of its own, and no constant is stored sparse. count: how many graphs define each name."""
    stored_sparse = graph.sparse_initializer or any(
        a.name == "sparse_value" for node in graph.node for a in node.attribute
    )
    return not stored_sparse and all(count[name] == 1 for name in _defined(graph))


def _defined(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output if name}
    return made | {entry.name for entry in (*graph.input, *graph.initializer)}


def _fits(node: onnx.NodeProto) -> bool:
    """Whether it is known what crosses."""
    try:
        _crossings(node)
    except ValueError:
        return False
    return True


def bodies(node: onnx.NodeProto, tied: Container[str] | None = None) -> tuple[Body, ...]:
    """What the graphs nested in a node take and give. tied: the names of those that are; all where nothing is prompt."""
    return tuple(
        Body(
            a.name, tuple(v.name for v in a.g.input), tuple(v.name for v in a.g.output), tied is None or a.name in tied
        )
        for a in node.attribute
        if a.type == AttributeProto.GRAPH
    )


@dataclass(frozen=True, slots=True)
class Border:
    """What hands sizes across the borders of a node while shapes are inferred, and no values: these differ from run to run.

    inputs: of the graph, for what has no other source. before, after: nodes around those of the bodies.
    """

    inputs: tuple[onnx.ValueInfoProto, ...]
    before: tuple[onnx.NodeProto, ...]
    after: tuple[onnx.NodeProto, ...]


def border(node: onnx.NodeProto, tied: Container[str]) -> Border:
    """Around the bodies of a node that are looked into. tied: the names of those that are."""
    found = _crossings(node, tied)
    flag = f"{node.output[0]}__flag"
    sources: dict[str, list[str]] = {outside: [] for _, outside in found.leaving if outside}
    for inside, outside in found.leaving:
        sources.get(outside, []).append(inside)
    scalars = tuple(
        helper.make_tensor_value_info(name, kind, []) for name, kind in ((flag, TensorProto.BOOL), *found.numbers)
    )
    before = [_either(flag, inside, [outside]) for outside, inside in found.entering]
    before += [each for strip in found.sliced for each in _slice(strip)]
    after = [_either(flag, outside, given) for outside, given in sources.items()]
    after += [each for strip in found.stacked if strip.outside for each in _stack(strip)]
    return Border(scalars, tuple(before), tuple(after))


def _either(flag: str, target: str, sources: Sequence[str]) -> onnx.NodeProto:
    return helper.make_node("Where", [flag, sources[0], sources[-1]], [target])


def _slice(strip: Strip) -> Iterator[onnx.NodeProto]:
    first = f"{strip.inside}__first"
    yield helper.make_node("Constant", [], [first], value=helper.make_tensor(first, TensorProto.INT64, [], [0]))
    yield helper.make_node("Gather", [strip.outside, first], [strip.inside], axis=strip.axis)


def _stack(strip: Strip) -> Iterator[onnx.NodeProto]:
    """Strips side by side, how many is unknown; then, where something is as long as there are runs, one of them for each of its indices."""
    out = strip.outside
    runs = f"{out}__runs"
    yield helper.make_node("SequenceConstruct", [strip.inside], [f"{out}__strips"])
    yield helper.make_node(
        "ConcatFromSequence", [f"{out}__strips"], [runs if strip.runs else out], axis=strip.axis, new_axis=1
    )
    if strip.runs:
        like, axis = strip.runs
        at, size, each = f"{out}__axis", f"{out}__size", f"{out}__each"
        yield helper.make_node("Constant", [], [at], value=helper.make_tensor(at, TensorProto.INT64, [1], [axis]))
        yield helper.make_node("Shape", [like], [f"{size}s"])
        yield helper.make_node("Gather", [f"{size}s", at], [size])
        yield helper.make_node(
            "ConstantOfShape", [size], [each], value=helper.make_tensor(each, TensorProto.INT64, [1], [0])
        )
        yield helper.make_node("Gather", [runs, each], [out], axis=strip.axis)
