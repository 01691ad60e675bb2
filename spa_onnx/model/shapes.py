"""Shape inference: symbolic dimensions get a size, ONNX infers the other sizes, shape arithmetic is folded."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.model.constants import constant_tensor
from spa_onnx.model.folding import Array, Value, fold
from spa_onnx.model.node import Node
from spa_onnx.model.skeleton import skeleton
from spa_onnx.model.subgraphs import NONE_OPENED, Opened, opened_graphs

Shape = tuple[int, ...]
UNKNOWN = -1
"""The size of a dimension that depends on the data, for example the number of detections."""

GUESSES = (
    (2, 64, 16),
    (1, 64, 16),
    (1, 224, 32),
    (1, 256, 128),
    (1, 320, 64),
    (1, 512, 512),
    (1, 32, 32),
    (1, 48, 256),
    (1, 64, 1),
    (1, 1, 1),
)
"""Sizes that are tried in turn for symbolic dimensions: (first dimension, height and width, any other)."""

USUAL = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512)
"""Sizes that are tried for all symbolic dimensions but the first of an input, after the guesses, and to find smaller
ones."""

FEW = 8
"""A float constant with at most this many elements may hold scales, one per dimension."""

ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
"""The arithmetic that the name of a dimension may contain, as in `past + sequence`."""

_INTEGER = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


@dataclass(frozen=True, slots=True)
class Inference:
    """Shapes and values of tensors for one choice of symbolic sizes.

    Args:
        shapes: Tensor name -> sizes, UNKNOWN for a size that depends on data.
        values: Tensor name -> value, for small tensors computed from shapes.
        dims: Name of a symbolic dimension -> its size; an unnamed one is called `input:position`.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Value]
    dims: Mapping[str, int]


def symbolic_dims(inputs: Sequence[onnx.ValueInfoProto]) -> Iterator[tuple[str, bool, int]]:
    """Yield the symbolic dimensions of the graph inputs.

    Yields:
        (name, whether it is the batch dimension, rank of its input) of each dimension; an unnamed one is called
        `input:position`. Batch dimensions are the first one of an input, and the middle one of the state of a
        recurrent layer, whose shape is (layers, batch, width).
    """
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        free = [position for position, dim in enumerate(dims) if not dim.HasField("dim_value") or dim.dim_value < 1]
        for position in free:
            is_batch = position == 0 or (len(dims) == 3 and free == [1])
            yield dims[position].dim_param or f"{value.name}:{position}", is_batch, len(dims)


def choose_dims(
    inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, int], guess: tuple[int, int, int]
) -> dict[str, int]:
    """Return a size for every symbolic dimension.

    Args:
        inputs: The graph inputs that are not initializers.
        given: Sizes that the user gave, by the name of the dimension. They take precedence.
        guess: (batch dimension, height and width, any other). It holds for dimensions that the user did not give and
            whose names are not arithmetic with other dimensions, such as `past + sequence`.
    """
    first, spatial, other = guess
    guessed = {
        name: first if is_batch else spatial if rank == 4 else other
        for name, is_batch, rank in reversed([*symbolic_dims(inputs)])
    }
    chosen = {name: given.get(name, size) for name, size in reversed(guessed.items())}
    computed = {name: _computed(name, chosen) for name in chosen if not name.isidentifier() and name not in given}
    return chosen | {name: size for name, size in computed.items() if size is not None and size > 0}


def resized(
    inputs: Sequence[onnx.ValueInfoProto], sizes: Mapping[str, int], changed: Mapping[str, int]
) -> dict[str, int]:
    """Return sizes of which some are changed, and with them the dimensions that are computed from these.

    Args:
        inputs: The graph inputs that are not initializers.
        sizes: A size for every symbolic dimension.
        changed: Name of a dimension -> its new size.
    """
    known = dict(sizes) | dict(changed)
    plain = {name: size for name, size in known.items() if name.isidentifier() or _computed(name, known) is None}
    return choose_dims(inputs, plain, GUESSES[0])


def _computed(name: str, sizes: Mapping[str, int]) -> int | None:
    """Return the value of a name that is arithmetic with other dimensions; None for any other name."""
    try:
        return _value(ast.parse(name, mode="eval").body, sizes)
    except (SyntaxError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    """Evaluate an expression; raise KeyError for unknown names and anything but arithmetic."""
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.BinOp):
        return ARITHMETIC[type(tree.op)](_value(tree.left, sizes), _value(tree.right, sizes))
    raise KeyError(ast.dump(tree))


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


def infer(
    bare: onnx.ModelProto, nodes: Sequence[Node], source: Mapping[str, str], dims: Mapping[str, int]
) -> Inference:
    """Infer all shapes: fold shape arithmetic and infer again, until no new value is found.

    Args:
        bare: The skeleton of the model for these sizes; it is modified.
        nodes: The operators of the model.
        source: Name of a use -> name of the constant, for constants that have a name for each use.
        dims: Name of a symbolic dimension -> its size.

    Raises:
        RefusedError: The shapes contradict each other.
    """
    seeds = literals(bare.graph)
    seeds.update({use: seeds[name] for use, name in source.items() if name in seeds})
    values: dict[str, Value] = {}
    while True:
        inferred = _infer(bare)
        inferred_shapes = _read_shapes(inferred.graph)
        shapes = dict(inferred_shapes)
        shapes.update({use: shapes[name] for use, name in source.items() if name in shapes})
        previous, values = values, fold(nodes, shapes, seeds)
        new = [name for name in values if name not in previous and name not in seeds]
        if not new or not _unresolved(inferred.graph, inferred_shapes):
            break
        _replace(bare.graph, {name: values[name].array for name in new})
    shapes.update({name: value.array.shape for name, value in values.items()})
    copies = _copies(nodes, values)
    return Inference(
        shapes, {name: value for name, value in values.items() if not _is_weight(value) and name not in copies}, dims
    )


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


def refresh_value_info(proto: onnx.ModelProto, opened: Opened = NONE_OPENED) -> None:
    """Replace the recorded shapes of a pruned model by newly inferred ones.

    The ONNX checker does not notice outdated shapes, but runtimes fail on them. Entries keep their documentation and
    metadata. Tensors without an entry get none, and entries of removed tensors are deleted. Inputs and outputs of
    subgraphs keep at least their rank, which onnxruntime requires of a Scan.

    Args:
        proto: The model; it is modified.
        opened: The opened nodes, whose subgraphs are refreshed as well.
    """
    main, *inner = opened_graphs(proto.graph, opened)
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
    """Replace a stored type by the inferred one; without one, delete the stored shape (`ranked`: only its sizes)."""
    if fresh is not None and (fresh.tensor_type.HasField("shape") or not ranked):
        stored.CopyFrom(fresh)
    elif ranked:
        for dim in stored.tensor_type.shape.dim:
            dim.ClearField("dim_value")
    elif stored.HasField("tensor_type"):
        stored.tensor_type.ClearField("shape")


__all__ = [
    "GUESSES",
    "UNKNOWN",
    "USUAL",
    "Inference",
    "Shape",
    "choose_dims",
    "constant_tensor",
    "infer",
    "is_plausible",
    "literals",
    "refresh_value_info",
    "resized",
    "skeleton",
    "symbolic_dims",
]
