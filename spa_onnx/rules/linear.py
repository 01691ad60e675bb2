"""Gemm, MatMul and Einsum, with a constant on either side or none: https://onnx.ai/onnx/operators/onnx__MatMul.html."""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.facts import Axis, Batches, Fact, Normalises, same
from spa_onnx.model import Model
from spa_onnx.node import Node
from spa_onnx.rules.elementwise import broadcast
from spa_onnx.rules.registry import rule


@rule("Gemm", "com.microsoft.FusedGemm")
def gemm(node: Node, model: Model) -> Iterator[Fact]:
    """Y = alpha * A' B' + beta * C, with A' (M, K) and B' (K, N), transposed where the attributes say so."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rows, depth = (1, 0) if node.attributes.get("transA") else (0, 1)
    inner, columns = (1, 0) if node.attributes.get("transB") else (0, 1)
    sizes = model.shape(a) or ()
    yield from same(Axis(a, rows), Axis(y, 0), sizes[rows], f"row of {node}")
    yield from same(Axis(a, depth), Axis(b, inner), sizes[depth], f"{node} sums over it")
    yield from same(Axis(b, columns), Axis(y, 1), (model.shape(y) or ())[1], f"{node} writes feature k with column k of its weight")
    if node.input(2):
        yield from broadcast(node, model, [node.inputs[2]], y)


@rule("MatMul", "com.microsoft.FusedMatMul")
def matmul(node: Node, model: Model) -> Iterator[Fact]:
    """numpy.matmul: the last axis of A meets the axis before the last of B; axes in front broadcast. FusedMatMul may swap either pair."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    left, right, out = model.shape(a) or (), model.shape(b) or (), model.shape(y) or ()
    if node.attributes.get("transBatchA") or node.attributes.get("transBatchB"):
        return
    depth, rows = (-2, -1) if node.attributes.get("transA") else (-1, -2)
    columns, inner = (-2, -1) if node.attributes.get("transB") else (-1, -2)
    meeting = Axis(b, len(right) + inner if len(right) > 1 else 0)
    yield from same(Axis(a, len(left) + depth), meeting, left[depth], f"{node} sums over it")
    if len(left) > 1:
        row = len(out) - (2 if len(right) > 1 else 1)
        yield from same(Axis(a, len(left) + rows), Axis(y, row), left[rows], f"row of {node}")
    if len(right) > 1:
        column = Axis(b, len(right) + columns)
        yield from same(column, Axis(y, len(out) - 1), right[columns], f"{node} writes feature k with column k of its weight")
    batch = len(out) - (len(left) > 1) - (len(right) > 1)
    for name, shape in ((a, left), (b, right)):
        for back in range(1, len(shape) - 1):
            dim = len(shape) - 2 - back
            if shape[dim] == out[batch - back]:
                yield from same(Axis(name, dim), Axis(y, batch - back), shape[dim], f"batch of {node}")
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
