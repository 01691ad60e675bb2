"""Conv, ConvTranspose and DeformConv, with or without groups: https://onnx.ai/onnx/operators/onnx__Conv.html."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from spa_onnx.layers.find import unshared_bias, weight_of
from spa_onnx.layers.layer import Columns, LinearLayer, MatrixForm, reshaped
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.contrib_shapes import without_activation
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Option, Pin, Positions, Span, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import Held, register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit
from spa_onnx.operators.zeros import affine

CONV, CONV_TRANSPOSE = "Conv", "ConvTranspose"

MIN_GROUP_CHANNELS = 16
"""The size from which on a group can lose some of its channels, also in multiples of 8."""


def conv(node: Node, model: Model) -> Iterator[Fact]:
    """Y[n, m] = B[m] + sum_c W[m, c] * X[n, c].

    With groups, block g of Y reads block g of X through block g of W. FusedConv can add another tensor Z.
    """
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    yield from broadcast(node, model, [name for name in node.inputs[3:] if name], y)
    (channels, filters) = (_size(model, x, 1), _size(model, w, 0))
    yield from _frame(node, model)
    yield from _bias(node, filters)
    groups = int(node.attributes.get("group", 1))
    if groups == 1:
        yield from same(Axis(x, 1), Axis(w, 1), channels, f"{node} reads channel k of its input through W[:, k]")
        yield from same(Axis(w, 0), Axis(y, 1), filters, f"{node} writes channel k with W[k]")
        return
    inputs, outputs = (channels // groups, filters // groups)
    aligned: tuple[Coupling | Pin, ...] = (
        Coupling(
            _aligned(Axis(x, 1), groups, inputs),
            Span(Axis(w, 1), inputs),
            f"{node} reads as many of every group",
            groups,
        ),
        Coupling(
            _aligned(Axis(w, 0), groups, outputs), _aligned(Axis(y, 1), groups, outputs), _equal_groups(node), groups
        ),
    )
    blocks: tuple[Coupling | Pin, ...] = (
        Coupling(_block(Axis(x, 1), groups, inputs), _block(Axis(w, 0), groups, outputs), f"{node} loses whole groups"),
        Coupling(
            _block(Axis(w, 0), groups, outputs), _block(Axis(y, 1), groups, outputs), f"{node} loses whole groups"
        ),
        *_pin_group_size(model, Axis(w, 1), node),
    )
    yield _grouped(node, aligned, blocks, groups, inputs)


def conv_transpose(node: Node, model: Model) -> Iterator[Fact]:
    """Y[n, m] = B[m] + sum_c W[c, m] * X[n, c].

    W is (inputs, outputs / groups, k...): its axis 0 has the input channels of all groups.
    """
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    (channels, filters) = (_size(model, x, 1), _size(model, y, 1))
    yield from _frame(node, model)
    yield from _bias(node, filters)
    yield from same(Axis(x, 1), Axis(w, 0), channels, f"{node} reads channel k of its input through W[k]")
    groups = int(node.attributes.get("group", 1))
    if groups == 1:
        yield from same(Axis(w, 1), Axis(y, 1), filters, f"{node} writes channel k with W[:, k]")
        return
    inputs, outputs = (channels // groups, filters // groups)
    aligned: tuple[Coupling | Pin, ...] = (
        Coupling(
            _aligned(Axis(x, 1), groups, inputs), _aligned(Axis(w, 0), groups, inputs), _equal_groups(node), groups
        ),
        Coupling(
            _aligned(Axis(y, 1), groups, outputs),
            Span(Axis(w, 1), outputs),
            f"{node} writes as many channels of every group",
            groups,
        ),
    )
    blocks: tuple[Coupling | Pin, ...] = (
        Coupling(_block(Axis(x, 1), groups, inputs), _block(Axis(y, 1), groups, outputs), f"{node} loses whole groups"),
        *_pin_group_size(model, Axis(w, 1), node),
    )
    yield _grouped(node, aligned, blocks, groups, inputs)


def update_conv(node: Node, _: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set `group` to the number of groups that the kept channels form."""
    if int(node.attributes.get("group", 1)) == 1:
        return
    channels = cut.after(node.outputs[0] if node.op == CONV_TRANSPOSE else node.inputs[0])[1]
    groups = channels // cut.after(node.inputs[1])[1]
    if groups != node.attributes["group"]:
        yield SetAttribute("group", groups)


def _grouped(
    node: Node, aligned: tuple[Coupling | Pin, ...], blocks: tuple[Coupling | Pin, ...], groups: int, size: int
) -> Choice:
    """Return the choice between whole groups and as many channels of every group; both keep all groups equally large.

    Channels are preferred if a group has enough of them (docs/results/group_convolutions.md).
    """
    options = (Option("whole groups", blocks), Option("as many channels of each group", aligned))
    return Choice(node.name, options if groups >= size and size < MIN_GROUP_CHANNELS else options[::-1])


def _aligned(axis: Axis, groups: int, size: int) -> Span:
    """Return the span in which channel k owns index k of every group."""
    return Span(axis, size, outer=groups, period=size)


def _block(axis: Axis, groups: int, size: int) -> Span:
    """Return the span in which channel k owns all indices of group k."""
    return Span(axis, groups, inner=size)


def _equal_groups(node: Node) -> str:
    """Return the reason for removing as many channels of every group."""
    return f"{node} keeps its groups equally large"


def _pin_group_size(model: Model, axis: Axis, node: Node) -> Iterator[Pin]:
    """Pin the weight axis that lies inside a group."""
    if _size(model, axis.tensor, axis.dim) > 1:
        yield Pin(axis, f"{node.op} loses whole groups, so each keeps its size", str(node))


