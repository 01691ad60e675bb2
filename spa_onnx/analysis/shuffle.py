"""Channel shuffles: chains of Reshape, Transpose and Gather that only reorder or pick the indices of an axis.

Reshape to (g, C/g), Transpose, Reshape back is a permutation of C. Node by node, the rules would tie channel k of all g
parts, and the next unit would double the tie until a whole stage of a ShuffleNet is one channel. Such a chain is
therefore one fact from its first tensor to its last one: index to index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from spa_onnx.model.facts import Axis, Coupling, Free, Indices, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import Shape
from spa_onnx.model.traits import Moves, traits
from spa_onnx.operators.reshaping import RESHAPE

LONGEST = 8
"""The maximum number of nodes between the first tensor of a chain and its last; real chains have three or four."""


@dataclass(frozen=True, slots=True, order=True)
class Digit:
    """One digit of an index in a mixed-radix number: it counts to `size` in steps of `stride` along axis `dim`."""

    dim: int
    stride: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor of the chain holds the elements of the first tensor.

    Args:
        axes: For each axis of this tensor, the digits that it counts through, the last one fastest.
        offset: For each axis of the first tensor, the part of the index that a Gather has fixed.
    """

    axes: tuple[tuple[Digit, ...], ...]
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A reordering from `source` to each of `outputs`.

    `layouts` describes the outputs and every tensor on the way.
    """

    source: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    layouts: dict[str, Layout]

    def order(self, output: str, dim: int) -> Indices:
        """Return for each index of an axis of `output` the index of the same axis of `source`, int64."""
        layout = self.layouts[output]
        places = np.zeros(1, np.int64)
        for digit in layout.axes[dim]:
            places = (places[:, None] + np.arange(digit.size) * digit.stride).ravel()
        return places + layout.offset[dim]

    def reordered(self, output: str, shape: Shape) -> list[int]:
        """Return the axes of `output` that differ from those of the source, which has this shape."""
        orders = [self.order(output, dim) for dim in range(len(shape))]
        return [
            dim
            for dim, order in enumerate(orders)
            if len(order) != shape[dim] or (order != np.arange(shape[dim])).any()
        ]


def chains(model: Model) -> list[Chain]:
    """Return all chains of the model. They do not overlap."""
    found: list[Chain] = []
    taken: set[int] = set()
    for node in model.nodes:
        if (
            node.op == RESHAPE
            and node.index not in taken
            and not model.is_folded(node)
            and not model.is_constant(node.inputs[0])
        ):
            chain = _chain(node, model)
            if chain is not None:
                found.append(chain)
                taken.update(n.index for n in chain.nodes)
    return found


def chain_facts(chain: Chain, model: Model) -> Iterator[Coupling | Free]:
    """Yield the facts between the chain's first tensor and each of its last ones: index to index."""
    shape = model.shape(chain.source) or ()
    for output in chain.outputs:
        for dim, size in enumerate(model.shape(output) or ()):
            order = chain.order(output, dim)
            if size == shape[dim] and (order == np.arange(size)).all():
                yield from same(
                    Axis(chain.source, dim), Axis(output, dim), size, f"{chain.nodes[0]} leaves axis {dim} in order"
                )
            else:
                span = Span(Axis(chain.source, dim), size, order=tuple(order.tolist()))
                yield Coupling(
                    span, whole(Axis(output, dim), size), f"{chain.nodes[0]} and what follows only reorder it"
                )
    for dim in range(len(shape)):
        yield Free(Axis(chain.source, dim))


def _chain(first: Node, model: Model) -> Chain | None:
    """Return the chain that starts at a node; None if none does."""
    shape = model.shape(first.inputs[0])
    if shape is None or min(shape, default=0) < 1:
        return None
    if any(model.depends_on_data(Axis(name, dim)) for name in (first.inputs[0], first.outputs[0]) for dim in range(9)):
        return None  # the order would hold for one size only
    start = Layout(
        tuple((Digit(dim, 1, size),) if size > 1 else () for dim, size in enumerate(shape)), (0,) * len(shape)
    )
    chain = Chain(first.inputs[0], (), (), {})
    chain = _extended(first, start, chain, model) or chain
    moved = any(
        len({d.dim for axis in layout.axes for d in axis}) < sum(map(len, layout.axes))
        for layout in chain.layouts.values()
    )
    simple = all(len(chain.reordered(output, shape)) <= 1 for output in chain.outputs)  # one Gather can do the same
    return chain if chain.outputs and moved and simple else None


