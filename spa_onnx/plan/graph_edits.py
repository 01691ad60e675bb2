"""Changes of nodes, done with onnx-graphsurgeon; everything that it drops is carried over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx

from spa_onnx.model.facts import Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.subgraphs import graphs


@dataclass(frozen=True, slots=True)
class Take:
    """Replace the node that computes `output` by a Gather of `indices` from `source` along `axis`."""

    output: str
    source: str
    axis: int
    indices: Indices


@dataclass(frozen=True, slots=True)
class Blend:
    """Replace some elements of an input.

    At input `slot` of the node that computes `output`, the elements in `where` become `values`. The others are computed
    as before.
    """

    output: str
    slot: int
    values: Array
    where: Array


@dataclass(frozen=True, slots=True)
class Scale:
    """Rescale an input.

    Input `slot` of the node that computes `output` is multiplied by `times` and divided by `over`, element by element.
    """

    output: str
    slot: int
    times: Array
    over: Array


Operation: TypeAlias = Take | Blend | Scale


def operate(proto: onnx.ModelProto, operations: Sequence[Operation]) -> onnx.ModelProto:
    """Return the model with the operations carried out, also in branches and bodies. `proto` is consumed."""
    main, *inner = graphs(proto.graph)
    for graph in inner:
        mine = _of(graph, operations)
        if mine:
            alone = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import, graph=graph)
            graph.CopyFrom(_operate(alone, mine).graph)
    mine = _of(main, operations)
    return _operate(proto, mine) if mine else proto


def _of(graph: onnx.GraphProto, operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations on nodes of this graph, without its subgraphs."""
    made = {name for node in graph.node for name in node.output}
    return [operation for operation in operations if operation.output in made]


def _operate(proto: onnx.ModelProto, operations: Sequence[Operation]) -> onnx.ModelProto:
    """Return a new model with operations on nodes of its main graph carried out."""
    import onnx_graphsurgeon as gs  # noqa: PLC0415 - slow to import and needed for few models
    from onnx_graphsurgeon.logger import G_LOGGER  # noqa: PLC0415

    G_LOGGER.severity = G_LOGGER.CRITICAL  # its warnings go to stdout, where results belong
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        graph = gs.import_onnx(proto)
        producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        tensors = graph.tensors()
        for number, operation in enumerate(operations):
            if isinstance(operation, Take):
                _take(gs, producers[operation.output], tensors[operation.source], operation, number)
            elif isinstance(operation, Blend):
                _blend(gs, graph, producers[operation.output], operation, number)
            else:
                _scale(gs, graph, producers[operation.output], operation, number)
        exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    carry_over(proto, exported, operations)
    return exported


def _take(gs: Any, node: Any, source: Any, operation: Take, number: int) -> None:
    """Carry out a Take."""
    node.op, node.attrs = "Gather", {"axis": operation.axis}
    node.inputs = [source, gs.Constant(f"{operation.output}__indices_{number}", operation.indices)]


def _blend(gs: Any, graph: Any, node: Any, operation: Blend, number: int) -> None:
    """Carry out a Blend."""
    name = f"{operation.output}__shape_{number}"
    result = gs.Variable(name, dtype=operation.values.dtype, shape=operation.values.shape)
    inputs = [
        gs.Constant(f"{name}_where", operation.where),
        gs.Constant(f"{name}_values", operation.values),
        node.inputs[operation.slot],
    ]
    graph.nodes.insert(graph.nodes.index(node), gs.Node("Where", name=f"{name}_blend", inputs=inputs, outputs=[result]))
    node.inputs[operation.slot] = result


def _scale(gs: Any, graph: Any, node: Any, operation: Scale, number: int) -> None:
    """Carry out a Scale."""
    for op, factors in (("Mul", operation.times), ("Div", operation.over)):
        if (factors != 1).any():
            name = f"{operation.output}__shape_{number}_{op.lower()}"
            result = gs.Variable(name, dtype=factors.dtype, shape=factors.shape)
            inputs = [node.inputs[operation.slot], gs.Constant(f"{name}_by", factors)]
            graph.nodes.insert(graph.nodes.index(node), gs.Node(op, name=name, inputs=inputs, outputs=[result]))
            node.inputs[operation.slot] = result


def carry_over(original: onnx.ModelProto, exported: onnx.ModelProto, operations: Sequence[Operation] = ()) -> None:
    """Restore everything that a round trip through onnx-graphsurgeon loses (version 0.6.1).

    These are metadata and documentation at every level, the domain, version and producer of the model, quantization
    annotations, the declared types of inputs and outputs with their dimension names and denotations, recorded shapes,
    and initializers that no node of the main graph reads. Nodes that no operation touched are those of the original,
    with their subgraphs.

    Args:
        original: The model before the round trip.
        exported: The model after it, which is changed.
        operations: The operations that were carried out.
    """
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(exported, field, getattr(original, field))
    for repeated in ("metadata_props", "opset_import", "functions", "training_info"):
        _replace(getattr(exported, repeated), getattr(original, repeated))
    graph, source = exported.graph, original.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    for repeated in ("metadata_props", "quantization_annotation", "value_info", "output"):
        _replace(getattr(graph, repeated), getattr(source, repeated))
    replaced = {operation.output for operation in operations if isinstance(operation, Take)}
    dropped = {name for node in source.node if node.output[0] in replaced for name in node.input}
    dropped -= {name for nested in list(graphs(source))[1:] for node in nested.node for name in node.input}
    stored = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name not in dropped | stored)
    stored = {tensor.name for tensor in graph.initializer}
    gone = {tensor.name for tensor in source.initializer} - stored
    _replace(graph.input, [value for value in source.input if value.name not in gone])
    if original.ir_version < 4:
        _list_initializers(graph)
    _carry_entries(graph.initializer, source.initializer)
    _carry_nodes(
        graph.node, source.node, replaced, {(op.output, op.slot) for op in operations if not isinstance(op, Take)}
    )


def _carry_nodes(
    fresh: Iterable[onnx.NodeProto], source: Iterable[onnx.NodeProto], replaced: set[str], blended: set[tuple[str, int]]
) -> None:
    """Restore the fields of nodes.

    replaced: outputs of nodes that became a Gather. blended: (output, slot) of inputs that now come from a Where or a
    Div.
    """
    twins = {tuple(node.output): node for node in source}
    for node in fresh:
        twin = twins.get(tuple(node.output))
        if twin is None:
            continue
        if node.output[0] in replaced:
            node.doc_string, node.name = twin.doc_string, twin.name
            _replace(node.metadata_props, twin.metadata_props)
            continue
        inputs = list(node.input)
        node.CopyFrom(twin)
        for slot, name in enumerate(inputs):
            if (node.output[0], slot) in blended:
                node.input[slot] = name


def _list_initializers(graph: onnx.GraphProto) -> None:
    """List every initializer as a graph input, as IR versions before 4 require."""
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _carry_entries(fresh: Iterable[onnx.TensorProto], source: Iterable[onnx.TensorProto]) -> None:
    """Restore the fields of initializers."""
    twins = {tensor.name: tensor for tensor in source}
    for tensor in fresh:
        if tensor.name in twins:
            tensor.CopyFrom(twins[tensor.name])


def _replace(field: Any, entries: Any) -> None:
    """Replace the entries of a repeated field."""
    del field[:]
    field.extend(entries)
