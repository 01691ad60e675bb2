"""Gemm, MatMul and Einsum, with a constant on either side or none: https://onnx.ai/onnx/operators/onnx__MatMul.html."""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.model.facts import Axis, Batches, Coupling, Fact, Normalises, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.registry import rule


@rule("Gemm", "com.microsoft.FusedGemm")
def gemm(node: Node, model: Model) -> Iterator[Fact]:
    """Y = alpha * A' B' + beta * C, with A' (M, K) and B' (K, N), transposed where the attributes say so."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rows, depth = (1, 0) if node.attributes.get("transA") else (0, 1)
    inner, columns = (1, 0) if node.attributes.get("transB") else (0, 1)
    sizes = model.shape(a) or ()
    yield from same(Axis(a, rows), Axis(y, 0), sizes[rows], f"row of {node}")
    yield from same(Axis(a, depth), Axis(b, inner), sizes[depth], f"{node} sums over it")
    yield from same(
        Axis(b, columns), Axis(y, 1), (model.shape(y) or ())[1], f"{node} writes feature k with column k of its weight"
    )
    if node.input(2):
        yield from broadcast(node, model, [node.inputs[2]], y)


def _logical(rank: int, *, swapped: bool, shifted: bool) -> list[int]:
    """The axes of an operand in the order in which it is multiplied. shifted: its first axis is the rows, the batch comes behind it."""
    axes = [*range(1, rank - 1), 0, rank - 1] if shifted and rank > 2 else list(range(rank))
    return [*axes[:-2], *axes[:-3:-1]] if swapped and rank > 1 else axes


@rule("MatMul", "com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def matmul(node: Node, model: Model) -> Iterator[Fact]:
    """numpy.matmul: the last axis of A meets the axis before the last of B; axes in front broadcast. FusedMatMul may reorder either."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    out = model.shape(y) or ()
    left, right = (
        _logical(
            len(model.shape(name) or ()),
            swapped=bool(node.attributes.get(f"trans{side}")),
            shifted=bool(node.attributes.get(f"transBatch{side}")),
        )
        for name, side in ((a, "A"), (b, "B"))
    )
    depth = (model.shape(a) or ())[left[-1]]
    yield from same(Axis(a, left[-1]), Axis(b, right[-2] if len(right) > 1 else 0), depth, f"{node} sums over it")
    if len(left) > 1:
        row = len(out) - (2 if len(right) > 1 else 1)
        yield from same(Axis(a, left[-2]), Axis(y, row), out[row], f"row of {node}")
    if len(right) > 1:
        yield from same(
            Axis(b, right[-1]), Axis(y, len(out) - 1), out[-1], f"{node} writes feature k with column k of its weight"
        )
    batch = len(out) - (len(left) > 1) - (len(right) > 1)
    for name, axes in ((a, left), (b, right)):
        for back, dim in enumerate(axes[-3::-1], 1):
            if (model.shape(name) or ())[dim] == out[batch - back]:
                yield from same(Axis(name, dim), Axis(y, batch - back), out[batch - back], f"batch of {node}")
    if len(left) > 2 and len(right) > 2:
        for dim in range(batch):
            if out[dim] > 1:
                yield Batches(Axis(y, dim))


@rule("Einsum")
def einsum(node: Node, model: Model) -> Iterator[Fact]:
    """One letter, one index: axes with the same letter lose the same. Letters that the result lacks are summed over."""
    terms, _, result = str(node.attributes["equation"]).replace(" ", "").partition("->")
    if not result or "." in terms + result:
        return
    where: dict[str, list[Axis]] = {}
    for name, term in zip((*node.inputs, node.outputs[0]), (*terms.split(","), result), strict=True):
        for dim, letter in enumerate(term):
            where.setdefault(letter, []).append(Axis(name, dim))
    for letter, axes in where.items():
        sizes = [(model.shape(axis.tensor) or ())[axis.dim] for axis in axes]
        for axis, size in zip(axes[1:], sizes[1:], strict=True):
            if size == sizes[0]:
                yield from same(axes[0], axis, size, f"{node} calls both {letter}")
        if len(axes) == 1:
            yield Normalises(axes[0], node.name, f"{node.op} sums over it")
        if letter in result and sum(not model.is_constant(axis.tensor) for axis in axes[:-1]) > 1:
            yield Batches(axes[-1])


@rule("com.microsoft.MoE")
def experts(node: Node, model: Model) -> Iterator[Fact]:
    """For each token, the sum of y = act(x W1') * (x W3') W2' over the experts that its row of scores picks; the experts stay.

    W1 and W3 are (experts, inner, features), W2 is (experts, features, inner). Fused, W1 has the rows of W3 beside or behind its own.
    """
    x, y, (w1, b1, w2, b2, w3, b3) = node.inputs[0], node.outputs[0], (node.input(slot) for slot in range(2, 8))
    shape, count = model.shape(x) or (), (model.shape(w2) or ())[2]
    last = len(shape) - 1
    fusion = int(node.attributes.get("swiglu_fusion", 0))
    inner, outer = {0: (1, 1), 1: (2, 1), 2: (1, 2)}[fusion]
    for dim in range(last):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"row of {node}")
    for axis in (Axis(w1, 2), *([Axis(w3, 2)] if w3 else [])):
        yield from same(Axis(x, last), axis, shape[last], f"{node} sums over it")
    for axis in (Axis(w2, 1), *([Axis(b2, 1)] if b2 else [])):
        yield from same(axis, Axis(y, last), shape[last], f"{node} writes feature k with it")
    for tensor, beside, behind in ((w1, inner, outer), (b1, inner, outer), (w3, 1, 1), (b3, 1, 1)):
        if tensor:
            rows = Span(Axis(tensor, 1), count, inner=beside, outer=behind, period=count)
            yield Coupling(whole(Axis(w2, 2), count), rows, f"every expert of {node} has one inner width")