def _extended(node: Node, given: Layout, chain: Chain, model: Model) -> Chain | None:
    """Extend the chain through `node` and its consumers, until each branch has the axes of the first tensor again."""
    layout = _step(node, given, model)
    if layout is None or len(chain.nodes) >= LONGEST:
        return None
    output = node.outputs[0]
    chain = Chain(chain.source, (*chain.nodes, node), chain.outputs, {**chain.layouts, output: layout})
    if len(chain.nodes) > 1 and _is_home(layout, model.shape(chain.source) or ()):
        return Chain(chain.source, chain.nodes, (*chain.outputs, output), chain.layouts)
    consumers = model.consumers.get(output, ())
    if not consumers or output in model.outputs:
        return None
    for consumer in consumers:
        further = _extended(consumer, layout, chain, model)
        if further is None:
            return None
        chain = further
    return chain


def _is_home(layout: Layout, shape: Shape) -> bool:
    """Return whether each axis holds digits of the same axis of the first tensor only."""
    return len(layout.axes) == len(shape) and all(d.dim == dim for dim, axis in enumerate(layout.axes) for d in axis)


def _step(node: Node, given: Layout, model: Model) -> Layout | None:
    """Return the layout behind one node; None if the node does more than move or pick elements."""
    moves = traits(node.op).moves
    if moves is Moves.TRANSPOSE:
        perm = node.attributes.get("perm", tuple(range(len(given.axes)))[::-1])
        return Layout(tuple(given.axes[dim] for dim in perm), given.offset)
    if moves is Moves.RESHAPE:
        shape = model.shape(node.outputs[0])
        return None if shape is None else _regroup(given, shape)
    if node.op == "Gather":
        return _pick(node, given, model)
    return None


def _regroup(given: Layout, shape: Shape) -> Layout | None:
    """Return the digits distributed over the axes of another shape, split where needed; None if they do not divide."""
    digits = [digit for axis in given.axes for digit in axis][::-1]
    axes = []
    for size in shape:
        axis: list[Digit] = []
        missing = size
        while missing > 1:
            if not digits:
                return None
            digit = digits.pop()
            if missing % digit.size == 0:
                axis.append(digit)
                missing //= digit.size
            elif digit.size % missing == 0:
                rest = digit.size // missing
                axis.append(Digit(digit.dim, digit.stride * rest, missing))
                digits.append(Digit(digit.dim, digit.stride, rest))
                missing = 1
            else:
                return None
        axes.append(tuple(axis))
    return None if digits else Layout(tuple(axes), given.offset)


def _pick(node: Node, given: Layout, model: Model) -> Layout | None:
    """Return the layout behind a Gather of one constant index from an axis with one digit: the axis is gone."""
    index = model.constant(node.inputs[1])
    dim = int(node.attributes.get("axis", 0)) % len(given.axes)
    if index is None or index.ndim != 0 or len(given.axes[dim]) != 1:
        return None
    digit = given.axes[dim][0]
    offset = list(given.offset)
    offset[digit.dim] += int(index) % digit.size * digit.stride
    return Layout(given.axes[:dim] + given.axes[dim + 1 :], tuple(offset))


def aligned_shapes(chain: Chain, before: Shape, kept: dict[int, Indices]) -> dict[str, Shape] | None:
    """Return the shapes of the tensors of a chain that can stay unchanged; None if it cannot.

    It can if the kept indices of each axis are a grid of its digits.

    Args:
        chain: The chain.
        before: The sizes of the source.
        kept: Axis of the source that loses indices -> its kept indices.
    """
    counts: dict[int, dict[int, int]] = {}
    for dim, indices in kept.items():
        strides = {d.stride for layout in chain.layouts.values() for axis in layout.axes for d in axis if d.dim == dim}
        found = _grid(before[dim], sorted(strides, reverse=True), indices)
        if found is None:
            return None
        counts[dim] = found
    return {
        name: tuple(prod(_left(d, counts) for d in axis) for axis in layout.axes)
        for name, layout in chain.layouts.items()
    }


def _grid(size: int, strides: list[int], kept: Indices) -> dict[int, int] | None:
    """Return stride -> number of kept values of that digit.

    None if the kept indices are not all combinations of these values.
    """
    mask = np.zeros(size, bool)
    mask[kept] = True
    radix = [above // below for above, below in zip([size, *strides], strides, strict=False)]
    cube = mask.reshape(radix)
    margins = [cube.any(axis=tuple(a for a in range(cube.ndim) if a != dim)) for dim in range(cube.ndim)]
    if prod(int(margin.sum()) for margin in margins) != len(kept):
        return None
    return {stride: int(margin.sum()) for stride, margin in zip(strides, margins, strict=True)}


def _left(digit: Digit, counts: dict[int, dict[int, int]]) -> int:
    """Return the number of kept values of a digit."""
    left = counts.get(digit.dim)
    if left is None:
        return digit.size
    return prod(count for stride, count in left.items() if digit.stride <= stride < digit.stride * digit.size)
