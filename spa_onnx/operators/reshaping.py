"""Operators that only move elements: Transpose, Reshape and its relatives, Expand, Tile, DepthToSpace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from operator import mul

import numpy as np
from onnx import NodeProto, helper

from spa_onnx.model import numpy_ops
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Free, Option, Pin, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import Shape
from spa_onnx.model.traits import Fold, Moves
from spa_onnx.operators.registry import register
from spa_onnx.operators.updates import Cut, Rescale, ShapeUpdate
from spa_onnx.operators.zeros import first

RESHAPE, EXPAND = "Reshape", "Expand"

DEALS = "deals its elements out to several axes anew"
"""What these operators do with an axis about which the rule says nothing."""


def reverse_sequence(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x with the first steps of each sequence in reverse order; axes other than those of steps and sequences are carried through."""
    x, y = node.inputs[0], node.outputs[0]
    moved = {int(node.attributes.get("time_axis", 0)), int(node.attributes.get("batch_axis", 1))}
    for dim, size in enumerate(model.shape(x) or ()):
        if dim not in moved:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} works along other axes")


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


def reshape(node: Node, model: Model) -> Iterator[Fact]:
    """The same elements in row-major order under another shape.

    An axis that becomes several (channels into heads x width) can lose indices of one of them only: coupling it to all would
    tie everything into one channel. So that is a choice. The same backwards, where several become one, and where several become
    several others (batch, heads x width into batch x heads, width): each digit that both shapes count through is an option.
    """
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    if prod(before) != prod(after) or 0 in before:
        return
    for old, new in blocks(before, after):
        if len(old) == len(new) == 1:
            yield from same(Axis(x, old[0]), Axis(y, new[0]), before[old[0]], f"{node} keeps axis {old[0]}")
        else:
            yield from recount(node, [(Axis(x, d), before[d]) for d in old], [(Axis(y, d), after[d]) for d in new])


