"""Attention as a single operator, and rotary embedding. Whole heads are removed, a key-value head with its query heads.

Heads are consecutive on the last axis of a (batch, positions, heads * width) tensor, or have an axis of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from spa_onnx.model.contrib_shapes import like_first
from spa_onnx.model.facts import Axis, Batches, Choice, Coupling, Fact, Option, Pin, Span, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit
from spa_onnx.operators.zeros import first, values


class HeadSpan(NamedTuple):
    """A part of an axis that is divided equally between heads.

    Args:
        axis: The axis.
        start: The first index of the part.
        width: The number of indices of the part, for all heads together.
        shared: Whether the heads are key-value heads, which several query heads can share; otherwise query heads.
    """

    axis: Axis
    start: int
    width: int
    shared: bool


def head_span(model: Model, tensor: str, *, shared: bool = False) -> HeadSpan:
    """Return the span of heads of a tensor, by its rank.

    | rank | shape | axis of heads |
    |---|---|---|
    | up to 3 | (batch, positions, heads * width) | last |
    | 4 | (batch, heads, positions, width) | 1 |
    | 5 | (batch, positions, heads, 3, width) or (2, batch, heads, positions, width) | 2 |
    """
    shape = model.shape(tensor) or ()
    axis = Axis(tensor, 1 if len(shape) == 4 else len(shape) - 1 if len(shape) < 4 else 2)
    return HeadSpan(axis, 0, shape[axis.dim], shared)


def head_spans(model: Model, tensors: Sequence[str], *, shared: bool = False) -> list[HeadSpan]:
    """Return the spans of heads of several tensors; omitted tensors and tensors of unknown rank are left out."""
    return [head_span(model, tensor, shared=shared) for tensor in tensors if tensor and model.shape(tensor) is not None]


def added_to_scores(model: Model, tensor: str, heads: int) -> list[HeadSpan]:
    """Return the span of query heads of a mask or bias that is added to the scores.

    Args:
        model: The model.
        tensor: The mask or bias, (..., heads or 1, positions, positions); empty if omitted.
        heads: The number of query heads.

    Returns:
        One span; none if the tensor has no axis of heads.
    """
    shape = model.shape(tensor) or ()
    return (
        [HeadSpan(Axis(tensor, len(shape) - 3), 0, heads, shared=False)]
        if len(shape) > 2 and shape[-3] == heads
        else []
    )


def consecutive(model: Model, axis: Axis, shares: Sequence[int], shared: Sequence[bool]) -> list[HeadSpan]:
    """Return the spans of queries, keys and values that follow each other on one axis.

    Args:
        model: The model.
        axis: The axis.
        shares: The relative widths of queries, keys and values.
        shared: Whether each of the three holds key-value heads.
    """
    unit = (model.shape(axis.tensor) or ())[axis.dim] // sum(shares)
    return [
        HeadSpan(axis, unit * sum(shares[:i]), unit * share, is_shared)
        for i, (share, is_shared) in enumerate(zip(shares, shared, strict=True))
    ]


def heads(node: Node, queries: int, count: int, parts: Sequence[HeadSpan]) -> Iterator[Fact]:
    """Yield the choice between two ways to remove heads.

    Either a key-value head is removed with all its query heads, or query head k of every key-value head is removed and
    all key-value heads are kept.

    Args:
        node: The attention node.
        queries: The number of query heads.
        count: The number of key-value heads.
        parts: The spans of heads of all tensors.
    """
    per_key_value = queries // count
    whole = [Span(p.axis, count, start=p.start, inner=p.width // count) for p in parts]
    query_parts = [p for p in parts if not p.shared]
    aligned = [
        Span(p.axis, per_key_value, start=p.start, inner=p.width // queries, outer=count, period=p.width // count)
        for p in query_parts
    ]
    shared = {p.axis for p in parts if p.shared}
    options = (
        [Option("key-value heads", _couple_all(whole, f"{node} loses key-value head k with its query heads"))]
        if count > 1
        else []
    )
    if per_key_value > 1 and shared.isdisjoint(p.axis for p in query_parts):
        pins = tuple(
            Pin(axis, f"{node.op} shares it between query heads, which go one by one", str(node))
            for axis in sorted(shared)
        )
        options.append(
            Option("query heads", (*_couple_all(aligned, f"{node} loses query head k of every key-value head"), *pins))
        )
    if options:
        yield Batches(parts[0].axis)
        yield Choice(node.name, tuple(options))


def _couple_all(spans: Sequence[Span], why: str) -> tuple[Coupling, ...]:
    """Return the couplings of the first span with each of the others."""
    return tuple(Coupling(spans[0], other, why) for other in spans[1:])


def rows(node: Node, model: Model, x: str, y: str, *dims: int) -> Iterator[Coupling]:
    """Couple axes of the input and the output along which the node treats each index separately.

    Args:
        node: The node.
        model: The model.
        x: The input tensor.
        y: The output tensor.
        *dims: The dimensions, which are the same in `x` and `y`.
    """
    for dim in dims:
        yield from same(Axis(x, dim), Axis(y, dim), (model.shape(x) or ())[dim], f"{node} works on each row")


def same_batch(node: Node, model: Model, tensors: Iterable[str]) -> Iterator[Coupling]:
    """Couple the batch axis of the output with the first axis of every tensor that is as long."""
    y = Axis(node.outputs[0], 0)
    size = (model.shape(y.tensor) or ())[0]
    for name in tensors:
        if name != y.tensor and (model.shape(name) or ())[:1] == (size,):
            yield from same(Axis(name, 0), y, size, f"batch of {node}")


def head_counts(node: Node, model: Model) -> tuple[int, int]:
    """Return the number of query heads and the number of key-value heads."""
    shapes = [model.shape(name) or () for name in node.inputs[:2]]
    queries = node.attributes.get("q_num_heads", node.attributes.get("num_heads", 0)) or shapes[0][1]
    own_axis = node.op == "Attention" and len(shapes[1]) == 4
    return int(queries), int(node.attributes.get("kv_num_heads", 0)) or (shapes[1][1] if own_axis else int(queries))


def attention(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head; several query heads can share a key-value head."""
    queries, count = head_counts(node, model)
    yield from same_batch(node, model, (*node.inputs[:3], *node.inputs[4:], *node.outputs))
    yield from same_batch(node, model, [name for name in node.inputs[3:4] if len(model.shape(name) or ()) == 4])
    query = head_spans(model, (node.inputs[0], node.outputs[0], *node.outputs[3:]))
    shared = head_spans(model, (*node.inputs[1:3], *node.inputs[4:6], *node.outputs[1:3]), shared=True)
    yield from heads(node, queries, count, [*query, *added_to_scores(model, node.input(3), queries), *shared])


