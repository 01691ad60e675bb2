"""Sequences of fixed content: chunks and lists of tensors become Split and Concat, which have coupling rules.

torch.chunk is exported as SplitToSequence and SequenceAt, torch.cat of a list as SequenceConstruct and
ConcatFromSequence. See https://onnx.ai/onnx/operators/ for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx.model.constants import graph_constants
from spa_onnx.model.model import feeds
from spa_onnx.model.skeleton import skeleton
from spa_onnx.model.subgraphs import NONE_OPENED, captured_names, nested, openable, operators
from spa_onnx.model.traits import Array

AXES_AS_INPUT = 13
"""From this operator set on, Split and Unsqueeze read their sizes and axes from inputs."""


def uses_sequences(graph: onnx.GraphProto) -> bool:
    """Return whether a node of the graph or of its subgraphs makes a sequence."""
    return any(node.op_type in MAKERS and node.domain in ("", "ai.onnx") for node in operators(graph))


def unroll_sequences(proto: onnx.ModelProto) -> None:
    """Replace the nodes that read sequences of fixed content, and remove the sequences that nothing reads any more.

    A sequence has fixed content if the graph says how many tensors it holds, and at which positions they are taken.

    Args:
        proto: The model; it is modified.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    before = -1
    while (left := _sequence_nodes(proto.graph)) != before:  # the sizes of further pieces may be known by then
        before = left
        _unroll(proto.graph, _Unrolling(opset, _shapes(proto)))


def _sequence_nodes(graph: onnx.GraphProto) -> int:
    """Return the number of nodes that make or read sequences, also in subgraphs."""
    return sum(node.op_type in (*MAKERS, *READERS) for node in operators(graph))


def _unroll(graph: onnx.GraphProto, around: _Unrolling) -> None:
    """Replace the nodes of a graph and of its subgraphs. around: the state of the graph around it."""
    constants = {**around.constants, **graph_constants(graph)}
    made = {name for node in graph.node for name in node.output}
    work = _Unrolling(around.opset, around.shapes, constants, dict(around.contents), made)
    nodes = [new for node in graph.node for new in work.replaced(node)]
    kept = _read_by_something(nodes, graph, work.contents)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(work.initializers)
    left = {name for node in kept for name in node.output}
    for value in [value for value in graph.value_info if value.name in work.contents and value.name not in left]:
        graph.value_info.remove(value)


