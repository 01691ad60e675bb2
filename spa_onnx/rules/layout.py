"""Operators that only move elements: Transpose, Reshape and its relatives, Expand, Tile, DepthToSpace."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from spa_onnx.facts import Axis, Choice, Coupling, Fact, Free, Option, Pin, Span, same, whole
from spa_onnx.model import Model
from spa_onnx.node import Node
from spa_onnx.rules.follow import Cut, Edit, follow, target_shape
from spa_onnx.rules.registry import rule
from spa_onnx.shapes import Shape


@rule("Transpose")
def transpose(node: Node, model: Model) -> Iterator[Fact]:
    """Y has axis perm[k] of x as its axis k."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    for place, dim in enumerate(node.attributes.get("perm", tuple(range(len(shape)))[::-1])):
        yield from same(Axis(x, dim), Axis(y, place), shape[dim], f"{node} moves axis {dim} to {place}")


def blocks(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of either shape that hold the same elements; axes of size 1 belong to none.

    (2, 12, 5, 5) and (2, 3, 4, 25) give ([0], [0]), ([1], [1, 2]), ([2, 3], [3]).
    """
    left, right = [d for d, s in enumerate(before) if s != 1], [d for d, s in enumerate(after) if s != 1]
    i = j = 0
    while i < len(left) and j < len(right):
        first, second = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while prod(before[d] for d in first) != prod(after[d] for d in second):
            if prod(before[d] for d in first) < prod(after[d] for d in second):
                first.append(left[i])
                i += 1
            else:
                second.append(right[j])
                j += 1
        yield first, second


@rule("Reshape", "Squeeze", "Unsqueeze", "Flatten", parameters=(1,))
def reshape(node: Node, model: Model) -> Iterator[Fact]:
    """The same elements in row-major order under another shape.

    An axis that becomes several (channels into heads x width) can lose indices of one of them only: coupling it to all would
    tie everything into one channel. So that is a choice. The same backwards, where several become one.
    """
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    if prod(before) != prod(after) or 0 in before:
        return
    for first, second in blocks(before, after):
        if len(first) == len(second) == 1:
            yield from same(Axis(x, first[0]), Axis(y, second[0]), before[first[0]], f"{node} keeps axis {first[0]}")
        elif len(first) == 1:
            yield _factor(node, Axis(x, first[0]), [(Axis(y, d), after[d]) for d in second])
        elif len(second) == 1:
            yield _factor(node, Axis(y, second[0]), [(Axis(x, d), before[d]) for d in first])
        else:
            yield from _leading(node, (Axis(x, first[0]), before[first[0]]), (Axis(y, second[0]), after[second[0]]))


def _leading(node: Node, one: tuple[Axis, int], other: tuple[Axis, int]) -> Iterator[Coupling]:
    """Several axes become several others, (C, H, W) for instance (groups, C / groups * H * W): whole blocks of the first can go."""
    (few, count), (many, size) = sorted((one, other), key=lambda pair: pair[1])
    if size % count == 0:
        yield Coupling(whole(few, count), Span(many, count, inner=size // count), f"{node} folds the axes behind {few}, whose blocks stay")


def _factor(node: Node, product: Axis, factors: list[tuple[Axis, int]]) -> Choice:
    """One axis whose index counts through several others, the last of them fastest."""
    options = []
    for place, (axis, size) in enumerate(factors):
        inner, outer = prod(s for _, s in factors[place + 1 :]), prod(s for _, s in factors[:place])
        span = Span(product, size, inner=inner, outer=outer, period=size * inner)
        tie = Coupling(span, whole(axis, size), f"{node} counts through {axis} in {product}")
        others = tuple(
            Pin(other, f"{node.op} folds it with another axis, which loses indices instead", f"{node}, {axis}")
            for other, _ in factors
            if other != axis
        )
        options.append((size, Option(str(axis), (tie, *others))))
    options.sort(key=lambda pair: -pair[0])
    return Choice(node.name, tuple(option for _, option in options))


@follow("Reshape")
def reshape_follows(node: Node, _: Model, cut: Cut) -> Iterator[Edit]:
    """The target shape names the sizes that are left."""
    yield from target_shape(node, cut, 1)


@rule("Expand", parameters=(1,))
def expand(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x stretched to a larger shape; a stretched axis holds copies, any of which may go."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    padded = (1,) * (len(after) - len(before)) + before
    for dim, (old, new) in enumerate(zip(padded, after, strict=True)):
        if old == new:
            yield from same(Axis(x, dim - len(after) + len(before)), Axis(y, dim), new, f"{node} keeps axis {dim}")
        else:
            yield Free(Axis(y, dim))


@follow("Expand")
def expand_follows(node: Node, _: Model, cut: Cut) -> Iterator[Edit]:
    """The target shape names the sizes that are left."""
    yield from target_shape(node, cut, 1)


@rule("ConstantOfShape", parameters=(0,))
def constant_of_shape(node: Node, model: Model) -> Iterator[Fact]:
    """One value everywhere: any index may go."""
    y = node.outputs[0]
    for dim in range(len(model.shape(y) or ())):
        yield Free(Axis(y, dim))


@follow("ConstantOfShape")
def constant_of_shape_follows(node: Node, _: Model, cut: Cut) -> Iterator[Edit]:
    """The target shape names the sizes that are left."""
    yield from target_shape(node, cut, 0)


@rule("Tile", parameters=(1,))
def tile(node: Node, model: Model) -> Iterator[Fact]:
    """Y repeats x: index k of x is k, k + size, k + 2 * size ... of y."""
    x, y = node.inputs[0], node.outputs[0]
    for dim, (size, new) in enumerate(zip(model.shape(x) or (), model.shape(y) or (), strict=True)):
        if size == new:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} repeats another axis")
        elif size > 1:
            copies = Span(Axis(y, dim), size, outer=new // size, period=size)
            yield Coupling(whole(Axis(x, dim), size), copies, f"{node} repeats it")


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(node: Node, model: Model) -> Iterator[Fact]:
    """Blocks of b x b positions and b * b channels in exchange; channel k of the narrow side owns b * b of the wide side.

    In mode DCR and in SpaceToDepth those lie apart (k, k + C, k + 2C ...), in CRD next to each other.
    """
    x, y = node.inputs[0], node.outputs[0]
    wide, narrow = (Axis(x, 1), Axis(y, 1)) if node.op == "DepthToSpace" else (Axis(y, 1), Axis(x, 1))
    square = int(node.attributes["blocksize"]) ** 2
    count = (model.shape(narrow.tensor) or ())[1]
    apart = Span(wide, count, outer=square, period=count)
    together = Span(wide, count, inner=square)
    owned = together if node.attributes.get("mode", "DCR") == "CRD" and node.op == "DepthToSpace" else apart
    yield Coupling(owned, whole(narrow, count), f"{node} spreads channel k over {square} channels")
    yield from same(Axis(x, 0), Axis(y, 0), (model.shape(x) or ())[0], f"batch of {node}")
