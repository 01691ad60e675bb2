"""Which operators are products with a constant weight, and how each stores it: a table of one small function for each operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from spa_onnx.layers.layer import Consumer, Layout
from spa_onnx.layers.weight_view import Form, form_of, uses
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import ADDED, FLOAT_FORMS, OPERANDS, float_form

FUSED: Mapping[str, str] = {
    "com.microsoft.FusedConv": "Conv",
    "com.microsoft.FusedGemm": "Gemm",
    "com.microsoft.FusedMatMul": "MatMul",
    "com.microsoft.TransposeMatMul": "MatMul",
}
"""Operator -> the product that it begins with, or that it is but for its attributes."""


def consumers(model: Model) -> Iterator[Consumer]:
    """Every product with a constant weight, float or quantised, in the order of the graph.

    Not those in branches and bodies: what these compute cannot be looked at from outside.
    """
    for node in (node for node in model.nodes if not node.inside):
        operator, plain = float_form(node) or (FUSED.get(node.op, node.op), node)
        if operator in FINDERS and len(plain.inputs) > 1:
            for found in FINDERS[operator](replace(plain, op=operator), model):
                yield from _read(found, node, model)


def _read(found: Consumer, node: Node, model: Model) -> Iterator[Consumer]:
    """The consumer with an input that is float, or of known steps; none where these are known only while running."""
    added = node.input(ADDED[node.op]) if node.op in ADDED else ""
    found = replace(found, bias=_bias(model, added)) if added else found
    first = next((operand for operand in OPERANDS.get(node.op, ()) if operand.data == 0), None)
    source = model.producer.get(found.data)
    if first is None or node.op not in FLOAT_FORMS:
        yield found
    elif source is not None and source.op == "DynamicQuantizeLinear":
        yield replace(found, data=source.inputs[0])
    elif first.scale >= 0:
        step, zero = (
            model.constant(node.input(slot)) if node.input(slot) else np.zeros(()) for slot in (first.scale, first.zero)
        )
        if step is not None and zero is not None and step.size == zero.size == 1:
            yield replace(found, step=float(step.item()), zero=float(zero.item()))


def _weight(model: Model, name: str) -> tuple[Form, tuple[int, ...]] | None:
    """(the constant behind a weight, the shape in which it is read); None where there is none."""
    form, shape = form_of(model, name) if name else Form(""), model.shape(name)
    return (form, shape) if name and shape is not None and model.is_weight(form.constant) else None


def _bias(model: Model, name: str) -> str:
    """The constant behind a bias, if it is of this product alone: one that others share stays."""
    constant = form_of(model, name).constant if name else ""
    return (
        constant
        if constant and model.is_weight(constant) and constant not in model.source and uses(model, constant) == 1
        else ""
    )


def _conv(node: Node, model: Model) -> Iterator[Consumer]:
    """(M, C/g, k...) is (g, M/g, C/g * k)."""
    found = _weight(model, node.inputs[1])
    if found is None or len(found[1]) < 3 or found[1][1] == 1:
        return
    form, shape = found
    layout = replace(CONV, linear=not node.attributes.get("activation"))
    groups = int(node.attributes.get("group", 1))
    axis, bias = Axis(node.inputs[1], 1), _bias(model, node.input(2))
    yield Consumer(node, node.inputs[0], form, axis, shape, layout, blocks=groups, window=prod(shape[2:]), bias=bias)


def _reshaped(_: Consumer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    return matrix.reshape(shape)


CONV = Layout(lambda c, weight: weight.reshape(c.blocks, weight.shape[0] // c.blocks, -1), _reshaped)


def _transposed(node: Node, model: Model) -> Iterator[Consumer]:
    """(C, M, k...) is (1, M * k, C): every position of the input is spread over M * k outputs."""
    found = _weight(model, node.inputs[1])
    if found is None or int(node.attributes.get("group", 1)) > 1:
        return
    form, shape = found
    bias = (
        _bias(model, node.input(2)) if prod(shape[2:]) == 1 else ""
    )  # a position that few kernels reach gets but a part of the mean
    yield Consumer(node, node.inputs[0], form, Axis(node.inputs[1], 0), shape, TRANSPOSED, bias=bias)


TRANSPOSED = Layout(
    lambda _, weight: weight.reshape(weight.shape[0], -1).T[None],
    lambda _, matrix, shape: matrix[0].T.reshape(shape),
    linear=False,
)


def _as_it_is(_: Consumer, data: Array) -> Array:
    return data


def _swapped(_: Consumer, data: Array) -> Array:
    return np.asarray(data.swapaxes(-1, -2))


def _gemm(node: Node, model: Model) -> Iterator[Consumer]:
    """Y = alpha A' B' + beta C, with either operand transposed where the attributes say so."""
    found = _weight(model, node.inputs[1])
    if found is None:
        return
    form, shape = found
    plain = node.attributes.get("beta", 1.0) == 1.0 and len(model.shape(node.input(2)) or ()) == 1
    yield Consumer(
        node,
        node.inputs[0],
        form,
        Axis(node.inputs[1], 1 if node.attributes.get("transB") else 0),
        shape,
        _linear(node, data_first=not node.attributes.get("transA")),
        bias=_bias(model, node.input(2)) if plain else "",
        scale=float(node.attributes.get("alpha", 1.0)),
    )


def _linear(node: Node, *, data_first: bool) -> Layout:
    """Of a matrix that stands right of the data, or that is transposed there. data_first: whether its rows are the data's last axis."""
    return replace(
        ROWS,
        arranged=_as_it_is if data_first else _swapped,
        linear=data_first and not node.attributes.get("activation"),
    )


