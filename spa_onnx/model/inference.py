"""Shape inference: ONNX infers sizes, shape arithmetic is folded, and sizes that depend on data get a stand-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.model.data_sizes import STAND_INS, put_stand_ins, varying_axes
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array, Value, fold
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import UNKNOWN, Shape

FEW = 8
"""A float constant with at most this many elements may hold scales, one per dimension."""

_INTEGER = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


@dataclass(frozen=True, slots=True)
class Inference:
    """Shapes and values of tensors for one choice of symbolic sizes.

    Args:
        shapes: Tensor name -> sizes, a stand-in for a size that depends on data, UNKNOWN if there is none.
        values: Tensor name -> value, for small tensors computed from shapes.
        dims: Name of a symbolic dimension -> its size; an unnamed one is called `input:position`.
        data_axes: The axes whose sizes depend on data.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Value]
    dims: Mapping[str, int]
    data_axes: frozenset[Axis] = frozenset()


def literals(graph: onnx.GraphProto) -> dict[str, Array]:
    """Return the initializers that shape arithmetic may read, by name.

    These are all integer and boolean tensors, and float tensors of at most `FEW` elements along a single axis, which
    may be scales.
    """
    arrays = {}
    for tensor in graph.initializer:
        few = sum(dim > 1 for dim in tensor.dims) <= 1 and all(dim <= FEW for dim in tensor.dims)
        if tensor.data_type in _INTEGER or (few and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)):
            arrays[tensor.name] = numpy_helper.to_array(tensor)
    return arrays


def _is_weight(value: Value) -> bool:
    """Return whether a value is a float constant of several elements, which is pruned like any weight."""
    return value.is_literal and value.array.size > 1 and value.array.dtype.kind == "f"


def _read_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Return the recorded shapes of all tensors."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor_type.HasField("shape"):
            dims = tensor_type.shape.dim
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else UNKNOWN for dim in dims)
    return shapes


@dataclass(frozen=True, slots=True)
class Known:
    """Values that shape arithmetic starts from.

    Args:
        literals: Constant -> value.
        sizes: Graph input that holds the size of an axis -> that size.
    """

    literals: Mapping[str, Array]
    sizes: Mapping[str, Value]

    def __contains__(self, name: str) -> bool:
        return name in self.literals or name in self.sizes


def sizes_given_as_inputs(inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int]) -> dict[str, Value]:
    """Return the integer inputs of one element that are called like a symbolic dimension of another input.

    Such an input holds the size of that dimension.

    Args:
        inputs: The graph inputs that are not initializers.
        dims: Name of a symbolic dimension -> its size.
    """
    axes = {
        dim.dim_param: Axis(value.name, number)
        for value in reversed(inputs)
        for number, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.dim_param
    }
    return {
        value.name: Value(np.full(shape, dims[value.name], np.int64), (frozenset({axes[value.name]}),))
        for value in inputs
        if value.name in axes
        and value.name in dims
        and value.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)
        and prod(shape := [dim.dim_value for dim in value.type.tensor_type.shape.dim]) == 1
    }


def infer(
    bare: onnx.ModelProto,
    nodes: Sequence[Node],
    source: Mapping[str, str],
    dims: Mapping[str, int],
    sizes: Mapping[str, Value],
) -> Inference:
    """Infer all shapes: fold shape arithmetic and infer again, until no new value is found.

    Args:
        bare: The skeleton of the model for these sizes; it is modified.
        nodes: The operators of the model.
        source: Name of a use -> name of the constant, for constants that have a name for each use.
        dims: Name of a symbolic dimension -> its size.
        sizes: Graph input that holds the size of an axis -> that size; see `sizes_given_as_inputs`.

    Raises:
        RefusedError: The shapes contradict each other.
    """
    seeds = literals(bare.graph)
    seeds.update({use: seeds[name] for use, name in source.items() if name in seeds})
    known = Known(seeds, sizes)
    shapes, values = _resolved(bare, nodes, source, known)
    data_axes: frozenset[Axis] = frozenset()
    if any(UNKNOWN in shapes.get(name, ()) for node in nodes for name in node.outputs if name):
        with suppress(RefusedError):  # a tensor may have no size that fits, and stays unknown
            shapes, values, data_axes = _with_stand_ins(bare, nodes, source, known)
    copies = _copies(nodes, values)
    kept = {name: value for name, value in values.items() if not _is_weight(value) and name not in copies}
    return Inference(shapes, kept, dims, data_axes)


