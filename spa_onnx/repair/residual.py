"""What the output of a product is added to: where that has lost something, the product can make up for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from spa_onnx.layers import Columns, LinearLayer
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Moves, traits

PASSING = frozenset({Moves.ROUND, Moves.IDENTITY, Moves.DROPOUT})
"""Operators that hand on what they get, as near as the sum needs it."""

SMALLEST = 1e-3
"""A row that is scaled by less than this share of the largest factor is left to itself."""


@dataclass(frozen=True, slots=True)
class ResidualInput:
    """tensor: what is added. scale: by what the rows of the product are multiplied before, float64 (blocks, rows, 1)."""

    tensor: str
    scale: Matrix

    def before(self, difference: Matrix) -> Matrix:
        """What the rows have to differ by for the sum to differ so: (blocks, rows, n) both."""
        usable = np.abs(self.scale) >= SMALLEST * np.abs(self.scale).max()
        return np.where(usable, difference / np.where(usable, self.scale, 1.0), 0.0)


def residual_inputs(model: Model, found: Sequence[LinearLayer]) -> Mapping[int, ResidualInput]:
    """Node of a product -> what its output is added to, if none of the products that come after it has a part in that.

    found: the products, in the order of the graph.
    """
    place = {layer.node.index: number for number, layer in enumerate(found)}
    latest: dict[str, int] = {}
    for node in model.nodes:
        before = [latest.get(name, -1) for name in (*node.inputs, *node.captures)]
        latest.update(dict.fromkeys(node.outputs, max([place.get(node.index, -1), *before])))
    return {
        layer.node.index: residual_input
        for number, layer in enumerate(found)
        for residual_input in _added(model, layer)
        if latest.get(residual_input.tensor, -1) < number
    }


def _added(model: Model, layer: LinearLayer) -> Iterator[ResidualInput]:
    """What the output is added to, behind operators that at most scale its rows; nothing if anything else reads it before."""
    tensor, shape = layer.node.outputs[0], model.shape(layer.node.outputs[0])
    scale = np.ones((layer.blocks, -(-_rows(model, layer) // layer.blocks), 1))
    while layer.form.linear and shape is not None and tensor not in model.outputs:
        readers = model.consumers.get(tensor, ())
        if len(readers) != 1 or readers[0].inside or model.shape(readers[0].outputs[0]) != shape:
            return
        (node,) = readers
        others = [name for name in node.inputs if name != tensor]
        if node.op == "Add" and len(others) == 1 and not model.is_constant(others[0]):
            if model.shape(others[0]) == shape:
                yield ResidualInput(others[0], scale)
            return
        factor = _factor(model, node, others, layer)
        if factor is None:
            return
        scale = scale * factor.reshape(-1, 1) if factor.size == 1 else scale * factor.reshape(scale.shape)
        tensor = node.outputs[0]


def _rows(model: Model, layer: LinearLayer) -> int:
    """How many rows the products side by side have together."""
    shape = model.shape(layer.node.outputs[0]) or (1, 1)
    return shape[1] if layer.form.columns is Columns.WINDOWS else shape[-1]


def _factor(model: Model, node: Node, others: Sequence[str], layer: LinearLayer) -> Matrix | None:
    """By what an operator multiplies the rows, float64 of one number or one for each; None if it does more."""
    if traits(node.op).moves in PASSING or (node.op == "Add" and len(others) == 1):
        return np.ones(1)
    rank = len(model.shape(node.outputs[0]) or ())
    if node.op == "BatchNormalization" and (layer.form.columns is Columns.WINDOWS or rank == 2):
        scale, _, _, variance = (model.constant(name) for name in others)
        if scale is None or variance is None:
            return None
        return np.asarray(scale / np.sqrt(variance.astype(np.float64) + node.attributes.get("epsilon", 1e-5)))
    factor = model.constant(others[0]) if node.op == "Mul" and len(others) == 1 else None
    if factor is None:
        return None
    behind = factor.shape[factor.ndim - rank + 2 :] if layer.form.columns is Columns.WINDOWS else ()
    along = factor.shape[-1 - len(behind)] if factor.ndim > len(behind) else 1
    return factor.astype(np.float64).ravel() if prod(behind) == 1 and factor.size == along else None
