"""Attention as one operator, and the rotary embedding before it: whole heads go, a key-value head with its query heads.

Heads lie next to each other on the last axis of a (batch, positions, heads * width) tensor, or have an axis of their own.
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
from spa_onnx.operators.updates import Cut, Edit, SetAttribute
from spa_onnx.operators.zeros import first, values


class HeadSpan(NamedTuple):
    """The `width` indices from `start` on of an axis, an equal share for every head: query heads, or (`shared`) key-value heads."""

    axis: Axis
    start: int
    width: int
    shared: bool


def head_span(model: Model, tensor: str, *, shared: bool = False) -> HeadSpan:
    """Heads on the last axis of three, on axis 1 of four, on axis 2 of five: (batch, positions, heads, 3, width), (2, batch, heads ...)."""
    shape = model.shape(tensor) or ()
    axis = Axis(tensor, 1 if len(shape) == 4 else len(shape) - 1 if len(shape) < 4 else 2)
    return HeadSpan(axis, 0, shape[axis.dim], shared)


def head_spans(model: Model, tensors: Sequence[str], *, shared: bool = False) -> list[HeadSpan]:
    """Those of the tensors that are there."""
    return [head_span(model, tensor, shared=shared) for tensor in tensors if tensor and model.shape(tensor) is not None]


def added_to_scores(model: Model, tensor: str, heads: int) -> list[HeadSpan]:
    """What is added to the scores, (... heads or 1, positions, positions)."""
    shape = model.shape(tensor) or ()
    return (
        [HeadSpan(Axis(tensor, len(shape) - 3), 0, heads, shared=False)]
        if len(shape) > 2 and shape[-3] == heads
        else []
    )


def consecutive(model: Model, axis: Axis, shares: Sequence[int], shared: Sequence[bool]) -> list[HeadSpan]:
    """Queries, keys and values behind each other on one axis."""
    unit = (model.shape(axis.tensor) or ())[axis.dim] // sum(shares)
    return [
        HeadSpan(axis, unit * sum(shares[:i]), unit * share, one)
        for i, (share, one) in enumerate(zip(shares, shared, strict=True))
    ]


def heads(node: Node, queries: int, count: int, parts: Sequence[HeadSpan]) -> Iterator[Fact]:
    """What goes: a key-value head with all its query heads, or the same query head of every key-value head, none of which goes then."""
    each = queries // count
    whole = [Span(p.axis, count, start=p.start, inner=p.width // count) for p in parts]
    asked = [p for p in parts if not p.shared]
    aligned = [
        Span(p.axis, each, start=p.start, inner=p.width // queries, outer=count, period=p.width // count) for p in asked
    ]
    shared = {p.axis for p in parts if p.shared}
    options = (
        [Option("key-value heads", _together(whole, f"{node} loses key-value head k with its query heads"))]
        if count > 1
        else []
    )
    if each > 1 and shared.isdisjoint(p.axis for p in asked):
        stay = tuple(
            Pin(axis, f"{node.op} shares it between query heads, which go one by one", str(node))
            for axis in sorted(shared)
        )
        options.append(
            Option("query heads", (*_together(aligned, f"{node} loses query head k of every key-value head"), *stay))
        )
    if options:
        yield Batches(parts[0].axis)
        yield Choice(node.name, tuple(options))


def _together(spans: Sequence[Span], why: str) -> tuple[Coupling, ...]:
    return tuple(Coupling(spans[0], other, why) for other in spans[1:])


def rows(node: Node, model: Model, x: str, y: str, *dims: int) -> Iterator[Coupling]:
    """Yield the couplings of axes along which each row is worked on by itself."""
    for dim in dims:
        yield from same(Axis(x, dim), Axis(y, dim), (model.shape(x) or ())[dim], f"{node} works on each row")


def same_batch(node: Node, model: Model, tensors: Iterable[str]) -> Iterator[Coupling]:
    """Sample k of every tensor whose first axis is the batch."""
    y = Axis(node.outputs[0], 0)
    size = (model.shape(y.tensor) or ())[0]
    for name in tensors:
        if name != y.tensor and (model.shape(name) or ())[:1] == (size,):
            yield from same(Axis(name, 0), y, size, f"batch of {node}")


def head_counts(node: Node, model: Model) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    shapes = [model.shape(name) or () for name in node.inputs[:2]]
    queries = node.attributes.get("q_num_heads", node.attributes.get("num_heads", 0)) or shapes[0][1]
    own_axis = node.op == "Attention" and len(shapes[1]) == 4
    return int(queries), int(node.attributes.get("kv_num_heads", 0)) or (shapes[1][1] if own_axis else int(queries))


def attention(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head; several query heads may share a key-value head."""
    queries, count = head_counts(node, model)
    yield from same_batch(node, model, (*node.inputs[:3], *node.inputs[4:], *node.outputs))
    yield from same_batch(node, model, [name for name in node.inputs[3:4] if len(model.shape(name) or ()) == 4])
    asked = head_spans(model, (node.inputs[0], node.outputs[0], *node.outputs[3:]))
    shared = head_spans(model, (*node.inputs[1:3], *node.inputs[4:6], *node.outputs[1:3]), shared=True)
    yield from heads(node, queries, count, [*asked, *added_to_scores(model, node.input(3), queries), *shared])


def rotary(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x turned by angles that depend on the position and on the index inside a head: whole heads go."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    cached = node.inputs[1:3] if node.op == "RotaryEmbedding" else node.inputs[2:4]
    places = node.input(3 if node.op == "RotaryEmbedding" else 1)
    ranked = [name for name in (*cached, places) if len(model.shape(name) or ()) == (2 if name == places else 3)]
    yield from same_batch(node, model, (x, *ranked))
    positions = len(shape) - 2
    for name, dim in ((x, positions), *((name, 1) for name in ranked)):
        yield from same(
            Axis(name, dim), Axis(y, positions), shape[positions], f"{node} turns each position by its own angles"
        )
    if len(shape) == 4:
        yield from rows(node, model, x, y, 1)
        return
    angles = model.shape(cached[0]) or (1,)
    count = int(node.attributes.get("num_heads", 0)) or shape[2] // (2 * angles[-1])
    before, after = (Span(Axis(name, 2), count, inner=shape[2] // count) for name in (x, y))
    yield Coupling(before, after, f"{node} turns the indices of head k together")


def update_heads(node: Node, model: Model, cut: Cut) -> Iterator[Edit]:
    """Every count of heads, and the hidden sizes, shrink as the result or the keys do."""
    for name in ("num_heads", "q_num_heads", "kv_num_heads", "qkv_hidden_sizes"):
        value = node.attributes.get(name)
        part = head_span(model, node.input(1) if name == "kv_num_heads" and node.input(1) else node.outputs[0])
        left = cut.after(part.axis.tensor)[part.axis.dim]
        if value and left != part.width:
            shrunk = (
                [size * left // part.width for size in value]
                if isinstance(value, tuple)
                else value * left // part.width
            )
            yield SetAttribute(name, shrunk)


def attention_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Queries times keys, and weights times values; keys of a cache are not counted. Packed queries are as wide as the result."""
    result = axes_of(model, node.outputs[0])
    queries = axes_of(model, node.inputs[0]) if node.input(1) else result
    keys = node.input(1) or node.outputs[0]
    positions = Axis(keys, 2 if len(model.shape(keys) or ()) == 4 else 1)
    return [[*queries, positions], [*result, positions]]


def key_positions(node: Node, model: Model) -> int:
    """Return how many positions the keys have."""
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