def _resolved(
    bare: onnx.ModelProto,
    nodes: Sequence[Node],
    source: Mapping[str, str],
    known: Known,
    stand_in: int | None = None,
) -> tuple[dict[str, Shape], dict[str, Value]]:
    """Return the shapes and values; with a stand-in, it takes the place of sizes that depend on data."""
    values: dict[str, Value] = {}
    while True:
        inferred = _infer(bare)
        inferred_shapes = _read_shapes(inferred.graph)
        shapes = dict(inferred_shapes)
        shapes.update({use: shapes[name] for use, name in source.items() if name in shapes})
        previous, values = values, fold(nodes, shapes, known.literals, known.sizes)
        new = [name for name in values if name not in previous and name not in known]
        if not _unresolved(inferred.graph, inferred_shapes):
            break
        if new:
            _replace(bare.graph, {name: values[name].array for name in new})
        elif stand_in is None or not put_stand_ins(bare.graph, inferred.graph, stand_in):
            break
    shapes.update({name: value.array.shape for name, value in values.items()})
    return shapes, values


def _with_stand_ins(
    bare: onnx.ModelProto, nodes: Sequence[Node], source: Mapping[str, str], known: Known
) -> tuple[dict[str, Shape], dict[str, Value], frozenset[Axis]]:
    """Return the shapes and values with stand-ins for sizes that depend on data, and the axes of these sizes."""
    found = []
    for stand_in in STAND_INS:
        copy = onnx.ModelProto()
        copy.CopyFrom(bare)
        found.append(_resolved(copy, nodes, source, known, stand_in))
    (shapes, values), (others, other_values) = found
    same = {
        name: value
        for name, value in values.items()
        if not value.is_literal
        or (name in other_values and np.array_equal(value.array, other_values[name].array, equal_nan=True))
    }
    return shapes, same, frozenset(varying_axes(shapes, others))


def _copies(nodes: Sequence[Node], values: Mapping[str, Value]) -> set[str]:
    """Return outputs of Expand that shape arithmetic does not read, as indices expanded to all heads.

    They are pruned like activations.
    """
    read = {
        name for node in nodes if all(output in values for output in node.outputs if output) for name in node.inputs
    }
    expanded = {node.outputs[0] for node in nodes if node.op == "Expand" and node.outputs[0] in values}
    return {name for name in expanded - read if values[name].array.ndim > 1}


def _infer(bare: onnx.ModelProto) -> onnx.ModelProto:
    """Run ONNX shape inference; raise RefusedError if it fails."""
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise RefusedError(f"the shapes of the graph contradict each other: {str(error).splitlines()[0]}") from error


def _unresolved(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> bool:
    """Return whether a size of a computed tensor is unknown."""
    return any(UNKNOWN in shapes.get(name, (UNKNOWN,)) for node in graph.node for name in node.output if name)


def _replace(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    """Replace nodes by the known values of their outputs, so that inference can read these."""
    kept = [node for node in graph.node if not any(name in values for name in node.output)]
    present = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in values.items() if name not in present)
    del graph.node[:]
    graph.node.extend(kept)


def is_plausible(inference: Inference) -> bool:
    """Return whether no tensor is empty. Tensors become empty if an input is too small for the strides of the model."""
    return all(size != 0 and size >= UNKNOWN for shape in inference.shapes.values() for size in shape)