@dataclass(slots=True)
class _Unrolling:
    """The state of a pass over the nodes, in the order of execution.

    constants: the constants that the nodes see, by name. contents: sequence -> names of its tensors. made: the tensors
    that the nodes of the graph compute. initializers: constants of new nodes.
    """

    opset: int
    shapes: Mapping[str, list[int]]
    constants: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    contents: dict[str, list[str]] = field(default_factory=dict)
    made: Collection[str] = ()
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def replaced(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield what takes the place of a node; a node that makes a sequence stays, in front of what it holds."""
        kind = node.op_type if node.domain in ("", "ai.onnx") else ""
        for inner in nested(node):
            _unroll(inner, self)
        if kind in MAKERS:
            yield node
            yield from MAKERS[kind](self, node)
        elif kind in READERS and node.input[0] in self.contents:
            made = READERS[kind](self, node)
            yield from [node] if made is None else made
        else:
            if kind == "Identity" and node.input[0] in self.contents:
                self.contents[node.output[0]] = self.contents[node.input[0]]
            yield node

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def position(self, node: onnx.NodeProto, slot: int, size: int) -> int | None:
        """Return the position that an input gives, in a sequence of `size` tensors; None if it is not constant."""
        value = self.constant(node.input[slot])
        if value is None or not -size <= int(value.item()) < max(size, 1):
            return None
        return int(value.item()) % size if size else 0

    def vector(self, name: str, values: list[int]) -> str:
        """Return the name of a new constant vector."""
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name


def _constructed(work: _Unrolling, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """SequenceConstruct and SequenceEmpty: the sequence holds the inputs."""
    work.contents[node.output[0]] = list(node.input)
    yield from ()


def _inserted(work: _Unrolling, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """SequenceInsert: one tensor more, at a position or at the end."""
    before = work.contents.get(node.input[0])
    if before is None:
        return
    place: int | None = len(before)
    if len(node.input) > 2 and node.input[2]:
        value = work.constant(node.input[2])
        place = None if value is None else int(value.item()) + (len(before) if value.item() < 0 else 0)
    if place is not None:
        work.contents[node.output[0]] = [*before[:place], node.input[1], *before[place:]]
    yield from ()


def _erased(work: _Unrolling, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """SequenceErase: one tensor less, at a position or at the end."""
    before = work.contents.get(node.input[0])
    if not before:
        return
    place = work.position(node, 1, len(before)) if len(node.input) > 1 and node.input[1] else len(before) - 1
    if place is not None:
        work.contents[node.output[0]] = [*before[:place], *before[place + 1 :]]
    yield from ()


def _split(work: _Unrolling, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """SplitToSequence: pieces of given sizes, of equal size, or of one index each."""
    axis, keeps = _attribute(node, "axis", 0), _attribute(node, "keepdims", 1)
    sizes = _piece_sizes(work, node, axis)
    if not sizes:
        return
    drops_axis = not keeps and (len(node.input) < 2 or not node.input[1])
    name = node.output[0]
    pieces = [f"{name}__piece{number}" for number in range(len(sizes))]
    flat = [f"{piece}__flat" for piece in pieces]
    work.contents[name] = flat if drops_axis else pieces
    if pieces[0] in work.made:  # by an earlier pass, which could not replace all readers
        return
    if work.opset < AXES_AS_INPUT:
        yield helper.make_node("Split", [node.input[0]], pieces, f"{name}__split", axis=axis, split=sizes)
    else:
        inputs = [node.input[0], work.vector(f"{name}__sizes", sizes)]
        yield helper.make_node("Split", inputs, pieces, f"{name}__split", axis=axis)
    if drops_axis:
        yield from (_with_axis(work, "Squeeze", a, b, axis) for a, b in zip(pieces, flat, strict=True))


def _piece_sizes(work: _Unrolling, node: onnx.NodeProto, axis: int) -> list[int] | None:
    """Return the sizes of the pieces of a SplitToSequence; None if they depend on data."""
    split = work.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else np.asarray(1)
    if split is None:
        return None
    if split.ndim:
        return [int(size) for size in split]
    shape, size = work.shapes.get(node.input[0], []), int(split.item())
    whole = shape[axis] if -len(shape) <= axis < len(shape) else 0
    if whole < 1 or size < 1:
        return None
    return [size] * (whole // size) + ([whole % size] if whole % size else [])


def _element(work: _Unrolling, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """SequenceAt: one of the tensors."""
    tensors = work.contents[node.input[0]]
    place = work.position(node, 1, len(tensors))
    return None if place is None else [helper.make_node("Identity", [tensors[place]], [node.output[0]], node.name)]


def _joined(work: _Unrolling, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """ConcatFromSequence: the tensors along an axis, or along a new one."""
    tensors, axis = work.contents[node.input[0]], _attribute(node, "axis", 0)
    if not tensors:
        return None
    made = []
    if _attribute(node, "new_axis", 0):
        stacked = [f"{node.output[0]}__part{number}" for number in range(len(tensors))]
        made = [_with_axis(work, "Unsqueeze", a, b, axis) for a, b in zip(tensors, stacked, strict=True)]
        tensors = stacked
    return [*made, helper.make_node("Concat", tensors, [node.output[0]], node.name, axis=axis)]


def _length(work: _Unrolling, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """SequenceLength: a constant."""
    count = numpy_helper.from_array(np.asarray(len(work.contents[node.input[0]]), np.int64), node.output[0])
    return [helper.make_node("Constant", [], [node.output[0]], node.name, value=count)]


MAKERS: Mapping[str, Callable[[_Unrolling, onnx.NodeProto], Iterator[onnx.NodeProto]]] = {
    "SequenceConstruct": _constructed,
    "SequenceEmpty": _constructed,
    "SequenceInsert": _inserted,
    "SequenceErase": _erased,
    "SplitToSequence": _split,
}
"""Operators that make a sequence -> nodes that compute its tensors beside it."""

READERS: Mapping[str, Callable[[_Unrolling, onnx.NodeProto], list[onnx.NodeProto] | None]] = {
    "SequenceAt": _element,
    "ConcatFromSequence": _joined,
    "SequenceLength": _length,
}
"""Operators that read a sequence -> what takes their place; None if they depend on data."""


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _with_axis(work: _Unrolling, operator: str, x: str, y: str, axis: int) -> onnx.NodeProto:
    """Return a Squeeze or Unsqueeze of one axis."""
    if work.opset < AXES_AS_INPUT:
        return helper.make_node(operator, [x], [y], f"{y}__{operator}", axes=[axis])
    return helper.make_node(operator, [x, work.vector(f"{y}__axes", [axis])], [y], f"{y}__{operator}")


def _read_by_something(
    nodes: list[onnx.NodeProto], graph: onnx.GraphProto, contents: Mapping[str, list[str]]
) -> list[onnx.NodeProto]:
    """Return the nodes without the sequences of known content, and without the pieces, that nothing reads."""
    kept: list[onnx.NodeProto] = []
    read = {value.name for value in graph.output}
    ours = {*contents, *(name for names in contents.values() for name in names if "__piece" in name)}
    for node in reversed(nodes):
        if ours.issuperset(node.output) and read.isdisjoint(node.output):
            continue
        read.update((*node.input, *captured_names(node)))
        kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    return kept[::-1]


def _shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the known sizes of tensors, 0 for unknown ones. Only SplitToSequence needs them."""
    if all(node.op_type != "SplitToSequence" for node in operators(proto.graph)):
        return {}
    inferred = proto.graph
    for opened in (openable(proto.graph), NONE_OPENED):
        bare = skeleton(proto, feeds(proto.graph), {}, opened)
        with suppress(onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
            break
    values = (*inferred.input, *inferred.value_info)
    return {v.name: [max(dim.dim_value, 0) for dim in v.type.tensor_type.shape.dim] for v in values}
