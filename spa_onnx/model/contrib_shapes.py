"""Shape equivalents: standard nodes that give the same shapes as an operator for which ONNX cannot infer them.

Each family registers those of its operators. They take part in shape inference alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import NodeProto, helper

from spa_onnx.model.traits import ShapeEquivalent, operator_name, traits


def integer(node: NodeProto, name: str, default: int = 0) -> int:
    """Return an integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def like_first(*slots: int) -> ShapeEquivalent:
    """Return the equivalent of an operator whose first output, and those at `slots`, have the shape of its first input."""

    def nodes(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        for slot in (0, *slots):
            if slot < len(y) and y[slot]:
                yield helper.make_node("Identity", [x[0]], [y[slot]])

    return nodes


def sum_of_inputs(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield an Add: the output has the shape to which the inputs broadcast."""
    yield helper.make_node("Add" if len(x) > 1 else "Identity", list(x), [y[0]])


def without_activation(operator: str) -> ShapeEquivalent:
    """Return the equivalent of an operator that is another one with an activation behind it."""

    def nodes(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        plain = helper.make_node(operator, list(x[:3]), [y[0]])
        plain.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        yield plain

    return nodes


def part_of_axis(x: str, y: str, axis: int, start: int, end: int) -> Iterator[NodeProto]:
    """Yield the nodes that take the indices from `start` to `end` of an axis."""
    bounds = {f"{y}__{name}": value for name, value in (("start", start), ("end", end), ("axis", axis))}
    for name, value in bounds.items():
        yield helper.make_node("Constant", [], [name], value_ints=[value])
    yield helper.make_node("Slice", [x, *bounds], [y])


def first_of_axis(x: str, y: str, axis: int) -> Iterator[NodeProto]:
    """Yield the nodes that take the first index of an axis, which is then gone."""
    yield helper.make_node("Constant", [], [f"{y}__index"], value_int=0)
    yield helper.make_node("Gather", [x, f"{y}__index"], [y], axis=axis)


def shape_equivalents(node: NodeProto, ranks: Mapping[str, int]) -> list[NodeProto]:
    """Return the nodes that shape inference sees in the place of this one: itself, where it has no equivalent.

    Args:
        node: A node of the graph.
        ranks: The number of axes of each constant and graph input.
    """
    equivalent = traits(operator_name(node.op_type, node.domain)).shape
    return [node] if equivalent is None else list(equivalent(node, node.input, node.output, ranks))
