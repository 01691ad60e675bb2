"""Shape equivalents: standard nodes with the same output shapes as an operator that ONNX shape inference does not know.

Each operator family registers the equivalents of its operators. They are used for shape inference only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import NodeProto, helper

from spa_onnx.model.traits import ShapeEquivalent, operator_name, traits


def integer(node: NodeProto, name: str, default: int = 0) -> int:
    """Return an integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def like_first(*slots: int) -> ShapeEquivalent:
    """Return the shape equivalent of an operator whose outputs have the shape of its first input.

    Args:
        *slots: The positions of outputs, besides the first one, that have this shape.
    """

    def nodes(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        """Yield an Identity for each output of this shape."""
        for slot in (0, *slots):
            if slot < len(y) and y[slot]:
                yield helper.make_node("Identity", [x[0]], [y[slot]])

    return nodes


def sum_of_inputs(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield the shape equivalent of an operator whose output has the shape to which its inputs broadcast."""
    yield helper.make_node("Add" if len(x) > 1 else "Identity", list(x), [y[0]])


def without_activation(operator: str) -> ShapeEquivalent:
    """Return the shape equivalent of an operator that fuses a standard operator with an activation.

    Args:
        operator: The standard operator; it receives the first three inputs.
    """

    def nodes(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        """Yield the standard operator without the activation."""
        plain = helper.make_node(operator, list(x[:3]), [y[0]])
        plain.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        yield plain

    return nodes


def part_of_axis(x: str, y: str, axis: int, start: int, end: int) -> Iterator[NodeProto]:
    """Yield the nodes that compute `y` as the indices from `start` to `end` (exclusive) of an axis of `x`."""
    bounds = {f"{y}__{name}": value for name, value in (("start", start), ("end", end), ("axis", axis))}
    for name, value in bounds.items():
        yield helper.make_node("Constant", [], [name], value_ints=[value])
    yield helper.make_node("Slice", [x, *bounds], [y])


def first_of_axis(x: str, y: str, axis: int) -> Iterator[NodeProto]:
    """Yield the nodes that compute `y` as the first index of an axis of `x`, without that axis."""
    yield helper.make_node("Constant", [], [f"{y}__index"], value_int=0)
    yield helper.make_node("Gather", [x, f"{y}__index"], [y], axis=axis)


def shape_equivalents(node: NodeProto, ranks: Mapping[str, int]) -> list[NodeProto]:
    """Return the nodes that replace a node in shape inference: its shape equivalent, or itself if it has none.

    Args:
        node: A node of the graph.
        ranks: Name of a constant or graph input -> its number of axes.
    """
    equivalent = traits(operator_name(node.op_type, node.domain)).shape
    return [node] if equivalent is None else list(equivalent(node, node.input, node.output, ranks))