def _rows(consumer: Consumer, weight: Matrix) -> Matrix:
    """(..., K, N) is (1, N, K), and so is (..., N, K) where the axis that is summed over is the last; a vector (K,) is one row."""
    turned = weight if weight.ndim == 1 or consumer.axis.dim == weight.ndim - 1 else weight.swapaxes(-1, -2)
    return np.asarray(turned.reshape(1, -1, turned.shape[-1]))


def _from_rows(consumer: Consumer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    last = len(shape) == 1 or consumer.axis.dim == len(shape) - 1
    return np.asarray((matrix[0] if last else matrix[0].T).reshape(shape))


ROWS = Layout(_rows, _from_rows, _as_it_is)


def _matmul(node: Node, model: Model) -> Iterator[Consumer]:
    """A constant matrix on either side, or a vector; FusedMatMul may transpose either operand, and scale the product."""
    for slot in (1, 0):
        found, data = _weight(model, node.inputs[slot]), model.shape(node.inputs[1 - slot]) or ()
        side, other = "AB"[slot], "BA"[slot]
        if found is None or len(data) < 2 or prod(found[1][:-2]) != 1:
            continue
        if any(node.attributes.get(f"transBatch{letter}") for letter in "AB"):
            return
        form, shape = found
        turned = bool(node.attributes.get(f"trans{side}"))
        inner = len(shape) - (2 if (slot == 1) != turned else 1) if len(shape) > 1 else 0
        yield Consumer(
            node,
            node.inputs[1 - slot],
            form,
            Axis(node.inputs[slot], inner),
            shape,
            _linear(node, data_first=(slot == 1) != bool(node.attributes.get(f"trans{other}"))),
            bias=_added(node, model, shape) if slot == 1 else "",
            scale=float(node.attributes.get("alpha", 1.0)),
        )
        return


def _added(node: Node, model: Model, shape: tuple[int, ...]) -> str:
    """The bias of a MatMul: a constant vector added right behind it, as exporters write a linear layer."""
    behind = model.consumers.get(node.outputs[0], ())
    if len(behind) != 1 or behind[0].op != "Add" or node.outputs[0] in model.outputs:
        return ""
    columns = (model.shape(node.outputs[0]) or shape)[-1]
    return next(
        (bias for name in behind[0].inputs if model.shape(name) == (columns,) and (bias := _bias(model, name))), ""
    )


def _recurrent(node: Node, model: Model) -> Iterator[Consumer]:
    """W x for all directions together, (directions, gates, I) as (1, directions * gates, I); and R h, a product for each direction.

    Where a GRU multiplies h before R reads it, that is left out. h are the states of all steps, if these are an output.
    """
    for slot, data, layout in ((1, node.inputs[0], INPUTS), (2, node.outputs[0], STATES)):
        found = _weight(model, node.inputs[slot])
        if found is not None and data and model.shape(data) is not None:
            form, shape = found
            yield Consumer(
                node, data, form, Axis(node.inputs[slot], 2), shape, layout, blocks=1 if slot == 1 else shape[0]
            )


def _by_sample(_: Consumer, data: Array) -> Array:
    """(time, batch, I) as (batch, time, I)."""
    return np.asarray(data.swapaxes(0, 1))


def _directions_together(_: Consumer, data: Array) -> Array:
    """(time, directions, batch, H) as (batch, time, directions * H)."""
    turned = data.transpose(2, 0, 1, 3)
    return np.asarray(turned.reshape(*turned.shape[:2], -1))


INPUTS = Layout(lambda _, weight: weight.reshape(1, -1, weight.shape[2]), _reshaped, _by_sample, linear=False)

STATES = Layout(lambda _, weight: weight, _reshaped, _directions_together, linear=False)


def _of_bits(node: Node, model: Model) -> Iterator[Consumer]:
    """(N, blocks, numbers of a block) is (1, N, K)."""
    found, block = _weight(model, node.inputs[1]), int(node.attributes["block_size"])
    if found is None or int(node.attributes["K"]) % block:
        return
    shape = (*found[1][:2], block)  # several numbers are stored in one
    yield Consumer(node, node.inputs[0], found[0], Axis(node.inputs[1], 1), shape, PACKED, window=block)


PACKED = Layout(lambda _, weight: weight.reshape(1, weight.shape[0], -1), _reshaped, _as_it_is, linear=False)


def _einsum(node: Node, model: Model) -> Iterator[Consumer]:
    """One letter or several are summed over; the first of them in the weight counts the channels, the others are its window."""
    terms, _, result = str(node.attributes["equation"]).replace(" ", "").partition("->")
    if not result or "." in terms + result or terms.count(",") != 1:
        return
    for slot in (1, 0):
        found, letters = _weight(model, node.inputs[slot]), terms.split(",")
        if (
            found is None
            or len(set(letters[slot])) < len(letters[slot])
            or len(set(letters[1 - slot])) < len(letters[1 - slot])
        ):
            continue
        form, shape = found
        own, data = letters[slot], letters[1 - slot]
        summed = [letter for letter in own if letter in data and letter not in result]
        rows = [letter for letter in own if letter not in data]
        if not summed or set(own) != {*summed, *rows} or data[0] in summed or {*own, *data} - {*summed} != {*result}:
            return
        order = [own.index(letter) for letter in (*rows, *summed)]
        window = prod(shape[own.index(letter)] for letter in summed[1:])
        places = [place for place, letter in enumerate(data) if letter not in summed] + [
            data.index(letter) for letter in summed
        ]
        axis = Axis(node.inputs[slot], own.index(summed[0]))
        yield Consumer(
            node, node.inputs[1 - slot], form, axis, shape, _lettered(order, places, len(summed)), window=window
        )
        return


def _lettered(order: list[int], places: list[int], summed: int) -> Layout:
    """order: axes of the weight, its rows first. places: axes of the data, those that are summed over last; of which there are `summed`."""

    def to_matrix(_: Consumer, weight: Matrix) -> Matrix:
        turned = weight.transpose(order)
        return np.asarray(turned.reshape(1, -1, prod(turned.shape[-summed:])))

    def to_tensor(_: Consumer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
        return np.asarray(matrix[0].reshape([shape[axis] for axis in order]).transpose(np.argsort(order)))

    def arranged(_: Consumer, data: Array) -> Array:
        turned = data.transpose(places)
        return np.asarray(turned.reshape(*turned.shape[:-summed], -1))

    return Layout(to_matrix, to_tensor, arranged, linear=False)


FINDERS: Mapping[str, Callable[[Node, Model], Iterator[Consumer]]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "com.microsoft.MatMulNBits": _of_bits,
}
"""Operator -> the products that a node computes with weights that are constants."""
