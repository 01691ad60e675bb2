"""Subgraphs: the branches of an If and the bodies of a Loop or Scan.

If a node is opened, the operators of its subgraphs are listed with those of the graph around them, just before the
node that runs them, and the analysis treats all of them alike. The table `CROSSINGS` says for each operator which
tensors inside a subgraph correspond to which tensors outside. Coupling rules tie the axes of such pairs, and shape
inference passes sizes from one to the other.
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
"""Names of two tensors that correspond to each other and have the same shape."""

Attributes: TypeAlias = Mapping[str, Any]

Opened: TypeAlias = Mapping[str, frozenset[str]]
"""First output of each opened node -> the names of its tied subgraphs.

The outputs of a tied subgraph have the same shapes as the outputs of the node. All subgraphs are tied, unless the
branches of an If return different shapes: then only the branch that is taken is tied, or none if it is unknown.
"""

NONE_OPENED: Opened = {}
"""No node is opened."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A tensor in a body, and a tensor outside that holds its values of all iterations along an additional axis.

    Args:
        inside: Name of the tensor in the body.
        outside: Name of the tensor outside; it has one axis more.
        axis: The additional axis, 0-based, of the tensor outside.
        runs: A tensor outside and its axis whose size is the number of iterations; None if that number is unknown.
    """

    inside: str
    outside: str
    axis: int = 0
    runs: tuple[str, int] | None = None

    def beside(self, dim: int) -> int:
        """Return the axis of the tensor outside that corresponds to axis `dim` of the tensor inside."""
        return dim + (dim >= self.axis)


@dataclass(frozen=True, slots=True)
class Crossings:
    """The tensors that enter or leave the subgraphs of a node, as pairs of corresponding tensors.

    Args:
        entering: (outside, inside) of each tensor that enters.
        leaving: (inside, outside) of each tensor that leaves. The branches of an If share the tensors outside.
        returning: (inside, inside) of each loop-carried state: what an iteration returns and the next one receives.
        sliced: Tensors that enter in slices, one for each iteration.
        stacked: Tensors that leave in slices, one for each iteration.
        loose: Tensors inside that leave with a shape that is unknown outside.
        numbers: Scalar inputs of a body that the operator itself provides, each with its ONNX element type.
    """

    entering: tuple[Pair, ...] = ()
    leaving: tuple[Pair, ...] = ()
    returning: tuple[Pair, ...] = ()
    sliced: tuple[Strip, ...] = ()
    stacked: tuple[Strip, ...] = ()
    loose: tuple[str, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()

    def same(self) -> Iterator[Pair]:
        """Yield the pairs of tensors of equal shape."""
        yield from (*self.entering, *self.leaving, *self.returning)

    def inside(self) -> list[str]:
        """Return the names of the tensors inside, without duplicates."""
        received = [name for _, name in (*self.entering, *self.returning)]
        returned = [name for name, _ in (*self.leaving, *self.returning)]
        strips = [strip.inside for strip in (*self.sliced, *self.stacked)]
        return list(dict.fromkeys([*received, *returned, *strips, *self.loose]))


def _if_crossings(_: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], __: Attributes) -> Crossings:
    """Return the crossings of an If: https://onnx.ai/onnx/operators/onnx__If.html."""
    tied = [body for body in bodies if body.tied]
    loose = () if tied else tuple(name for body in bodies for name in body.outputs)
    return Crossings(
        leaving=tuple(pair for body in tied for pair in zip(body.outputs, outputs, strict=True)), loose=loose
    )


def _loop_crossings(inputs: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], _: Attributes) -> Crossings:
    """Return the crossings of a Loop: https://onnx.ai/onnx/operators/onnx__Loop.html.

    Loop: (trip count, condition, states) -> (states, stacked).
    Body: (iteration number, condition, states) -> (condition, states, slices to stack).
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


def _scan_crossings(
    inputs: Sequence[str], outputs: Sequence[str], bodies: Sequence[Body], attributes: Attributes
) -> Crossings:
    """Return the crossings of a Scan: https://onnx.ai/onnx/operators/onnx__Scan.html.

    Scan: (states, scanned) -> (states, stacked). Body: (states, slices) -> (states, slices to stack).
    Negative axes and version 8 of the operator, which scans batches, raise ValueError.
    """
    (body,) = bodies
    states = len(inputs) - attributes.get("num_scan_inputs", 0)
    start, scanned, end, stacked = inputs[:states], inputs[states:], body.outputs[:states], body.outputs[states:]
    input_axes = attributes.get("scan_input_axes") or [0] * len(scanned)
    output_axes = attributes.get("scan_output_axes") or [0] * len(stacked)
    if not scanned or any(axis < 0 for axis in (*input_axes, *output_axes)):
        raise ValueError("nothing is scanned, or an axis is counted from the end")
    runs = (scanned[0], input_axes[0])
    return Crossings(
        entering=tuple(zip(start, body.inputs[:states], strict=True)),
        leaving=tuple(zip(end, outputs[:states], strict=True)),
        returning=tuple(zip(end, body.inputs[:states], strict=True)),
        sliced=tuple(Strip(*strip) for strip in zip(body.inputs[states:], scanned, input_axes, strict=True)),
        stacked=tuple(Strip(*strip, runs) for strip in zip(stacked, outputs[states:], output_axes, strict=True)),
    )


CROSSINGS: Mapping[str, Callable[[Sequence[str], Sequence[str], Sequence[Body], Attributes], Crossings]] = {
    "If": _if_crossings,
    "Loop": _loop_crossings,
    "Scan": _scan_crossings,
}
"""Operator -> function of (inputs, outputs, bodies, attributes); the subgraphs of other operators are never opened."""


def crossings(node: Node) -> Crossings:
    """Return the tensors that enter or leave the subgraphs of an opened node."""
    return CROSSINGS[node.op](node.inputs, node.outputs, node.bodies, node.attributes)


def stored_crossings(node: onnx.NodeProto, tied: Container[str] | None = None) -> Crossings:
    """Return the tensors that enter or leave the subgraphs of a node, read from its protobuf.

    Args:
        node: A node whose operator is in `CROSSINGS`.
        tied: The names of the tied subgraphs (see `Opened`); None for all.

    Raises:
        ValueError: The numbers of inputs, outputs and subgraphs do not match the operator's specification.
    """
    attributes = {
        a.name: helper.get_attribute_value(a)
        for a in node.attribute
        if a.type in (AttributeProto.INT, AttributeProto.INTS)
    }
    return CROSSINGS[node.op_type](node.input, node.output, bodies(node, tied), attributes)


def nested(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the subgraphs of a node, in the order of its attributes."""
    subgraphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            subgraphs.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            subgraphs.extend(attribute.graphs)
    return subgraphs