def rotary(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x rotated by angles that depend on the position and on the index inside a head; whole heads are removed."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    angle_caches = node.inputs[1:3] if node.op == "RotaryEmbedding" else node.inputs[2:4]
    position_ids = node.input(3 if node.op == "RotaryEmbedding" else 1)
    batched = [
        name
        for name in (*angle_caches, position_ids)
        if len(model.shape(name) or ()) == (2 if name == position_ids else 3)
    ]
    yield from same_batch(node, model, (x, *batched))
    positions = len(shape) - 2
    for name, dim in ((x, positions), *((name, 1) for name in batched)):
        yield from same(
            Axis(name, dim), Axis(y, positions), shape[positions], f"{node} turns each position by its own angles"
        )
    if len(shape) == 4:
        yield from rows(node, model, x, y, 1)
        return
    angles = model.shape(angle_caches[0]) or (1,)
    count = int(node.attributes.get("num_heads", 0)) or shape[2] // (2 * angles[-1])
    input_heads, output_heads = (Span(Axis(name, 2), count, inner=shape[2] // count) for name in (x, y))
    yield Coupling(input_heads, output_heads, f"{node} turns the indices of head k together")


def update_heads(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Reduce the numbers of heads and the hidden sizes in proportion to the keys or, for query heads, to the output."""
    for name in ("num_heads", "q_num_heads", "kv_num_heads", "qkv_hidden_sizes"):
        value = node.attributes.get(name)
        span = head_span(model, node.input(1) if name == "kv_num_heads" and node.input(1) else node.outputs[0])
        width = cut.after(span.axis.tensor)[span.axis.dim]
        if value and width != span.width:
            reduced = (
                [size * width // span.width for size in value]
                if isinstance(value, tuple)
                else value * width // span.width
            )
            yield SetAttribute(name, reduced)


def attention_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes of two products: queries times keys, and attention weights times values.

    Cached keys are not counted. The width of packed queries is that of the output.
    """
    result = axes_of(model, node.outputs[0])
    queries = axes_of(model, node.inputs[0]) if node.input(1) else result
    keys = node.input(1) or node.outputs[0]
    positions = Axis(keys, 2 if len(model.shape(keys) or ()) == 4 else 1)
    return [[*queries, positions], [*result, positions]]


def key_positions(node: Node, model: Model) -> int:
    """Return the number of positions of the keys; 1 if the rank of the keys is unknown."""
    keys = model.shape(node.inputs[1]) or ()
    return keys[-2] if len(keys) >= 2 else 1


register(
    "Attention",
    coupling=attention,
    update=update_heads,
    zero=values,
    macs=attention_macs,
    not_refitted="it has no weights",
    bounds={6: key_positions},
)
register("RotaryEmbedding", coupling=rotary, update=update_heads, zero=first)
register(
    "com.microsoft.RotaryEmbedding",
    "com.microsoft.MRotaryEmbedding",
    coupling=rotary,
    update=update_heads,
    zero=first,
    shape=like_first(),
)
