"""Branches and bodies: the graphs that a node runs, seen as parts of the graph around them.

Their operators stand in one list with the others, before the node that runs them, and read tensors of the graph around by name. What
crosses into a branch or body and out of it is a table: operator -> which tensor inside is which one outside. Rules tie the axes of such
pairs, and shape inference hands sizes across them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
from onnx import AttributeProto, TensorProto, helper

from spa_onnx.node import Body, Node

Pair: TypeAlias = tuple[str, str]

Opened: TypeAlias = Mapping[str, frozenset[str]]
"""The nodes, by their first output, whose branches or bodies are looked into -> the names of those that are tied, since what they give is
what leaves the node: all of them; of branches that give different shapes the one that is taken, where that is known, or none.
"""


@dataclass(frozen=True, slots=True)
class Crossings:
    """Pairs of tensors that are the same one on the two sides of a border, and so have the same shape.

    entering: (outside, inside). leaving: (inside, outside); of the branches of an If several leave as one. returning: (inside, inside):
    what one run of a body leaves behind and the next one finds. stacked: (inside, outside), with an axis in front that counts the runs.
    loose: inside, what leaves in a shape that is not known outside. numbers: inputs of a body that the operator makes by itself, scalars,
    each with its type.
    """

    entering: tuple[Pair, ...] = ()
    leaving: tuple[Pair, ...] = ()
    returning: tuple[Pair, ...] = ()
    stacked: tuple[Pair, ...] = ()
    loose: tuple[str, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()

    def same(self) -> Iterator[Pair]:
        """The pairs of equal shape."""
        yield from (*self.entering, *self.leaving, *self.returning)

    def inside(self) -> list[str]:
        """The tensors on the inner side, each once."""
        inner = [name for _, name in (*self.entering, *self.returning)]
        return list(dict.fromkeys([*inner, *(name for name, _ in (*self.leaving, *self.returning, *self.stacked)), *self.loose]))


def _branches(_: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body]) -> Crossings:
    """https://onnx.ai/onnx/operators/onnx__If.html: outputs are those of the branch that is run."""
    tied = [body for body in bodies if body.tied]
    loose = () if tied else tuple(name for body in bodies for name in body.outputs)
    return Crossings(leaving=tuple(pair for body in tied for pair in zip(body.outputs, outputs, strict=True)), loose=loose)


def _repeated(inputs: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body]) -> Crossings:
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
        stacked=tuple(zip(end[states:], outputs[states:], strict=True)),
        numbers=tuple(zip(body.inputs[:2], (TensorProto.INT64, TensorProto.BOOL), strict=True)),
    )


CROSSINGS: Mapping[str, Callable[[Sequence[str], Sequence[str], Sequence[Body]], Crossings]] = {"If": _branches, "Loop": _repeated}
"""Operator -> what crosses: (inputs, outputs, bodies). Other operators with graphs of their own are not looked into."""


def crossings(node: Node) -> Crossings:
    """What crosses the borders of a node whose bodies are looked into."""
    return CROSSINGS[node.op](node.inputs, node.outputs, node.bodies)


def nested(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node runs, in the order of its attributes."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


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


def visible(graph: onnx.GraphProto, opened: Opened, first: int = 0, *, inside: bool = False) -> Iterator[tuple[int, onnx.NodeProto, bool]]:
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
    owners = [node for node in operators(graph) if node.op_type in CROSSINGS and node.domain in ("", "ai.onnx") and nested(node)]
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
    stored_sparse = graph.sparse_initializer or any(a.name == "sparse_value" for node in graph.node for a in node.attribute)
    return not stored_sparse and all(count[name] == 1 for name in _defined(graph))


def _defined(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output if name}
    return made | {entry.name for entry in (*graph.input, *graph.initializer)}


def _fits(node: onnx.NodeProto) -> bool:
    """Whether inputs, outputs and bodies are as many as the operator says."""
    try:
        CROSSINGS[node.op_type](node.input, node.output, bodies(node))
    except ValueError:
        return False
    return True


def bodies(node: onnx.NodeProto, tied: Container[str] | None = None) -> tuple[Body, ...]:
    """What the graphs nested in a node take and give. tied: the names of those that are; all where nothing is said."""
    return tuple(
        Body(a.name, tuple(v.name for v in a.g.input), tuple(v.name for v in a.g.output), tied is None or a.name in tied)
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
    found = CROSSINGS[node.op_type](node.input, node.output, bodies(node, tied))
    flag = f"{node.output[0]}__flag"
    scalars = ((flag, TensorProto.BOOL), *found.numbers)
    sources: dict[str, list[str]] = {outside: [] for _, outside in found.leaving if outside}
    for inside, outside in found.leaving:
        sources.get(outside, []).append(inside)
    left = [_either(flag, outside, given) for outside, given in sources.items()]
    return Border(
        tuple(helper.make_tensor_value_info(name, kind, []) for name, kind in scalars),
        tuple(_either(flag, inside, [outside]) for outside, inside in found.entering),
        (*left, *(each for inside, outside in found.stacked if outside for each in _stack(inside, outside))),
    )


def _either(flag: str, target: str, sources: Sequence[str]) -> onnx.NodeProto:
    return helper.make_node("Where", [flag, sources[0], sources[-1]], [target])


def _stack(inside: str, outside: str) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("SequenceConstruct", [inside], [f"{outside}__runs"])
    yield helper.make_node("ConcatFromSequence", [f"{outside}__runs"], [outside], axis=0, new_axis=1)
