"""Attention as one operator, and the rotary embedding before it: whole heads go, a key-value head with its query heads.

Heads lie next to each other on the last axis of a (batch, positions, heads * width) tensor, or have an axis of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from spa_onnx.model.facts import Axis, Batches, Choice, Coupling, Fact, Option, Pin, Span, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import rule
from spa_onnx.operators.updates import Cut, Edit, SetAttribute, follow

MULTI_HEAD, GROUPED, FUSED = (
    "com.microsoft.MultiHeadAttention",
    "com.microsoft.GroupQueryAttention",
    "com.microsoft.Attention",
)
DECODER = "com.microsoft.DecoderMaskedMultiHeadAttention"
ROTARY = ("RotaryEmbedding", "com.microsoft.RotaryEmbedding", "com.microsoft.MRotaryEmbedding")


class Part(NamedTuple):
    """The `width` indices from `start` on of an axis, an equal share for every head: query heads, or (`shared`) key-value heads."""

    axis: Axis
    start: int
    width: int
    shared: bool


def _part(model: Model, tensor: str, *, shared: bool = False) -> Part:
    """Heads on the last axis of three, on axis 1 of four, on axis 2 of five: (batch, positions, heads, 3, width), (2, batch, heads ...)."""
    shape = model.shape(tensor) or ()
    axis = Axis(tensor, 1 if len(shape) == 4 else len(shape) - 1 if len(shape) < 4 else 2)
    return Part(axis, 0, shape[axis.dim], shared)


def _parts(model: Model, tensors: Sequence[str], *, shared: bool = False) -> list[Part]:
    """Those of the tensors that are there."""
    return [_part(model, tensor, shared=shared) for tensor in tensors if tensor and model.shape(tensor) is not None]


def _added(model: Model, tensor: str, heads: int) -> list[Part]:
    """What is added to the scores, (... heads or 1, positions, positions)."""
    shape = model.shape(tensor) or ()
    return [Part(Axis(tensor, len(shape) - 3), 0, heads, shared=False)] if len(shape) > 2 and shape[-3] == heads else []


def _consecutive(model: Model, axis: Axis, shares: Sequence[int], shared: Sequence[bool]) -> list[Part]:
    """Queries, keys and values behind each other on one axis."""
    unit = (model.shape(axis.tensor) or ())[axis.dim] // sum(shares)
    return [
        Part(axis, unit * sum(shares[:i]), unit * share, one)
        for i, (share, one) in enumerate(zip(shares, shared, strict=True))
    ]


def _heads(node: Node, queries: int, count: int, parts: Sequence[Part]) -> Iterator[Fact]:
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


def _rows(node: Node, model: Model, x: str, y: str, *dims: int) -> Iterator[Coupling]:
    for dim in dims:
        yield from same(Axis(x, dim), Axis(y, dim), (model.shape(x) or ())[dim], f"{node} works on each row")


def _batch(node: Node, model: Model, tensors: Iterable[str]) -> Iterator[Coupling]:
    """Sample k of every tensor whose first axis is the batch."""
    y = Axis(node.outputs[0], 0)
    size = (model.shape(y.tensor) or ())[0]
    for name in tensors:
        if name != y.tensor and (model.shape(name) or ())[:1] == (size,):
            yield from same(Axis(name, 0), y, size, f"batch of {node}")


def _count(node: Node, model: Model) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    shapes = [model.shape(name) or () for name in node.inputs[:2]]
    queries = node.attributes.get("q_num_heads", node.attributes.get("num_heads", 0)) or shapes[0][1]
    own_axis = node.op == "Attention" and len(shapes[1]) == 4
    return int(queries), int(node.attributes.get("kv_num_heads", 0)) or (shapes[1][1] if own_axis else int(queries))


@rule("Attention")
def attention(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head; several query heads may share a key-value head."""
    queries, count = _count(node, model)
    yield from _batch(node, model, (*node.inputs[:3], *node.inputs[4:], *node.outputs))
    yield from _batch(node, model, [name for name in node.inputs[3:4] if len(model.shape(name) or ()) == 4])
    asked = _parts(model, (node.inputs[0], node.outputs[0], *node.outputs[3:]))
    shared = _parts(model, (*node.inputs[1:3], *node.inputs[4:6], *node.outputs[1:3]), shared=True)
    yield from _heads(node, queries, count, [*asked, *_added(model, node.input(3), queries), *shared])


@rule(MULTI_HEAD)
def multi_head(node: Node, model: Model) -> Iterator[Fact]:
    """As Attention; keys and values may be packed with the queries, and one bias holds theirs behind each other."""
    queries, _ = _count(node, model)
    yield from _rows(node, model, node.inputs[0], node.outputs[0], 0, 1)
    parts = _parts(model, (*node.inputs[:3], *node.inputs[6:8], *node.outputs))
    yield from _heads(
        node, queries, queries, [*parts, *_biases(node, model, 3), *_added(model, node.input(5), queries)]
    )


