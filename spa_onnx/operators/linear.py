"""Gemm and MatMul, with or without a constant operand.

https://onnx.ai/onnx/operators/onnx__Gemm.html, https://onnx.ai/onnx/operators/onnx__MatMul.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from onnx import NodeProto, helper

from spa_onnx.layers.find import unshared_bias, weight_of
from spa_onnx.layers.layer import LinearLayer, MatrixForm
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.contrib_shapes import integer, without_activation
from spa_onnx.model.facts import Axis, Batches, Fact, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import register
from spa_onnx.operators.zeros import affine, any_input


def gemm(node: Node, model: Model) -> Iterator[Fact]:
    """Y = alpha * A' B' + beta * C, with A' (M, K) and B' (K, N): A and B, transposed if transA or transB is set."""
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
    """Return the axes of an operand in the order in which it is multiplied: batch axes, then the two matrix axes.

    Args:
        rank: The rank of the operand.
        swapped: Whether the two matrix axes are swapped (transA, transB).
        shifted: Whether the rows are on the first axis, before the batch axes (transBatchA, transBatchB).
    """
    axes = [*range(1, rank - 1), 0, rank - 1] if shifted and rank > 2 else list(range(rank))
    return [*axes[:-2], *axes[:-3:-1]] if swapped and rank > 1 else axes


def matmul(node: Node, model: Model) -> Iterator[Fact]:
    """Y = A B as in numpy.matmul: the last axis of A is multiplied by the second to last of B; batch axes broadcast.

    FusedMatMul can transpose either operand.
    """
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


def gemm_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: each output element sums over the axis that A' and B' have in common."""
    return [[*axes_of(model, node.outputs[0]), Axis(node.inputs[0], 0 if node.attributes.get("transA") else 1)]]


def matmul_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: each output element sums over the last axis of A.

    FusedMatMul can swap the last two axes of A (transA), after it has moved the first axis there (transBatchA).
    """
    axes = axes_of(model, node.inputs[0])
    swapped = axes[0] if node.attributes.get("transBatchA") else axes[-2:][0]
    return [[*axes_of(model, node.outputs[0]), swapped if node.attributes.get("transA") else axes[-1]]]


def unchanged(_: LinearLayer, data: Array) -> Array:
    """Return the data unchanged: its inputs are along the last axis."""
    return data


def _swapped(_: LinearLayer, data: Array) -> Array:
    return np.asarray(data.swapaxes(-1, -2))


def _rows(layer: LinearLayer, weight: Matrix) -> Matrix:
    """Return the weight as (1, N, K). It is (..., K, N), (..., N, K) if summed over its last axis, or (K,)."""
    rows = weight if weight.ndim == 1 or layer.axis.dim == weight.ndim - 1 else weight.swapaxes(-1, -2)
    return np.asarray(rows.reshape(1, -1, rows.shape[-1]))


def _from_rows(layer: LinearLayer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    """Return the inverse of `_rows`."""
    sums_over_last = len(shape) == 1 or layer.axis.dim == len(shape) - 1
    return np.asarray((matrix[0] if sums_over_last else matrix[0].T).reshape(shape))


ROWS = MatrixForm(_rows, _from_rows, unchanged)


def _operand_form(node: Node, *, data_first: bool) -> MatrixForm:
    """Return the form of a constant operand. data_first: whether the layer sums over the last axis of the data."""
    linear = data_first and not node.attributes.get("activation")
    return replace(ROWS, arranged=unchanged if data_first else _swapped, linear=linear)


def gemm_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer Y = alpha A' B' + beta C, if B is constant."""
    weight = weight_of(model, node.inputs[1])
    if weight is None:
        return
    view, shape = weight
    is_bias = node.attributes.get("beta", 1.0) == 1.0 and len(model.shape(node.input(2)) or ()) == 1
    yield LinearLayer(
        node,
        node.inputs[0],
        view,
        Axis(node.inputs[1], 1 if node.attributes.get("transB") else 0),
        shape,
        _operand_form(node, data_first=not node.attributes.get("transA")),
        bias=unshared_bias(model, node.input(2)) if is_bias else "",
        scale=float(node.attributes.get("alpha", 1.0)),
    )


def matmul_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer of a product with a constant matrix or vector, as the right or the left operand.

    FusedMatMul can transpose and scale; with transBatchA or transBatchB it is no linear layer.
    """
    for slot in (1, 0):
        weight, data = weight_of(model, node.inputs[slot]), model.shape(node.inputs[1 - slot]) or ()
        side, other = "AB"[slot], "BA"[slot]
        if weight is None or len(data) < 2 or prod(weight[1][:-2]) != 1:
            continue
        if any(node.attributes.get(f"transBatch{letter}") for letter in "AB"):
            return
        view, shape = weight
        transposed = bool(node.attributes.get(f"trans{side}"))
        inner = len(shape) - (2 if (slot == 1) != transposed else 1) if len(shape) > 1 else 0
        yield LinearLayer(
            node,
            node.inputs[1 - slot],
            view,
            Axis(node.inputs[slot], inner),
            shape,
            _operand_form(node, data_first=(slot == 1) != bool(node.attributes.get(f"trans{other}"))),
            bias=_added_bias(node, model, shape) if slot == 1 else "",
            scale=float(node.attributes.get("alpha", 1.0)),
        )
        return


def _added_bias(node: Node, model: Model, shape: tuple[int, ...]) -> str:
    """Return the bias of a MatMul: a constant vector added by its only consumer; an empty name if there is none."""
    consumers = model.consumers.get(node.outputs[0], ())
    if len(consumers) != 1 or consumers[0].op != "Add" or node.outputs[0] in model.outputs:
        return ""
    columns = (model.shape(node.outputs[0]) or shape)[-1]
    vectors = (name for name in consumers[0].inputs if model.shape(name) == (columns,))
    return next(filter(None, (unshared_bias(model, name) for name in vectors)), "")


def _operand(node: NodeProto, side: str, rank: int, letters: str) -> str:
    """Return the term of an operand in an Einsum: `letters` for its matrix axes, an ellipsis for its batch axes."""
    swapped = integer(node, f"trans{side}")
    first, second = (letters[1], letters[0]) if swapped else (letters[0], letters[1])
    if rank == 2:
        return first + second
    return f"{first}...{second}" if integer(node, f"transBatch{side}") else f"...{first}{second}"


def matmul_shapes(node: NodeProto, x: Sequence[str], y: Sequence[str], ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield an Einsum with the output shape of a FusedMatMul."""
    left, right = (
        _operand(node, side, ranks.get(name, 3), letters)
        for side, name, letters in zip("AB", x, ("ij", "jk"), strict=True)
    )
    yield helper.make_node("Einsum", list(x), [y[0]], equation=f"{left},{right}->...ik")


register("Gemm", coupling=gemm, zero=affine, macs=gemm_macs, layer=gemm_layer)
register(
    "com.microsoft.FusedGemm",
    coupling=gemm,
    zero=affine,
    macs=gemm_macs,
    layer=gemm_layer,
    shape=without_activation("Gemm"),
)
register("MatMul", coupling=matmul, zero=any_input, macs=matmul_macs, layer=matmul_layer)
register(
    "com.microsoft.FusedMatMul",
    "com.microsoft.TransposeMatMul",
    coupling=matmul,
    zero=any_input,
    macs=matmul_macs,
    layer=matmul_layer,
    shape=matmul_shapes,
)
