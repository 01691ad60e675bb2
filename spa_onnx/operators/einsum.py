"""Einsum: https://onnx.ai/onnx/operators/onnx__Einsum.html."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import numpy as np

from spa_onnx.layers.find import weight_of
from spa_onnx.layers.layer import LinearLayer, MatrixForm
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.facts import Axis, Batches, Fact, Normalises, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array
from spa_onnx.operators.macs import size_of
from spa_onnx.operators.registry import register
from spa_onnx.operators.zeros import any_input


def einsum(node: Node, model: Model) -> Iterator[Fact]:
    """Y = the sum of products that `equation` describes, such as "bij,bjk->bik".

    Axes with the same letter are coupled. Einsum sums over letters that the output does not have.
    """
    terms, _, result = str(node.attributes["equation"]).replace(" ", "").partition("->")
    if not result or "." in terms + result:
        return
    axes_of_letter: dict[str, list[Axis]] = {}
    for name, term in zip((*node.inputs, node.outputs[0]), (*terms.split(","), result), strict=True):
        for dim, letter in enumerate(term):
            axes_of_letter.setdefault(letter, []).append(Axis(name, dim))
    for letter, axes in axes_of_letter.items():
        sizes = [(model.shape(axis.tensor) or ())[axis.dim] for axis in axes]
        for axis, size in zip(axes[1:], sizes[1:], strict=True):
            if size == sizes[0]:
                yield from same(axes[0], axis, size, f"{node} calls both {letter}")
        if len(axes) == 1:
            yield Normalises(axes[0], node.name, f"{node.op} sums over it")
        if letter in result and sum(not model.is_constant(axis.tensor) for axis in axes[:-1]) > 1:
            yield Batches(axes[-1])


def einsum_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: one product per index combination and operand, except the first operand."""
    longest: dict[str, Axis] = {}
    terms = str(node.attributes["equation"]).replace(" ", "").partition("->")[0].split(",")
    for name, term in zip(node.inputs, terms, strict=True):
        for dim, letter in enumerate(_letters(term, len(model.shape(name) or ()))):
            axis = Axis(name, dim)
            if letter not in longest or size_of(model, axis) > size_of(model, longest[letter]):
                longest[letter] = axis
    return [list(longest.values())] * (len(terms) - 1)


def _letters(term: str, rank: int) -> list[str]:
    """Return a letter for each axis of an operand; axes of an ellipsis are numbered, from the last one to the first."""
    before, ellipsis, after = term.partition("...")
    unnamed = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(str(number) for number in range(unnamed, 0, -1)), *after]


def einsum_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer of a product with a constant operand.

    The layer sums over one or several letters. In the order of the weight, the first is the axis of its input channels,
    and the others form the window.
    """
    terms, _, result = str(node.attributes["equation"]).replace(" ", "").partition("->")
    if not result or "." in terms + result or terms.count(",") != 1:
        return
    for slot in (1, 0):
        weight, letters = weight_of(model, node.inputs[slot]), terms.split(",")
        if weight is None or any(len(set(term)) < len(term) for term in letters):
            continue
        view, shape = weight
        own, data = letters[slot], letters[1 - slot]
        summed = [letter for letter in own if letter in data and letter not in result]
        rows = [letter for letter in own if letter not in data]
        covered = {*own, *data} - {*summed} == {*result}
        if not summed or set(own) != {*summed, *rows} or data[0] in summed or not covered:
            return
        weight_axes = [own.index(letter) for letter in (*rows, *summed)]
        window = prod(shape[own.index(letter)] for letter in summed[1:])
        positions = [dim for dim, letter in enumerate(data) if letter not in summed]
        form = _operand_form(weight_axes, positions + [data.index(letter) for letter in summed], len(summed))
        axis = Axis(node.inputs[slot], own.index(summed[0]))
        yield LinearLayer(node, node.inputs[1 - slot], view, axis, shape, form, window=window)
        return


def _operand_form(weight_axes: list[int], data_axes: list[int], summed: int) -> MatrixForm:
    """Return the matrix form of a constant operand.

    Args:
        weight_axes: The axes of the weight: its rows, then the summed axes.
        data_axes: The axes of the data: its positions, then the summed axes.
        summed: The number of summed axes.
    """
    return MatrixForm(
        partial(_to_matrix, axes=weight_axes, summed=summed),
        partial(_to_tensor, axes=weight_axes),
        partial(_arranged, axes=data_axes, summed=summed),
        linear=False,
    )


def _to_matrix(_: LinearLayer, weight: Matrix, *, axes: list[int], summed: int) -> Matrix:
    transposed = weight.transpose(axes)
    return np.asarray(transposed.reshape(1, -1, prod(transposed.shape[-summed:])))


def _to_tensor(_: LinearLayer, matrix: Matrix, shape: tuple[int, ...], *, axes: list[int]) -> Matrix:
    transposed = matrix[0].reshape([shape[axis] for axis in axes])
    return np.asarray(transposed.transpose(np.argsort(axes)))


def _arranged(_: LinearLayer, data: Array, *, axes: list[int], summed: int) -> Array:
    transposed = data.transpose(axes)
    return np.asarray(transposed.reshape(*transposed.shape[:-summed], -1))


register("Einsum", coupling=einsum, zero=any_input, macs=einsum_macs, layer=einsum_layer)
