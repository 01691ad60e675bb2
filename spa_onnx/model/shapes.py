"""Sizes of symbolic dimensions, and the shapes that a model records."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx

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

ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
"""The arithmetic that the name of a dimension may contain, as in `past + sequence`."""


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
