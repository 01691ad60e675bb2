"""The skeleton of a model: its graph without large weights, as input of ONNX shape inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx
from onnx import TensorProto

from spa_onnx.model.border import border
from spa_onnx.model.constants import constant_tensor
from spa_onnx.model.contrib_shapes import shape_equivalents
from spa_onnx.model.subgraphs import NONE_OPENED, Opened, nested

SMALL = 1024
"""Constants of up to this many elements keep their values in the skeleton: they may be shapes, pads or scales."""


def skeleton(
    proto: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int], opened: Opened = NONE_OPENED
) -> onnx.ModelProto:
    """Return a model with the same shapes and without large weights, so that shape inference never copies them.

    Constants of more than `SMALL` elements become graph inputs. Operators that ONNX does not know are replaced by their
    shape equivalents, and opened nodes by the operators of their subgraphs.

    Args:
        proto: The model; it is not changed.
        inputs: The graph inputs that are not initializers.
        dims: Name of a symbolic dimension, `input:position` if it is unnamed -> its size.
        opened: The opened nodes.
    """
    graph = onnx.GraphProto(name="skeleton", input=_fix_inputs(inputs, dims))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inputs}
    _add_operators(graph, proto.graph, ranks, opened)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in proto.graph.output)
    return onnx.ModelProto(
        ir_version=max(proto.ir_version, 4), graph=graph, opset_import=proto.opset_import, functions=proto.functions
    )


def _fix_inputs(inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
    """Return copies of the inputs with sizes in place of symbolic dimensions."""
    fixed = []
    for value in inputs:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        for position, dim in enumerate(copy.type.tensor_type.shape.dim):
            name = dim.dim_param or f"{value.name}:{position}"
            if name in dims and dim.dim_value < 1:
                dim.dim_value = dims[name]
        fixed.append(copy)
    return fixed


def _add_operators(graph: onnx.GraphProto, source: onnx.GraphProto, ranks: dict[str, int], opened: Opened) -> None:
    """Add the constants and operators of `source`; `ranks` holds the rank of each constant and graph input."""
    ranks |= {tensor.name: len(tensor.dims) for tensor in source.initializer}
    for tensor in source.initializer:
        _add_constant(graph, tensor, tensor.name)
    for sparse in source.sparse_initializer:
        graph.input.append(
            onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, list(sparse.dims))
        )
    for node in source.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            _add_constant(graph, tensor, node.output[0])
        elif node.output[0] in opened:
            around = border(node, opened[node.output[0]])
            graph.input.extend(around.inputs)
            graph.node.extend(around.before)
            for subgraph in nested(node):
                _add_operators(graph, subgraph, ranks, opened)
            graph.node.extend(around.after)
        else:
            graph.node.extend(shape_equivalents(node, ranks))


def _add_constant(graph: onnx.GraphProto, tensor: TensorProto, name: str) -> None:
    """Add a constant as an initializer, or as a graph input if it is large."""
    if prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = name
    else:
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
