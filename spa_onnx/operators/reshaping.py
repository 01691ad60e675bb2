"""Operators that only move or copy elements: Transpose, Reshape, Squeeze, Flatten, Expand, Tile, DepthToSpace."""

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

REGROUPS = "deals its elements out to several axes anew"
"""The reason with which an axis is pinned if the rule yields nothing for it."""


def reverse_sequence(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x with the first steps of each sequence reversed. All axes but those of time and batch are coupled."""
    x, y = node.inputs[0], node.outputs[0]
    moved = {int(node.attributes.get("time_axis", 0)), int(node.attributes.get("batch_axis", 1))}
    for dim, size in enumerate(model.shape(x) or ()):
        if dim not in moved:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} works along other axes")


def transpose(node: Node, model: Model) -> Iterator[Fact]:
    """Axis k of Y is axis perm[k] of x."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    for place, dim in enumerate(node.attributes.get("perm", tuple(range(len(shape)))[::-1])):
        yield from same(Axis(x, dim), Axis(y, place), shape[dim], f"{node} moves axis {dim} to {place}")


def matching_axes(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the shortest runs of axes of both shapes that hold the same elements. Axes of size 1 are skipped.

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
    """Y = x in row-major order with another shape.

    An axis that is split (channels into heads x width) can lose indices along one of the new axes only, because
    coupling it to all of them would couple everything into one channel. So the rule yields a choice. The same holds for
    axes that are merged, and for axes that are merged and split at once (batch, heads x width into batch x heads,
    width). The options are the digits of the mixed-radix number that counts through both shapes.
    """
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    if prod(before) != prod(after) or 0 in before:
        return
    for old, new in matching_axes(before, after):
        if len(old) == len(new) == 1:
            yield from same(Axis(x, old[0]), Axis(y, new[0]), before[old[0]], f"{node} keeps axis {old[0]}")
        else:
            yield from reshape_choice(
                node, [(Axis(x, d), before[d]) for d in old], [(Axis(y, d), after[d]) for d in new]
            )


def _digits(left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
    """Return (stride, size) of each digit of the mixed-radix number that counts through both shapes, slowest first."""
    strides = (set(accumulate(reversed([*shape]), mul)) for shape in (left, right))
    digits, stride = [], 1
    for end in sorted(set.union(*strides)):
        if end % stride == 0:
            digits.append((stride, end // stride))
            stride = end
    return digits[::-1]


def _axis_of_digit(axes: Sequence[tuple[Axis, int]], stride: int, size: int) -> Span | None:
    """Return the axis that contains a digit, with the indices of each digit value; None if the digit spans two axes."""
    step = prod(length for _, length in axes)
    for axis, length in axes:
        step, top = step // length, step
        if stride % step == 0 and stride < top and top % (stride * size) == 0:
            inner, outer = stride // step, top // (stride * size)
            return Span(axis, size, inner=inner, outer=outer, period=inner * size if outer > 1 else 0)
    return None


def reshape_choice(
    node: Node, first: Sequence[tuple[Axis, int]], second: Sequence[tuple[Axis, int]]
) -> Iterator[Choice]:
    """Yield the choice of a reshape: one option per digit.

    Each option couples the two axes that contain the digit and pins all other axes.

    Args:
        node: The node.
        first: The merged or split axes of its input, each with its size.
        second: The axes of its output that hold the same elements.
    """
    options = []
    for stride, size in _digits((length for _, length in first), (length for _, length in second)):
        left, right = _axis_of_digit(first, stride, size), _axis_of_digit(second, stride, size)
        if left is None or right is None:
            continue
        product, factor = (left, right) if right.inner == right.outer == 1 else (right, left)
        coupling = Coupling(product, factor, f"{node} counts through {factor.axis} in {product.axis}")
        others = tuple(
            Pin(other, f"{node.op} folds it with another axis, which loses indices instead", f"{node}, {factor.axis}")
            for other, _ in (*first, *second)
            if other not in (left.axis, right.axis)
        )
        options.append(Option(str(factor.axis), (coupling, *others)))
    several = len(first) > 1 and len(second) > 1
    ordered = sorted(options[several:], key=lambda option: -_channel_count(option))
    if options:
        yield Choice(node.name, (*options[:several], *ordered))


def _channel_count(option: Option) -> int:
    """Return the number of channels of an option's coupling."""
    return max(fact.a.count for fact in option.facts if isinstance(fact, Coupling))


def expand(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x broadcast to a larger shape. An expanded axis holds copies, any of which can be removed."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    padded = (1,) * (len(after) - len(before)) + before
    for dim, (old, new) in enumerate(zip(padded, after, strict=True)):
        if old == new:
            yield from same(Axis(x, dim - len(after) + len(before)), Axis(y, dim), new, f"{node} keeps axis {dim}")
        else:
            yield Free(Axis(y, dim))


def constant_of_shape(node: Node, model: Model) -> Iterator[Fact]:
    """Y = one value everywhere: any index can be removed."""
    y = node.outputs[0]
    for dim in range(len(model.shape(y) or ())):
        yield Free(Axis(y, dim))


def tile(node: Node, model: Model) -> Iterator[Fact]:
    """Y = repetitions of x: index k of x is index k, k + size, k + 2 * size ... of y."""
    x, y = node.inputs[0], node.outputs[0]
    for dim, (size, new) in enumerate(zip(model.shape(x) or (), model.shape(y) or (), strict=True)):
        if size == new:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} repeats another axis")
        elif size > 1:
            copies = Span(Axis(y, dim), size, outer=new // size, period=size)
            yield Coupling(whole(Axis(x, dim), size), copies, f"{node} repeats it")


def depth_to_space(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x with b * b channels moved into blocks of b x b positions, or the reverse (SpaceToDepth).

    Channel k of the side with fewer channels owns b * b channels of the other side. These are k, k + C, k + 2C ... in
    mode DCR, and consecutive in mode CRD. Before opset 28 SpaceToDepth has no mode and uses DCR.
    """
    x, y = node.inputs[0], node.outputs[0]
    wide, narrow = (Axis(x, 1), Axis(y, 1)) if node.op == "DepthToSpace" else (Axis(y, 1), Axis(x, 1))
    square = int(node.attributes["blocksize"]) ** 2
    count = (model.shape(narrow.tensor) or ())[1]
    strided = Span(wide, count, outer=square, period=count)
    consecutive = Span(wide, count, inner=square)
    owned = consecutive if node.attributes.get("mode", "DCR") == "CRD" else strided
    yield Coupling(owned, whole(narrow, count), f"{node} spreads channel k over {square} channels")
    yield from same(Axis(x, 0), Axis(y, 0), (model.shape(x) or ())[0], f"batch of {node}")


def rescaled_target(node: Node, cut: Cut, slot: int) -> Iterator[Rescale]:
    """Yield a correction of a target shape, if its sizes differ from those of the pruned output.

    Special values stay if they still give the right size: -1 (inferred) and 0 (size of the input) in Reshape, 1 (size
    of the input) in Expand.

    Args:
        node: The node.
        cut: The pruned sizes.
        slot: The input position of the target shape.
    """
    target, wanted = cut.value(node.inputs[slot]), np.asarray(cut.after(node.outputs[0]))
    if target is None:
        return
    wanted = wanted[len(wanted) - target.size :]
    sizes = target.copy()
    if node.op == RESHAPE:
        input_shape = cut.after(node.inputs[0])
        for place in np.flatnonzero(target == 0):
            sizes[place] = input_shape[place] if place < len(input_shape) else -1
        sizes[target == -1] = wanted[target == -1]
    if node.op == EXPAND:
        sizes[target == 1] = wanted[target == 1]
    wrong = sizes != wanted
    if wrong.any():
        yield Rescale(slot, target, np.where(wrong, wanted, target).astype(target.dtype))


def update_target(slot: int) -> ShapeUpdate:
    """Return the shape update of an operator whose target shape is the input at this position."""
    return lambda node, _, cut: rescaled_target(node, cut, slot)


def reshape_node(x: str, y: str, target: Sequence[int]) -> Iterator[NodeProto]:
    """Yield nodes that reshape tensor x to a constant target shape and name the result y."""
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
    default_reason=REGROUPS,
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
        default_reason=REGROUPS,
        zero=first,
        moves=Moves.RESHAPE,
        fold=Fold(_evaluate, moved=slice(0, 1)),
    )
register("Flatten", coupling=reshape, parameters=(1,), default_reason=REGROUPS, zero=first, moves=Moves.RESHAPE)
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