@rule(DECODER)
def decoder(node: Node, model: Model) -> Iterator[Fact]:
    """As MultiHeadAttention for one new position; without keys, the first input holds all three behind each other."""
    queries, _ = _count(node, model)
    x, y = node.inputs[0], node.outputs[0]
    yield from _rows(node, model, x, y, 0, 1)
    packed = [] if node.input(1) else _consecutive(model, Axis(x, 2), (1, 1, 1), (False,) * 3)
    given = node.inputs[:3] if node.input(1) else ()
    parts = _parts(model, (*given, *node.inputs[5:7], *node.outputs))
    yield from _heads(
        node, queries, queries, [*packed, *parts, *_biases(node, model, 10), *_added(model, node.input(4), queries)]
    )


def _biases(node: Node, model: Model, slot: int) -> list[Part]:
    """A vector at this input position: as long as the queries, as the keys, which are alike, and as the values."""
    if not node.input(slot):
        return []
    (total,), shape = model.shape(node.inputs[slot]) or (0,), model.shape(node.inputs[0]) or ()
    queries = shape[2] * shape[4] if len(shape) == 5 else shape[2] if node.input(1) else total // 3
    return _consecutive(model, Axis(node.inputs[slot], 0), (queries, queries, total - 2 * queries), (False,) * 3)


@rule(GROUPED)
def grouped(node: Node, model: Model) -> Iterator[Fact]:
    """As Attention with a rotary embedding and a cache; without keys, the first input holds all three behind each other."""
    queries, count = _count(node, model)
    x, y = node.inputs[0], node.outputs[0]
    yield from _rows(node, model, x, y, 0, 1)
    given = node.inputs[1:3] if node.input(1) else ()
    asked = _parts(model, (x, y, *node.outputs[3:])) if given else _parts(model, (y, *node.outputs[3:]))
    packed = [] if given else _consecutive(model, Axis(x, 2), (queries, count, count), (False, True, True))
    shared = _parts(model, (*given, *node.inputs[3:5], *node.outputs[1:3]), shared=True)
    sinks = [Part(Axis(node.input(11), 0), 0, queries, shared=False)] if node.input(11) else []
    yield from _heads(node, queries, count, [*asked, *packed, *shared, *sinks, *_added(model, node.input(10), queries)])


@rule(FUSED)
def fused(node: Node, model: Model) -> Iterator[Fact]:
    """Q, K, V = x W + b, then as Attention: W holds the columns of the three behind each other."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    shares = tuple(int(size) for size in node.attributes.get("qkv_hidden_sizes", (1, 1, 1)))
    yield from _rows(node, model, x, y, 0, 1)
    yield from same(Axis(x, 2), Axis(w, 0), (model.shape(x) or ())[2], f"{node} sums over it")
    columns = [Axis(w, 1), *([Axis(node.input(2), 0)] if node.input(2) else [])]
    weights = [part for axis in columns for part in _consecutive(model, axis, shares, (False,) * 3)]
    queries = int(node.attributes["num_heads"])
    parts = _parts(model, (node.input(4), *node.outputs))
    yield from _heads(node, queries, queries, [*weights, *parts, *_added(model, node.input(5), queries)])


@rule(*ROTARY)
def rotary(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x turned by angles that depend on the position and on the index inside a head: whole heads go."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    cached = node.inputs[1:3] if node.op == "RotaryEmbedding" else node.inputs[2:4]
    places = node.input(3 if node.op == "RotaryEmbedding" else 1)
    ranked = [name for name in (*cached, places) if len(model.shape(name) or ()) == (2 if name == places else 3)]
    yield from _batch(node, model, (x, *ranked))
    positions = len(shape) - 2
    for name, dim in ((x, positions), *((name, 1) for name in ranked)):
        yield from same(
            Axis(name, dim), Axis(y, positions), shape[positions], f"{node} turns each position by its own angles"
        )
    if len(shape) == 4:
        yield from _rows(node, model, x, y, 1)
        return
    angles = model.shape(cached[0]) or (1,)
    count = int(node.attributes.get("num_heads", 0)) or shape[2] // (2 * angles[-1])
    before, after = (Span(Axis(name, 2), count, inner=shape[2] // count) for name in (x, y))
    yield Coupling(before, after, f"{node} turns the indices of head k together")


@follow("Attention", MULTI_HEAD, DECODER, GROUPED, FUSED, *ROTARY)
def heads_follow(node: Node, model: Model, cut: Cut) -> Iterator[Edit]:
    """Every count of heads, and the hidden sizes, shrink as the result or the keys do."""
    for name in ("num_heads", "q_num_heads", "kv_num_heads", "qkv_hidden_sizes"):
        value = node.attributes.get(name)
        part = _part(model, node.input(1) if name == "kv_num_heads" and node.input(1) else node.outputs[0])
        left = cut.after(part.axis.tensor)[part.axis.dim]
        if value and left != part.width:
            shrunk = (
                [size * left // part.width for size in value]
                if isinstance(value, tuple)
                else value * left // part.width
            )
            yield SetAttribute(name, shrunk)
