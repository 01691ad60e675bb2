"""Operators that gather or scatter by index tensors. The indexed axes are kept whole; all other axes are coupled."""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.model import numpy_ops
from spa_onnx.model.facts import Axis, Coupling, Fact, Positions, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Fold
from spa_onnx.operators.registry import Held, register
from spa_onnx.operators.zeros import first

PICKS = "picks from it by index, so every index keeps its place"
"""The reason for pinning the axes that the indices refer to."""


def _couple_axes(node: Node, model: Model, pairs: Iterator[tuple[Axis, Axis]]) -> Iterator[Coupling]:
    """Couple the two axes of each pair, if they have the same size."""
    for a, b in pairs:
        size, other = (model.shape(a.tensor) or ())[a.dim], (model.shape(b.tensor) or ())[b.dim]
        if size == other:
            yield from same(a, b, size, f"{node} picks along other axes")


def elements(node: Node, model: Model) -> Iterator[Fact]:
    """y[i, j] = x[index[i, j], j]. ScatterElements: y = x, except y[index[i, j], j] = updates[i, j]."""
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rank = len(model.shape(x) or ())
    axis = int(node.attributes.get("axis", 0)) % rank
    others = [d for d in range(rank) if d != axis]
    if node.op == "GatherElements":
        yield from _couple_axes(node, model, iter([(Axis(index, axis), Axis(y, axis))]))
    yield from _couple_axes(
        node, model, ((Axis(index, d), Axis(t, d)) for t in (x, *node.inputs[2:], y) for d in others)
    )


def gather_nd(node: Node, model: Model) -> Iterator[Fact]:
    """y[b, i] = x[b, index[b, i]].

    The last axis of the index holds k coordinates, which select from k axes of x. The axes after them are coupled.
    """
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    batch, lead = int(node.attributes.get("batch_dims", 0)), len(model.shape(index) or ()) - 1
    indexed = batch + (model.shape(index) or ())[-1]
    yield from _couple_axes(node, model, ((Axis(index, d), Axis(y, d)) for d in range(lead)))
    yield from _couple_axes(node, model, ((Axis(x, d), Axis(y, d)) for d in range(batch)))
    yield from _couple_axes(
        node, model, ((Axis(x, d), Axis(y, d - indexed + lead)) for d in range(indexed, len(model.shape(x) or ())))
    )


def scatter_nd(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x, except y[index[i]] = updates[i].

    The last axis of the index holds k coordinates, which select from k axes of x. The axes after them are coupled.
    """
    x, index, updates, y = *node.inputs[:3], node.outputs[0]
    lead, indexed = len(model.shape(index) or ()) - 1, (model.shape(index) or ())[-1]
    for tensor, shift in ((x, 0), (updates, lead - indexed)):
        coupled = range(indexed, len(model.shape(x) or ()))
        yield from _couple_axes(node, model, ((Axis(tensor, d + shift), Axis(y, d)) for d in coupled))


def tensor_scatter(node: Node, model: Model) -> Iterator[Fact]:
    """Y = the cache, with an update written to some positions along one axis; all other axes are coupled."""
    cache, update, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rank = len(model.shape(y) or ())
    axis = int(node.attributes.get("axis", -2)) % rank
    others = [d for d in range(rank) if d != axis]
    batch = [(Axis(node.input(2), 0), Axis(y, 0))] if node.input(2) else []
    yield from _couple_axes(node, model, iter(batch))
    # write_indices refers to positions by number, so the axis of positions is kept whole
    yield from _couple_axes(node, model, ((Axis(x, d), Axis(y, d)) for x in (cache, update) for d in others))


def one_hot(node: Node, model: Model) -> Iterator[Fact]:
    """y[i, k] = on if index[i] is k, else off. The axis of k has one index per value and is kept whole."""
    index, y = node.inputs[0], node.outputs[0]
    rank = len(model.shape(y) or ())
    axis = int(node.attributes.get("axis", -1)) % rank
    yield from _couple_axes(node, model, ((Axis(index, d - (d > axis)), Axis(y, d)) for d in range(rank) if d != axis))


def triangle(node: Node, model: Model) -> Iterator[Fact]:
    """Y = the upper or lower triangle of x over its last two axes, which are kept whole; all other axes are coupled."""
    x, y = node.inputs[0], node.outputs[0]
    yield from _couple_axes(node, model, ((Axis(x, d), Axis(y, d)) for d in range(len(model.shape(x) or ()) - 2)))


def count(node: Node, _: Model) -> Iterator[Fact]:
    """Y = start, start + delta, ...: positions, whose number depends on data or on a size that is kept."""
    yield Positions(Axis(node.outputs[0], 0))


def keeps_scattered(node: Node, _: Model, held: Held) -> bool:
    """Return whether a scatter keeps zero: both its data and its updates are zero."""
    updates = 1 if node.op == "TensorScatter" else 2
    return bool(held[0] and held[updates])


def free_places(node: Node, model: Model) -> int:
    """Return the number of positions at which an update fits into the cache of a TensorScatter."""
    cache, update = (model.shape(name) or () for name in node.inputs[:2])
    axis = int(node.attributes.get("axis", -2))
    return cache[axis] - update[axis] + 1 if len(cache) >= 2 and len(update) >= 2 else 1


register("GatherElements", coupling=elements, default_reason=PICKS, zero=first)
register("ScatterElements", "Scatter", coupling=elements, default_reason=PICKS, zero=keeps_scattered)
register("GatherND", coupling=gather_nd, default_reason=PICKS, zero=first)
register("ScatterND", coupling=scatter_nd, default_reason=PICKS, zero=keeps_scattered)
register("TensorScatter", coupling=tensor_scatter, zero=keeps_scattered, bounds={2: free_places})
register(
    "OneHot",
    coupling=one_hot,
    parameters=(1, 2),
    fold=Fold(numpy_ops.one_hot, together=True, sized_by=slice(1, 2)),
)
register("Trilu", coupling=triangle, parameters=(1,), zero=first)
register(
    "Range",
    coupling=count,
    parameters=(0, 1, 2),
    fold=Fold(numpy_ops.range_, together=True, sized_by=slice(0, 3)),
)
