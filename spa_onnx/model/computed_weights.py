"""Weights that the graph computes from constants alone, as weight normalisation does: they become constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from spa_onnx.model.constants import constant_tensor, graph_constants
from spa_onnx.model.model import FLOATS
from spa_onnx.model.skeleton import SMALL, skeleton
from spa_onnx.model.subgraphs import captured_names, nested
from spa_onnx.model.traits import Array, Moves, is_registered, operator_name, traits
from spa_onnx.model.unread import remove_unread, unread_nodes

GROWTH = 4
"""A computed weight may take this many times the bytes of the constants that it takes the place of."""

SMALL_BYTES = 2**20
"""A computed weight of up to this many bytes may take more, like a kernel that is repeated for each channel."""

SIZED = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
"""Element types of a known size."""

Types = Mapping[str, onnx.TypeProto.Tensor]
"""Name of a tensor -> its element type and shape."""


@dataclass(frozen=True, slots=True)
class _Cone:
    """A tensor that is computed from constants alone.

    Args:
        name: The tensor.
        nodes: The nodes that compute it, in the order of the graph.
        constants: The constants that they read.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[str, ...]


def computed_weights(proto: onnx.ModelProto) -> dict[str, Array]:
    """Return the weights of the main graph that are computed from constants alone, by name.

    These are float tensors that come out of arithmetic. Constants that are only moved, cast or dequantised have rules
    of their own, and are pruned in the form in which they are stored. A weight that would take much more space than
    the constants that it is computed from is left out.

    Args:
        proto: The model, its nodes in the order of execution.
    """
    constants = graph_constants(proto.graph)
    if proto.ir_version >= 4:  # a user may give another value for these
        for value in proto.graph.input:
            constants.pop(value.name, None)
    cones = [cone for cone in _cones(proto.graph, constants) if _is_arithmetic_on_weights(cone, constants)]
    if not cones:
        return {}
    types = _inferred_types(proto, cones, constants)
    spared = _only_read_by(cones, proto.graph, constants)
    found: dict[str, Array] = {}
    for cone in cones:
        value = _value(proto, cone, constants) if _is_small(cone, types, spared) else None
        if value is not None:
            found[cone.name] = value
    return {cone.name: found[cone.name] for cone in cones if all(n in found for n in cone.nodes[-1].output if n)}


