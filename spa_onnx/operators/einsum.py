"""Einsum: one letter, one index: https://onnx.ai/onnx/operators/onnx__Einsum.html."""

from __future__ import annotations

from collections.abc import Iterator
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


def einsum_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Every combination of indices multiplies all operands, each with what those before have made."""
    longest: dict[str, Axis] = {}
    terms = str(node.attributes["equation"]).replace(" ", "").partition("->")[0].split(",")
    for name, term in zip(node.inputs, terms, strict=True):
        for dim, letter in enumerate(_letters(term, len(model.shape(name) or ()))):
            axis = Axis(name, dim)
            if letter not in longest or size_of(model, axis) > size_of(model, longest[letter]):
                longest[letter] = axis
    return [list(longest.values())] * (len(terms) - 1)


def _letters(term: str, rank: int) -> list[str]:
    """A letter for each axis; those that the dots stand for are numbered from the last one on."""
    before, dots, behind = term.partition("...")
    hidden = rank - len(before) - len(behind) if dots else 0
    return [*before, *(str(number) for number in range(hidden, 0, -1)), *behind]


def einsum_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield a product with a constant operand.

    One letter or several are summed over; the first of them in the weight counts the channels, the others are its window.
    """
    terms, _, result = str(node.attributes["equation"]).replace(" ", "").partition("->")
    if not result or "." in terms + result or terms.count(",") != 1:
        return
    for slot in (1, 0):
        found, letters = weight_of(model, node.inputs[slot]), terms.split(",")
        if found is None or any(len(set(term)) < len(term) for term in letters):
            continue
        view, shape = found
        own, data = letters[slot], letters[1 - slot]
        summed = [letter for letter in own if letter in data and letter not in result]
        rows = [letter for letter in own if letter not in data]
        covered = {*own, *data} - {*summed} == {*result}
        if not summed or set(own) != {*summed, *rows} or data[0] in summed or not covered:
            return
        order = [own.index(letter) for letter in (*rows, *summed)]
        window = prod(shape[own.index(letter)] for letter in summed[1:])
        kept = [place for place, letter in enumerate(data) if letter not in summed]
        form = _lettered(order, kept + [data.index(letter) for letter in summed], len(summed))
        axis = Axis(node.inputs[slot], own.index(summed[0]))
        yield LinearLayer(node, node.inputs[1 - slot], view, axis, shape, form, window=window)
        return


def _lettered(order: list[int], places: list[int], summed: int) -> MatrixForm:
    """The form of a weight in an Einsum.

    Args:
        order: The axes of the weight, its rows first.
        places: The axes of the data, those that are summed over last.
        summed: How many axes are summed over.
    """

    def to_matrix(_: LinearLayer, weight: Matrix) -> Matrix:
        turned = weight.transpose(order)
        return np.asarray(turned.reshape(1, -1, prod(turned.shape[-summed:])))

    def to_tensor(_: LinearLayer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
        return np.asarray(matrix[0].reshape([shape[axis] for axis in order]).transpose(np.argsort(order)))

    def arranged(_: LinearLayer, data: Array) -> Array:
        turned = data.transpose(places)
        return np.asarray(turned.reshape(*turned.shape[:-summed], -1))

    return MatrixForm(to_matrix, to_tensor, arranged, linear=False)


register("Einsum", coupling=einsum, zero=any_input, macs=einsum_macs, layer=einsum_layer)