def _digits(left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
    """(stride, size) of the places of a number with mixed radix that counts through both shapes, slowest first."""
    strides = (set(accumulate(reversed([*shape]), mul)) for shape in (left, right))
    found, stride = [], 1
    for place in sorted(set.union(*strides)):
        if place % stride == 0:
            found.append((stride, place // stride))
            stride = place
    return found[::-1]


def _holder(axes: Sequence[tuple[Axis, int]], stride: int, size: int) -> Span | None:
    """The axis that a digit lies in, with the indices for each of its values; None where it reaches into another axis."""
    step = prod(length for _, length in axes)
    for axis, length in axes:
        step, top = step // length, step
        if stride % step == 0 and stride < top and top % (stride * size) == 0:
            inner, outer = stride // step, top // (stride * size)
            return Span(axis, size, inner=inner, outer=outer, period=inner * size if outer > 1 else 0)
    return None


def recount(node: Node, first: Sequence[tuple[Axis, int]], second: Sequence[tuple[Axis, int]]) -> Iterator[Choice]:
    """One option for each digit: the axes that it lies in lose its values, all others that take part stay."""
    options = []
    for stride, size in _digits((length for _, length in first), (length for _, length in second)):
        left, right = _holder(first, stride, size), _holder(second, stride, size)
        if left is None or right is None:
            continue
        product, factor = (left, right) if right.inner == right.outer == 1 else (right, left)
        tie = Coupling(product, factor, f"{node} counts through {factor.axis} in {product.axis}")
        others = tuple(
            Pin(other, f"{node.op} folds it with another axis, which loses indices instead", f"{node}, {factor.axis}")
            for other, _ in (*first, *second)
            if other not in (left.axis, right.axis)
        )
        options.append(Option(str(factor.axis), (tie, *others)))
    several = len(first) > 1 and len(second) > 1
    ordered = sorted(options[several:], key=lambda option: -_count(option))
    if options:
        yield Choice(node.name, (*options[:several], *ordered))


def _count(option: Option) -> int:
    return max(fact.a.count for fact in option.facts if isinstance(fact, Coupling))


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


def constant_of_shape(node: Node, model: Model) -> Iterator[Fact]:
    """One value everywhere: any index may go."""
    y = node.outputs[0]
    for dim in range(len(model.shape(y) or ())):
        yield Free(Axis(y, dim))


def tile(node: Node, model: Model) -> Iterator[Fact]:
    """Y repeats x: index k of x is k, k + size, k + 2 * size ... of y."""
    x, y = node.inputs[0], node.outputs[0]
    for dim, (size, new) in enumerate(zip(model.shape(x) or (), model.shape(y) or (), strict=True)):
        if size == new:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} repeats another axis")
        elif size > 1:
            copies = Span(Axis(y, dim), size, outer=new // size, period=size)
            yield Coupling(whole(Axis(x, dim), size), copies, f"{node} repeats it")


def depth_to_space(node: Node, model: Model) -> Iterator[Fact]:
    """Blocks of b x b positions and b * b channels in exchange; channel k of the narrow side owns b * b of the wide side.

    In mode DCR those lie apart (k, k + C, k + 2C ...), in CRD next to each other. Before opset 28 SpaceToDepth was always DCR.
    """
    x, y = node.inputs[0], node.outputs[0]
    wide, narrow = (Axis(x, 1), Axis(y, 1)) if node.op == "DepthToSpace" else (Axis(y, 1), Axis(x, 1))
    square = int(node.attributes["blocksize"]) ** 2
    count = (model.shape(narrow.tensor) or ())[1]
    apart = Span(wide, count, outer=square, period=count)
    together = Span(wide, count, inner=square)
    owned = together if node.attributes.get("mode", "DCR") == "CRD" else apart
    yield Coupling(owned, whole(narrow, count), f"{node} spreads channel k over {square} channels")
    yield from same(Axis(x, 0), Axis(y, 0), (model.shape(x) or ())[0], f"batch of {node}")


def rescaled_target(node: Node, cut: Cut, slot: int) -> Iterator[Rescale]:
    """Correct a target shape at an input position wherever it names another size than the output now has.

    In Reshape -1 takes what is left and 0 copies the input's size, so that both follow by themselves where they can; in
    Expand 1 means that the input's size stays.
    """
    target, wanted = cut.value(node.inputs[slot]), np.asarray(cut.after(node.outputs[0]))
    if target is None:
        return
    wanted = wanted[len(wanted) - target.size :]
    meant = target.copy()
    if node.op == RESHAPE:
        given = cut.after(node.inputs[0])
        for place in np.flatnonzero(target == 0):
            meant[place] = given[place] if place < len(given) else -1
        meant[target == -1] = wanted[target == -1]
    if node.op == EXPAND:
        meant[target == 1] = wanted[target == 1]
    wrong = meant != wanted
    if wrong.any():
        yield Rescale(slot, target, np.where(wrong, wanted, target).astype(target.dtype))


def update_target(slot: int) -> ShapeUpdate:
    """Return the shape update of an operator whose input at this position is its target shape."""
    return lambda node, _, cut: rescaled_target(node, cut, slot)


def reshaped(x: str, y: str, target: Sequence[int]) -> Iterator[NodeProto]:
    """Yield the nodes that give a tensor another shape, for shape equivalents."""
    yield helper.make_node("Constant", [], [f"{y}__shape"], value_ints=list(target))
    yield helper.make_node(RESHAPE, [x, f"{y}__shape"], [y])


register("ReverseSequence", coupling=reverse_sequence, parameters=(1,), zero=first)
register(
    "Transpose",
    coupling=transpose,
    zero=first,
    moves=Moves.TRANSPOSE,
    fold=Fold(numpy_ops.transpose, moved=slice(0, 1)),
)
register(
    RESHAPE,
    coupling=reshape,
    parameters=(1,),
    unsaid=DEALS,
    update=update_target(1),
    corrects=(1,),
    zero=first,
    moves=Moves.RESHAPE,
    fold=Fold(numpy_ops.reshape, moved=slice(0, 1), sized_by=slice(1, 2)),
)
for _name, _evaluate in (("Squeeze", numpy_ops.squeeze), ("Unsqueeze", numpy_ops.unsqueeze)):
    register(
        _name,
        coupling=reshape,
        parameters=(1,),
        unsaid=DEALS,
        zero=first,
        moves=Moves.RESHAPE,
        fold=Fold(_evaluate, moved=slice(0, 1)),
    )
register("Flatten", coupling=reshape, parameters=(1,), unsaid=DEALS, zero=first, moves=Moves.RESHAPE)
register(
    EXPAND,
    coupling=expand,
    parameters=(1,),
    update=update_target(1),
    corrects=(1,),
    zero=first,
    fold=Fold(numpy_ops.expand, moved=slice(0, 1), sized_by=slice(1, 2), fills=True),
)
register(
    "ConstantOfShape",
    coupling=constant_of_shape,
    parameters=(0,),
    update=update_target(0),
    corrects=(0,),
    fold=Fold(numpy_ops.constant_of_shape, together=True, sized_by=slice(0, 1), fills=True),
)
register(
    "Tile",
    coupling=tile,
    parameters=(1,),
    zero=first,
    fold=Fold(numpy_ops.tile, moved=slice(0, 1), sized_by=slice(1, 2)),
)
register("DepthToSpace", "SpaceToDepth", coupling=depth_to_space, zero=first)