def store_weights(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Store computed weights as initializers, in the place of the nodes and constants that only they need.

    Args:
        proto: The model; it is modified.
        weights: Their values, by name.
    """
    graph = proto.graph
    dead_before = unread_nodes(graph)
    makers = [node for node in graph.node if not weights.keys().isdisjoint(node.output)]
    rest = [node for node in graph.node if weights.keys().isdisjoint(node.output)]
    unused = {name for node in makers for name in node.input}
    del graph.node[:]
    graph.node.extend(rest)
    for name, array in weights.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        if proto.ir_version < 4:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    remove_unread([graph], dead_before, unused)
    left = {name for node in graph.node for name in node.output}
    for value in [value for value in graph.value_info if value.name not in left]:
        graph.value_info.remove(value)


# --- what is computed from constants ---------------------------------------------------------------------------------


def _cones(graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> Iterator[_Cone]:
    """Yield the tensors that are computed from constants alone and read by a node that is not."""
    maker: dict[str, int] = {}
    read: dict[str, None] = {}
    for number, node in enumerate(graph.node):
        if constant_tensor(node) is not None:
            continue
        inputs = [name for name in node.input if name]
        if inputs and _is_computable(node) and all(name in constants or name in maker for name in inputs):
            maker.update(dict.fromkeys(filter(None, node.output), number))
        else:
            read.update(dict.fromkeys(name for name in (*inputs, *captured_names(node)) if name in maker))
    shown = {value.name for value in graph.output}
    for name in read:
        if name not in shown:
            yield _cone(name, graph, maker)


def _is_computable(node: onnx.NodeProto) -> bool:
    """Return whether a node of constants is one itself: a known operator, which neither draws nor quantises."""
    name = operator_name(node.op_type, node.domain)
    known = traits(name)
    standard = node.domain in ("", "ai.onnx") and is_registered(name) and known.random is None
    return standard and known.moves is not Moves.ROUND and known.quantised is None and not nested(node)


def _cone(name: str, graph: onnx.GraphProto, maker: Mapping[str, int]) -> _Cone:
    """Return a tensor with the nodes and constants that it is computed from."""
    numbers: set[int] = set()
    sources: dict[str, None] = {}
    waiting = [name]
    while waiting:
        tensor = waiting.pop()
        if tensor not in maker:
            sources[tensor] = None
        elif maker[tensor] not in numbers:
            numbers.add(maker[tensor])
            waiting += filter(None, graph.node[maker[tensor]].input)
    return _Cone(name, tuple(graph.node[number] for number in sorted(numbers)), tuple(sources))


def _is_arithmetic_on_weights(cone: _Cone, constants: Mapping[str, TensorProto]) -> bool:
    """Return whether a float constant of several elements goes through more than moves and casts."""
    weights = (t for t in map(constants.__getitem__, cone.constants) if t.data_type in FLOATS and prod(t.dims) > 1)
    return any(True for _ in weights) and not all(map(_is_move, cone.nodes))


def _is_move(node: onnx.NodeProto) -> bool:
    """Return whether the rules of a node cut the constant that it moves; those of Tile cut nothing that it repeats."""
    known = traits(operator_name(node.op_type, node.domain))
    moves = known.moves is not Moves.NOTHING or (known.fold is not None and known.fold.moved is not None)
    return moves and node.op_type != "Tile"


def _only_read_by(
    cones: Sequence[_Cone], graph: onnx.GraphProto, constants: Mapping[str, TensorProto]
) -> dict[str, int]:
    """Return the bytes of each constant that is no longer needed once all cones are stored."""
    inside = {id(node): node for cone in cones for node in cone.nodes}
    reads = Counter(name for node in graph.node for name in (*node.input, *captured_names(node)))
    reads.update(value.name for value in graph.output)
    reads.subtract(name for node in inside.values() for name in node.input)
    names = {name for cone in cones for name in cone.constants}
    return {name: _bytes(constants[name].data_type, constants[name].dims) for name in names if reads[name] <= 0}


# --- their sizes and values ------------------------------------------------------------------------------------------


def _inferred_types(proto: onnx.ModelProto, cones: Sequence[_Cone], constants: Mapping[str, TensorProto]) -> Types:
    """Return the types of all tensors of cones whose shapes can be inferred."""
    nodes = {id(node): node for cone in cones for node in cone.nodes}
    stored = {name: constants[name] for cone in cones for name in cone.constants}
    bare = skeleton(_model(proto, list(nodes.values()), {n: _without_values(t) for n, t in stored.items()}), [], {})
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    return {value.name: value.type.tensor_type for value in inferred.value_info}


def _without_values(tensor: TensorProto) -> TensorProto:
    """Return a large constant without its values, which shape inference does not read; a small one as it is."""
    if prod(tensor.dims) <= SMALL:
        return tensor
    return TensorProto(data_type=tensor.data_type, dims=tensor.dims)


def _model(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, TensorProto]
) -> onnx.ModelProto:
    """Return a model of some nodes and constants, without inputs and outputs."""
    graph = onnx.GraphProto(name="constants", node=nodes)
    for name, tensor in constants.items():
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = name
    return onnx.ModelProto(ir_version=max(proto.ir_version, 4), graph=graph, opset_import=proto.opset_import)


def _bytes(element_type: int, sizes: Sequence[int]) -> int:
    """Return the bytes of a tensor."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize) * prod(sizes)


def _is_small(cone: _Cone, types: Types, spared: Mapping[str, int]) -> bool:
    """Return whether a weight, and all that it is computed through, is float and takes little more than before.

    Args:
        cone: The weight.
        types: The types of tensors.
        spared: Constant -> its bytes, for constants that are no longer needed.
    """
    if cone.name not in types or types[cone.name].elem_type not in FLOATS:
        return False
    limit = max(SMALL_BYTES, GROWTH * sum(spared.get(name, 0) for name in cone.constants))
    for name in (name for node in cone.nodes for name in node.output if name):
        known = types.get(name)
        if known is None or not known.HasField("shape") or not all(d.HasField("dim_value") for d in known.shape.dim):
            return False
        if known.elem_type not in SIZED or _bytes(known.elem_type, [dim.dim_value for dim in known.shape.dim]) > limit:
            return False
    return bool(prod(dim.dim_value for dim in types[cone.name].shape.dim) > 1)


def _value(proto: onnx.ModelProto, cone: _Cone, constants: Mapping[str, TensorProto]) -> Array | None:
    """Return the value of a weight; None if onnx's reference implementation does not compute finite numbers."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - hardly ever needed, and slow to import

    model = _model(proto, cone.nodes, {name: constants[name] for name in cone.constants})
    model.graph.output.add(name=cone.name)
    try:
        with np.errstate(all="ignore"):
            (array,) = ReferenceEvaluator(model).run(None, {})
    except Exception:  # noqa: BLE001 - onnx documents no exception type
        return None
    array = np.asarray(array)
    return array if bool(np.isfinite(array.astype(np.float64)).all()) else None