def captured_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of the outer tensors that the subgraphs of a node read, sorted."""
    inner = [graph for subgraph in nested(node) for graph in graphs(subgraph)]
    defined = {tensor.name for graph in inner for tensor in (*graph.initializer, *graph.input)}
    defined |= {name for graph in inner for operator in graph.node for name in operator.output}
    read = {name for graph in inner for operator in graph.node for name in operator.input}
    read |= {value.name for graph in inner for value in graph.output}
    return tuple(sorted(name for name in read - defined if name))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all its subgraphs, at every depth."""
    yield graph
    for node in graph.node:
        for inner in nested(node):
            yield from graphs(inner)


def opened_graphs(graph: onnx.GraphProto, opened: Opened) -> Iterator[onnx.GraphProto]:
    """Yield the graph and the subgraphs of opened nodes."""
    yield graph
    for node in graph.node:
        for inner in nested(node) if node.output[0] in opened else ():
            yield from opened_graphs(inner, opened)


def operators(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every operator of the graph and of all its subgraphs, in the order of `Node.index`."""
    for node in graph.node:
        for inner in nested(node):
            yield from operators(inner)
        yield node


def visible(
    graph: onnx.GraphProto, opened: Opened, first: int = 0, *, inside: bool = False
) -> Iterator[tuple[int, onnx.NodeProto, bool]]:
    """Yield the operators of the graph and of the subgraphs of opened nodes.

    Args:
        graph: The graph.
        opened: The opened nodes.
        first: The index of the first operator.
        inside: Whether the graph itself is a subgraph.

    Yields:
        (`Node.index` of the operator, the operator, whether it belongs to a subgraph).
    """
    index = first
    for node in graph.node:
        for inner in nested(node):
            if node.output[0] in opened:
                yield from visible(inner, opened, index, inside=True)
            index += sum(1 for _ in operators(inner))
        yield index, node, inside
        index += 1


def openable(graph: onnx.GraphProto) -> Opened:
    """Return the nodes that can be opened, all their subgraphs tied.

    A node cannot be opened if a subgraph reuses the name of a tensor of another graph, because names identify tensors,
    if it contains sparse constants, or if the node does not match its operator's specification.
    """
    owners = [
        node
        for node in operators(graph)
        if node.op_type in CROSSINGS and node.domain in ("", "ai.onnx") and nested(node)
    ]
    if not owners:
        return {}
    definitions = Counter(name for scope in graphs(graph) for name in _defined(scope))
    return {
        node.output[0]: frozenset(body.name for body in bodies(node))
        for node in owners
        if all(_is_plain(scope, definitions) for inner in nested(node) for scope in graphs(inner)) and _fits(node)
    }


def _is_plain(graph: onnx.GraphProto, definitions: Mapping[str, int]) -> bool:
    """Return whether no other graph defines the same names (name -> number of graphs), and no constant is sparse."""
    stored_sparse = graph.sparse_initializer or any(
        a.name == "sparse_value" for node in graph.node for a in node.attribute
    )
    return not stored_sparse and all(definitions[name] == 1 for name in _defined(graph))


def _defined(graph: onnx.GraphProto) -> set[str]:
    computed = {name for node in graph.node for name in node.output if name}
    return computed | {entry.name for entry in (*graph.input, *graph.initializer)}


def _fits(node: onnx.NodeProto) -> bool:
    """Return whether the node matches its operator's specification."""
    try:
        stored_crossings(node)
    except ValueError:
        return False
    return True


def bodies(node: onnx.NodeProto, tied: Container[str] | None = None) -> tuple[Body, ...]:
    """Return the inputs and outputs of the subgraphs of a node.

    Args:
        node: The node.
        tied: The names of the tied subgraphs (see `Opened`); None for all.
    """
    return tuple(
        Body(
            a.name, tuple(v.name for v in a.g.input), tuple(v.name for v in a.g.output), tied is None or a.name in tied
        )
        for a in node.attribute
        if a.type == AttributeProto.GRAPH
    )