def _frame(node: Node, model: Model) -> Iterator[Coupling | Positions]:
    """Yield the facts of the axes without channels: batch axes are coupled, spatial axes are positions."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    yield from same(Axis(x, 0), Axis(y, 0), _size(model, x, 0), f"batch of {node}")
    for tensor in (x, w, y):
        for dim in range(2, len(model.shape(tensor) or ())):
            yield Positions(Axis(tensor, dim))


def _bias(node: Node, filters: int) -> Iterator[Coupling]:
    """Couple the output channels with the optional bias."""
    if node.input(2):
        yield from same(Axis(node.outputs[0], 1), Axis(node.inputs[2], 0), filters, f"{node} adds bias k to channel k")


def _size(model: Model, tensor: str, dim: int) -> int:
    return (model.shape(tensor) or ())[dim]


def conv_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: each output element sums over one filter, which is W without its first axis."""
    return [[*axes_of(model, node.outputs[0]), *axes_of(model, node.inputs[1])[1:]]]


def conv_transpose_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: each input element is multiplied by one filter, which is W without its first axis."""
    return [[*axes_of(model, node.inputs[0]), *axes_of(model, node.inputs[1])[1:]]]


def _filters(layer: LinearLayer, weight: Matrix) -> Matrix:
    return weight.reshape(layer.blocks, weight.shape[0] // layer.blocks, -1)


def _spreading(_: LinearLayer, weight: Matrix) -> Matrix:
    return np.asarray(weight.reshape(weight.shape[0], -1).T[None])


def _from_spreading(_: LinearLayer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    return np.asarray(matrix[0].T.reshape(shape))


FILTERS = MatrixForm(_filters, reshaped, columns=Columns.WINDOWS)
"""The weight (M, C/g, k...) as a matrix (g, M/g, C/g * k)."""

SPREADING = MatrixForm(_spreading, _from_spreading, columns=Columns.PIXELS, linear=False)
"""The weight (C, M, k...) as a matrix (1, M * k, C): every input position contributes to M * k outputs."""


def conv_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer of a convolution; none for a depthwise one, which sums over no channels."""
    weight = weight_of(model, node.inputs[1])
    if weight is None or len(weight[1]) < 3 or weight[1][1] == 1:
        return
    view, shape = weight
    yield LinearLayer(
        node,
        node.inputs[0],
        view,
        Axis(node.inputs[1], 1),
        shape,
        replace(FILTERS, linear=not node.attributes.get("activation")),
        blocks=int(node.attributes.get("group", 1)),
        window=prod(shape[2:]),
        bias=unshared_bias(model, node.input(2)),
    )


def conv_transpose_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer of a transposed convolution; none for one with groups.

    A refit changes the bias only if the kernel has one element. With a larger kernel, some output positions are reached
    by fewer kernel elements than others, so that one bias cannot correct the mean at all positions.
    """
    weight = weight_of(model, node.inputs[1])
    if weight is None or int(node.attributes.get("group", 1)) > 1:
        return
    view, shape = weight
    bias = unshared_bias(model, node.input(2)) if prod(shape[2:]) == 1 else ""
    yield LinearLayer(node, node.inputs[0], view, Axis(node.inputs[1], 0), shape, SPREADING, bias=bias)


def deform_conv(node: Node, model: Model) -> Iterator[Fact]:
    """Yield the facts of a convolution whose windows are moved by offsets.

    X is (N, C, ...), W is (M, C/g, k...), the offsets are (N, d * 2 * k, ...). Each of d offset groups moves C/d
    channels, so these numbers are fixed: with several offset groups X keeps its channels. The optional mask has one
    factor for each place of the kernel and each offset group.
    """
    x, w, offset, bias, mask = node.inputs[0], node.inputs[1], node.inputs[2], node.input(3), node.input(4)
    y, channels, filters = node.outputs[0], _size(model, x, 1), _size(model, w, 0)
    yield from _frame(node, model)
    for moved in filter(None, (offset, mask)):
        yield from same(Axis(moved, 0), Axis(y, 0), _size(model, y, 0), f"batch of {node}")
        yield Pin(Axis(moved, 1), f"{node.op} has some for each place of its kernel", str(node))
        for dim in range(2, len(model.shape(moved) or ())):
            yield Positions(Axis(moved, dim))
    if bias:
        yield from same(Axis(y, 1), Axis(bias, 0), filters, f"{node} adds bias k to channel k")
    if int(node.attributes.get("group", 1)) > 1:
        return
    yield from same(Axis(w, 0), Axis(y, 1), filters, f"{node} writes channel k with W[k]")
    if int(node.attributes.get("offset_group", 1)) == 1:
        yield from same(Axis(x, 1), Axis(w, 1), channels, f"{node} reads channel k of its input through W[:, k]")


def deform_keeps_zero(_: Node, __: Model, held: Held) -> bool:
    """Return whether filters and biases are zero, wherever the windows lie."""
    return True in held[:2] and held[3:4] != [False]


register(CONV, coupling=conv, update=update_conv, zero=affine, macs=conv_macs, layer=conv_layer)
register(
    "com.microsoft.FusedConv",
    coupling=conv,
    update=update_conv,
    zero=affine,
    macs=conv_macs,
    layer=conv_layer,
    shape=without_activation(CONV),
)
register(
    CONV_TRANSPOSE,
    coupling=conv_transpose,
    update=update_conv,
    zero=affine,
    macs=conv_transpose_macs,
    layer=conv_transpose_layer,
)
register(
    "DeformConv",
    coupling=deform_conv,
    zero=deform_keeps_zero,
    macs=conv_macs,
    not_refitted="its windows depend on the input",
)
