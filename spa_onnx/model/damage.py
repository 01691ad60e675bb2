"""Checks for models that can be parsed but not processed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from spa_onnx.model.constants import graph_constants
from spa_onnx.model.subgraphs import graphs

BITS_PER_BYTE = 8

VALUE_FIELDS: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT32: "int32_data",
    TensorProto.INT64: "int64_data",
}
"""Element type -> the TensorProto field that holds one entry per element, if the tensor has no raw data."""


def stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and the tensors in attributes of a graph, without those of its subgraphs."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def damage(proto: onnx.ModelProto) -> str:
    """Return what is wrong with a model; an empty string if nothing is.

    The check covers text that is not UTF-8, nodes without outputs, and constants whose values do not fit their shape.
    """
    for graph in graphs(proto.graph):
        names = [
            text for node in graph.node for text in (node.name, node.op_type, node.domain, *node.input, *node.output)
        ]
        if not all(isinstance(text, str) for text in (*names, *(tensor.name for tensor in graph.initializer))):
            return "a name is not UTF-8"
        if not all(node.output for node in graph.node):
            return "a node has no output"
        for tensor in graph_constants(graph).values():
            problem = _tensor_damage(tensor)
            if problem:
                return f"{tensor.name or 'a constant'} {problem}"
    return ""


def _tensor_damage(tensor: onnx.TensorProto) -> str:
    """Return how the values of a tensor contradict its type and shape; an empty string if they fit."""
    try:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        return f"has the unknown type {tensor.data_type}"
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        fewest = 1 if bits == BITS_PER_BYTE else bits  # types of less than 8 bits are packed
        available = BITS_PER_BYTE * len(tensor.raw_data)
        fits, stored = count * fewest <= available <= count * bits, f"{len(tensor.raw_data)} bytes"
    elif tensor.data_type in VALUE_FIELDS:
        values = getattr(tensor, VALUE_FIELDS[tensor.data_type])
        fits, stored = len(values) == count, f"{len(values)} values"
    else:
        return ""
    return "" if fits else f"holds {stored}, which does not fit its shape {list(tensor.dims)}"
