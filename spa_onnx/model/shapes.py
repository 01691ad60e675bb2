"""Concrete sizes for every tensor: symbolic dimensions get a size to work with, then ONNX infers the rest."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.model.contrib_shapes import shape_equivalents
from spa_onnx.model.folding import Array, Value, fold
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import Opened, border, looked_into, nested

Shape = tuple[int, ...]
UNKNOWN = -1
"""The size of a dimension that depends on the data (the number of detections, say)."""

SMALL = 1024
"""Constants up to this many elements stay in the graph that is inferred: they may be shapes, pads or scales."""

GUESSES = (
    (2, 64, 16),
    (1, 64, 16),
    (1, 224, 32),
    (1, 256, 128),
    (1, 320, 64),
    (1, 512, 512),
    (1, 32, 32),
    (1, 48, 256),
)
"""(first dimension, height and width, any other): sizes tried in turn for symbolic dimensions."""

FEW = 8
"""Floats that a constant may have to count as scales, one per dimension."""

ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
"""What the name of a dimension may compute."""

NOTHING: Opened = {}
"""Branches and bodies stay within their nodes."""

_INTEGER = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


@dataclass(frozen=True, slots=True)
class Inference:
    """What is known of the tensors for one choice of symbolic sizes.

    shapes: tensor name -> sizes, UNKNOWN where a size depends on data. values: small tensors computed from shapes.
    dims: the size given to each symbolic dimension, by its name (`input:0` for an unnamed one).
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Value]
    dims: Mapping[str, int]


def symbolic_dims(inputs: Sequence[onnx.ValueInfoProto]) -> Iterator[tuple[str, bool, int]]:
    """(name, whether it counts samples, rank) of each symbolic dimension of the graph's inputs; `input:position` where it has no name.

    The first dimension does, and the one in the middle of a recurrent layer's state: (layers, samples, width).
    """
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        free = [position for position, dim in enumerate(dims) if not dim.HasField("dim_value") or dim.dim_value < 1]
        for position in free:
            counts = position == 0 or (len(dims) == 3 and free == [1])
            yield dims[position].dim_param or f"{value.name}:{position}", counts, len(dims)


def choose_dims(
    inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, int], guess: tuple[int, int, int]
) -> dict[str, int]:
    """A size for every symbolic dimension: the user's, what its name computes (`past + sequence`), or the guess for its place."""
    first, spatial, other = guess
    usual = {
        name: first if counts else spatial if rank == 4 else other
        for name, counts, rank in reversed([*symbolic_dims(inputs)])
    }
    chosen = {name: given.get(name, size) for name, size in reversed(usual.items())}
    computed = {name: _computed(name, chosen) for name in chosen if not name.isidentifier() and name not in given}
    return chosen | {name: size for name, size in computed.items() if size is not None and size > 0}


def _computed(name: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dimension's name that is arithmetic with other dimensions, as exporters write it; None for any other name."""
    try:
        return _value(ast.parse(name, mode="eval").body, sizes)
    except (SyntaxError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    """Raises KeyError for what is neither arithmetic nor known."""
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.BinOp):
        return ARITHMETIC[type(tree.op)](_value(tree.left, sizes), _value(tree.right, sizes))
    raise KeyError(ast.dump(tree))


def _fix_inputs(inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
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


def skeleton(
    proto: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int], opened: Opened = NOTHING
) -> onnx.ModelProto:
    """The model without its weights: large constants become inputs, so that inference never copies them.

    opened: nodes in whose place the operators of their branches or bodies stand.
    """
    graph = onnx.GraphProto(name="skeleton", input=_fix_inputs(inputs, dims))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inputs}
    _add_operators(graph, proto.graph, ranks, opened)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in proto.graph.output)
    return onnx.ModelProto(
        ir_version=max(proto.ir_version, 4), graph=graph, opset_import=proto.opset_import, functions=proto.functions
    )


def _add_operators(graph: onnx.GraphProto, source: onnx.GraphProto, ranks: dict[str, int], opened: Opened) -> None:
    """The constants and operators of a graph, and of the bodies of opened nodes. ranks: of constants and graph inputs."""
    ranks |= {tensor.name: len(tensor.dims) for tensor in source.initializer}
    for tensor in source.initializer:
        _add_constant(graph, tensor, tensor.name)
    for sparse in source.sparse_initializer:
        graph.input.append(
            onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, list(sparse.dims))
        )
    for node in source.node:
        value = constant_tensor(node)
        if value is not None:
            _add_constant(graph, value, node.output[0])
        elif node.output[0] in opened:
            around = border(node, opened[node.output[0]])
            graph.input.extend(around.inputs)
            graph.node.extend(around.before)
            for inner in nested(node):
                _add_operators(graph, inner, ranks, opened)
            graph.node.extend(around.after)
        else:
            graph.node.extend(shape_equivalents(node, ranks))


def constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; None for other nodes and for the forms that hold no dense tensor."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    makers = {"value_int": "i", "value_ints": "ints", "value_float": "f", "value_floats": "floats"}
    if attribute.name not in makers:
        return None
    kind = TensorProto.INT64 if "int" in attribute.name else TensorProto.FLOAT
    content = getattr(attribute, makers[attribute.name])
    many = attribute.name.endswith("s")
    return onnx.helper.make_tensor(
        node.output[0], kind, [len(content)] if many else [], list(content) if many else [content]
    )


