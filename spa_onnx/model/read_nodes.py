"""Reading the operators of a graph into `Node` objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from spa_onnx.model.constants import constant_tensor
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import Opened, bodies, captured_names, visible
from spa_onnx.model.traits import operator_name

PLAIN_ATTRIBUTES = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS, AttributeProto.FLOATS)


def read_nodes(
    graph: onnx.GraphProto, constants: Mapping[str, TensorProto], opened: Opened
) -> tuple[tuple[Node, ...], dict[str, str]]:
    """Read the operators of a graph and of the subgraphs of opened nodes, without Constant nodes.

    A constant with at most one axis longer than 1 that is read more than once gets a name for each use (see `Node`).

    Args:
        graph: The main graph.
        constants: The constants of the graph and its subgraphs, by name.
        opened: The opened nodes.

    Returns:
        (operators in topological order, name of a use -> name of the constant).
    """
    operators = list(visible(graph, opened))
    uses = Counter(name for _, proto, _ in operators for name in proto.input)
    shared = {name for name, t in constants.items() if uses[name] > 1 and sum(d > 1 for d in t.dims) <= 1}
    source: dict[str, str] = {}
    nodes = []
    for index, proto, inside in operators:
        if constant_tensor(proto) is not None or any(a.name == "sparse_value" for a in proto.attribute):
            continue
        name = proto.name or f"{proto.op_type}({proto.output[0]})"
        inputs = tuple(
            f"{tensor}@{name}:{slot}" if tensor in shared else tensor for slot, tensor in enumerate(proto.input)
        )
        source.update({use: tensor for use, tensor in zip(inputs, proto.input, strict=True) if use != tensor})
        operator = operator_name(proto.op_type, proto.domain)
        subgraphs = bodies(proto, opened[proto.output[0]]) if proto.output[0] in opened else ()
        captures = () if subgraphs else captured_names(proto)
        nodes.append(
            Node(index, name, operator, inputs, tuple(proto.output), _attributes(proto), captures, subgraphs, inside)
        )
    return tuple(nodes), source


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes as Python values and numpy arrays, without subgraphs and lists of tensors."""
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.TENSOR:
            attributes[attribute.name] = numpy_helper.to_array(attribute.t)
        elif attribute.type == AttributeProto.STRING:
            attributes[attribute.name] = attribute.s.decode(errors="replace")
        elif attribute.type == AttributeProto.STRINGS:
            attributes[attribute.name] = tuple(text.decode(errors="replace") for text in attribute.strings)
        elif attribute.type in PLAIN_ATTRIBUTES:
            value = onnx.helper.get_attribute_value(attribute)
            attributes[attribute.name] = tuple(value) if isinstance(value, list) else value
    return attributes
