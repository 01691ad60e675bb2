"""Random tensors in a model: they are replaced by zeros while two models are compared, which each draw their own."""

from __future__ import annotations

import onnx

from spa_onnx.model.subgraphs import operators
from spa_onnx.model.traits import operator_name, traits


def without_noise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose random tensors are zero; the model itself if it has none.

    Random numbers in the shape of x become x - x, in their type.
    """
    if not any(_is_random(node) for node in operators(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        nodes += _zeros(node) if _is_random(node) else [node]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _is_random(node: onnx.NodeProto) -> bool:
    """Return whether a node draws numbers in the shape of its input."""
    return traits(operator_name(node.op_type, node.domain)).random


def _zeros(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes that compute zeros in the shape of the input and the type of the output."""
    (x,), (y,) = node.input, node.output
    dtype = next((attribute.i for attribute in node.attribute if attribute.name == "dtype"), 0)
    difference = f"{y}__zeros" if dtype else y
    made = [onnx.helper.make_node("Sub", [x, x], [difference], f"{y}__difference")]
    return made + ([onnx.helper.make_node("Cast", [difference], [y], f"{y}__cast", to=dtype)] if dtype else [])