def _add_constant(graph: onnx.GraphProto, tensor: TensorProto, name: str) -> None:
    size = 1
    for dim in tensor.dims:
        size *= dim
    if size <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = name
    else:
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def literals(graph: onnx.GraphProto) -> dict[str, Array]:
    """The constants that shape arithmetic may start from: short integer tensors and a few floats (scales)."""
    found = {}
    for tensor in graph.initializer:
        few = sum(dim > 1 for dim in tensor.dims) <= 1 and all(dim <= FEW for dim in tensor.dims)
        if tensor.data_type in _INTEGER or (few and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)):
            found[tensor.name] = numpy_helper.to_array(tensor)
    return found


def _is_weight(value: Value) -> bool:
    """Several floats that no size enters may be scales or a short bias: known for inference, but cut like any weight."""
    return value.is_literal and value.array.size > 1 and value.array.dtype.kind == "f"


def _read_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else UNKNOWN for d in kind.shape.dim)
    return shapes


def infer(
    bare: onnx.ModelProto, nodes: Sequence[Node], source: Mapping[str, str], dims: Mapping[str, int]
) -> Inference:
    """Infer all shapes, folding shape arithmetic and inferring again until nothing new is learnt.

    bare: the model's skeleton for these sizes, which is used up. source: use name -> constant, for the constants whose uses `nodes` tell
    apart.
    """
    seeds = literals(bare.graph)
    seeds.update({use: seeds[name] for use, name in source.items() if name in seeds})
    known: dict[str, Value] = {}
    while True:
        inferred = _infer(bare)
        inferred_shapes = _read_shapes(inferred.graph)
        shapes = dict(inferred_shapes)
        shapes.update({use: shapes[name] for use, name in source.items() if name in shapes})
        values = fold(nodes, shapes, seeds)
        learnt = [name for name in values if name not in known and name not in seeds]
        known = values
        if not learnt or not _unresolved(inferred.graph, inferred_shapes):
            break
        _replace(bare.graph, {name: values[name].array for name in learnt})
    shapes.update({name: value.array.shape for name, value in known.items()})
    copies = _copies(nodes, known)
    return Inference(
        shapes, {name: value for name, value in known.items() if not _is_weight(value) and name not in copies}, dims
    )


def _copies(nodes: Sequence[Node], known: Mapping[str, Value]) -> set[str]:
    """Stretched tensors that no shape arithmetic reads (indices expanded to all heads): known, but cut like any activation."""
    read = {name for node in nodes if all(output in known for output in node.outputs if output) for name in node.inputs}
    expanded = {node.outputs[0] for node in nodes if node.op == "Expand" and node.outputs[0] in known}
    return {name for name in expanded - read if known[name].array.ndim > 1}


def _infer(bare: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise RefusedError(f"the shapes of the graph contradict each other: {str(error).splitlines()[0]}") from error


def _unresolved(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> bool:
    return any(UNKNOWN in shapes.get(name, (UNKNOWN,)) for node in graph.node for name in node.output if name)


def _replace(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    """Put known values in the place of the nodes that compute them, so that inference can use them."""
    kept = [node for node in graph.node if not any(name in values for name in node.output)]
    present = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in values.items() if name not in present)
    del graph.node[:]
    graph.node.extend(kept)


def is_plausible(inference: Inference) -> bool:
    """Whether no tensor came out empty: a guess that is too small for the network's strides leaves none of it."""
    return all(size != 0 and size >= UNKNOWN for shape in inference.shapes.values() for size in shape)


def refresh_value_info(proto: onnx.ModelProto, opened: Opened = NOTHING) -> None:
    """Replace recorded shapes by freshly inferred ones: stale ones pass the checker and break the model.

    Entries keep their documentation and metadata; tensors that had none get none, and those that are gone lose theirs. opened: nodes
    whose branches or bodies may have changed as well; what enters and leaves these keeps its rank, which onnxruntime wants of a Scan.
    """
    main, *inner = looked_into(proto.graph, opened)
    if not main.value_info and not inner:
        return
    try:
        fresh = onnx.shape_inference.infer_shapes(skeleton(proto, main.input, {}, opened), data_prop=True)
        inferred = {value.name: value.type for value in (*fresh.graph.input, *fresh.graph.value_info)}
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = {}
    for graph in (main, *inner):
        alive = {name for node in graph.node for name in node.output}
        kept = [value for value in graph.value_info if value.name in alive]
        for value in kept:
            _renew(value.type, inferred.get(value.name), ranked=False)
        for value in (*graph.input, *graph.output) if graph is not main else ():
            _renew(value.type, inferred.get(value.name), ranked=True)
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _renew(stored: onnx.TypeProto, fresh: onnx.TypeProto | None, *, ranked: bool) -> None:
    """Put the inferred type in the place of a stored one. Where it has no shape that is forgotten, or all of it but its rank."""
    if fresh is not None and (fresh.tensor_type.HasField("shape") or not ranked):
        stored.CopyFrom(fresh)
    elif ranked:
        for dim in stored.tensor_type.shape.dim:
            dim.ClearField("dim_value")
    elif stored.HasField("tensor_type"):
        stored.tensor_type.ClearField("shape")
