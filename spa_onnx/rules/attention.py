"""Attention as one operator, and the rotary embedding before it: whole heads go, a key-value head with its query heads.

Heads lie next to each other on the last axis of a (batch, positions, heads * width) tensor, or have an axis of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spa_onnx.facts import Axis, Coupling, Fact, Span, same
from spa_onnx.model import Model
from spa_onnx.node import Node
from spa_onnx.rules.follow import Cut, Edit, SetAttribute, follow
from spa_onnx.rules.registry import rule

MULTI_HEAD, GROUPED, FUSED = "com.microsoft.MultiHeadAttention", "com.microsoft.GroupQueryAttention", "com.microsoft.Attention"


class Part(NamedTuple):
    """The `width` indices from `start` on of an axis, an equal share for every head."""

    axis: Axis
    start: int
    width: int


def _part(model: Model, tensor: str) -> Part:
    """Heads on the last axis of three, on axis 1 of four, on axis 2 of five: (batch, positions, heads, 3, width), (2, batch, heads ...)."""
    shape = model.shape(tensor) or ()
    axis = Axis(tensor, 1 if len(shape) == 4 else 2)
    return Part(axis, 0, shape[axis.dim])


def _heads(node: Node, model: Model, count: int, tensors: tuple[str, ...], parts: tuple[Part, ...] = ()) -> Iterator[Coupling]:
    """Head k of every tensor that is given, and of every further part."""
    found = [*(_part(model, tensor) for tensor in tensors if model.shape(tensor) is not None), *parts]
    first, *others = (Span(part.axis, count, start=part.start, inner=part.width // count) for part in found)
    for other in others:
        yield Coupling(first, other, f"{node} loses key-value head k with its query heads")


def _rows(node: Node, model: Model, x: str, y: str, *dims: int) -> Iterator[Coupling]:
    for dim in dims:
        yield from same(Axis(x, dim), Axis(y, dim), (model.shape(x) or ())[dim], f"{node} works on each row")


def _consecutive(model: Model, axis: Axis, shares: tuple[int, ...]) -> tuple[Part, ...]:
    """Queries, keys and values behind each other on one axis."""
    unit = (model.shape(axis.tensor) or ())[axis.dim] // sum(shares)
    return tuple(Part(axis, unit * sum(shares[:place]), unit * share) for place, share in enumerate(shares))


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
    mask = node.input(3) if (model.shape(node.input(3)) or ())[-3:-2] == (queries,) and queries > 1 else ""
    yield from _rows(node, model, node.inputs[0], node.outputs[0], 0)
    where = len(model.shape(mask) or ()) - 3
    masked = (Part(Axis(mask, where), 0, queries),) if mask else ()
    yield from _heads(node, model, count, (*node.inputs[:3], *node.inputs[4:6], *node.outputs), masked)


@rule(MULTI_HEAD)
def multi_head(node: Node, model: Model) -> Iterator[Fact]:
    """As Attention; keys and values may be packed with the queries, and one bias holds theirs behind each other."""
    queries, _ = _count(node, model)
    yield from _rows(node, model, node.inputs[0], node.outputs[0], 0, 1)
    widths = [(model.shape(name) or ())[-1] for name in (*node.inputs[:3], node.outputs[0]) if name]
    whole = widths if len(widths) > 3 else widths[-1:] * 3
    bias = _consecutive(model, Axis(node.input(3), 0), (whole[-1], whole[-1], whole[-1])) if node.input(3) else ()
    added = node.input(5) if (model.shape(node.input(5)) or (0, 0))[1] == queries > 1 else ""
    yield from _heads(node, model, queries, (*node.inputs[:3], added, *node.inputs[6:8], *node.outputs), bias)


@rule(GROUPED)
def grouped(node: Node, model: Model) -> Iterator[Fact]:
    """As Attention with a rotary embedding and a cache; without keys, the first input holds all three behind each other."""
    queries, count = _count(node, model)
    x, y = node.inputs[0], node.outputs[0]
    yield from _rows(node, model, x, y, 0, 1)
    given = node.inputs[:3] if node.input(1) else ()
    packed = () if given else _consecutive(model, Axis(x, 2), (queries, count, count))
    yield from _heads(node, model, count, (*given, *node.inputs[3:5], *node.outputs), packed)


@rule(FUSED)
def fused(node: Node, model: Model) -> Iterator[Fact]:
    """Q, K, V = x W + b, then as Attention: W holds the columns of the three behind each other."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    shares = tuple(int(size) for size in node.attributes.get("qkv_hidden_sizes", (1, 1, 1)))
    yield from _rows(node, model, x, y, 0, 1)
    yield from same(Axis(x, 2), Axis(w, 0), (model.shape(x) or ())[2], f"{node} sums over it")
    bias = _consecutive(model, Axis(node.input(2), 0), shares) if node.input(2) else ()
    tensors = (node.input(4), *node.outputs)
    yield from _heads(node, model, int(node.attributes["num_heads"]), tensors, (*_consecutive(model, Axis(w, 1), shares), *bias))


@rule("RotaryEmbedding", "com.microsoft.RotaryEmbedding")
def rotary(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x turned by angles that depend on the position and on the index inside a head: whole heads go."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    if len(shape) == 4:
        yield from _rows(node, model, x, y, 0, 1, 2)
        return
    angles = model.shape(node.inputs[1 if node.op == "RotaryEmbedding" else 2]) or (1,)
    yield from _rows(node, model, x, y, 0, 1)
    yield from _heads(node, model, int(node.attributes.get("num_heads", 0)) or shape[2] // (2 * angles[-1]), (x, y))


@follow("Attention", MULTI_HEAD, GROUPED, FUSED, "RotaryEmbedding", "com.microsoft.RotaryEmbedding")
def heads_follow(node: Node, model: Model, cut: Cut) -> Iterator[Edit]:
    """Every count of heads, and the hidden sizes, shrink as the result does."""
    part = _part(model, node.outputs[0])
    left = cut.after(node.outputs[0])[part.axis.dim]
    for name in ("num_heads", "q_num_heads", "kv_num_heads", "qkv_hidden_sizes"):
        value = node.attributes.get(name)
        if value and left != part.width:
            shrunk = [size * left // part.width for size in value] if isinstance(value, tuple) else value * left // part.width
            yield SetAttribute(name, shrunk)
