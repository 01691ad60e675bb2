"""The constants that a graph stores: initializers and the outputs of Constant nodes."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from spa_onnx.model.subgraphs import graphs, nested


def constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node; None for other nodes and for strings and sparse tensors."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    fields = {"value_int": "i", "value_ints": "ints", "value_float": "f", "value_floats": "floats"}
    if attribute.name not in fields:
        return None
    dtype = TensorProto.INT64 if "int" in attribute.name else TensorProto.FLOAT
    content = getattr(attribute, fields[attribute.name])
    is_list = attribute.name.endswith("s")
    return onnx.helper.make_tensor(
        node.output[0], dtype, [len(content)] if is_list else [], list(content) if is_list else [content]
    )


def graph_constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the dense constants of a graph by name, without those of its subgraphs."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            constants[node.output[0]] = tensor
    return constants


def nested_constants(node: onnx.NodeProto) -> dict[str, TensorProto]:
    """Return the dense constants in the subgraphs of a node, at every depth, by name."""
    return {
        name: tensor
        for subgraph in nested(node)
        for graph in graphs(subgraph)
        for name, tensor in graph_constants(graph).items()
    }


def sparse_tensors(graph: onnx.GraphProto) -> dict[str, onnx.SparseTensorProto]:
    """Return the sparse constants of a graph by name, without those of its subgraphs."""
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                sparse[node.output[0]] = attribute.sparse_tensor
    return sparse
