"""Residual inputs: tensors that a layer's output is added to. The layer can compensate for what they have lost."""

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

PASS_THROUGH = frozenset({Moves.ROUND, Moves.IDENTITY, Moves.DROPOUT})
"""Operators whose output is (nearly) their input."""

SMALLEST_SCALE = 1e-3
"""A row whose scale is below this share of the largest scale compensates for nothing."""


@dataclass(frozen=True, slots=True)
class ResidualInput:
    """The other operand of an Add that a layer's output reaches.

    Args:
        tensor: The other operand.
        scale: The factors that the rows of the layer are multiplied by before the Add, float64 (blocks, rows, 1).
    """

    tensor: str
    scale: Matrix

    def before(self, difference: Matrix) -> Matrix:
        """Return the change of the layer's rows that changes the sum by `difference`, both (blocks, rows, n)."""
        usable = np.abs(self.scale) >= SMALLEST_SCALE * np.abs(self.scale).max()
        return np.where(usable, difference / np.where(usable, self.scale, 1.0), 0.0)


def residual_inputs(model: Model, layers: Sequence[LinearLayer]) -> Mapping[int, ResidualInput]:
    """Return the residual inputs that depend on no layer that is refitted later.

    Args:
        model: The dense model.
        layers: The layers, in graph order.

    Returns:
        Index of a layer's node -> its residual input.
    """
    position = {layer.node.index: number for number, layer in enumerate(layers)}
    latest: dict[str, int] = {}
    for node in model.nodes:
        inputs = [latest.get(name, -1) for name in (*node.inputs, *node.captures)]
        latest.update(dict.fromkeys(node.outputs, max([position.get(node.index, -1), *inputs])))
    return {
        layer.node.index: residual_input
        for number, layer in enumerate(layers)
        for residual_input in _other_operands(model, layer)
        if latest.get(residual_input.tensor, -1) < number
    }


def _other_operands(model: Model, layer: LinearLayer) -> Iterator[ResidualInput]:
    """Yield the operand that the output is added to, if only operators that scale its rows come before the Add."""
    tensor, shape = layer.node.outputs[0], model.shape(layer.node.outputs[0])
    scale = np.ones((layer.blocks, -(-_row_count(model, layer) // layer.blocks), 1))
    while layer.form.linear and shape is not None and tensor not in model.outputs:
        readers = model.consumers.get(tensor, ())
        if len(readers) != 1 or readers[0].inside or model.shape(readers[0].outputs[0]) != shape:
            return
        (node,) = readers
        operands = [name for name in node.inputs if name != tensor]
        if node.op == "Add" and len(operands) == 1 and not model.is_constant(operands[0]):
            if model.shape(operands[0]) == shape:
                yield ResidualInput(operands[0], scale)
            return
        factor = _row_factors(model, node, operands, layer)
        if factor is None:
            return
        scale = scale * factor.reshape(-1, 1) if factor.size == 1 else scale * factor.reshape(scale.shape)
        tensor = node.outputs[0]


def _row_count(model: Model, layer: LinearLayer) -> int:
    """Return the number of rows of all blocks together."""
    shape = model.shape(layer.node.outputs[0]) or (1, 1)
    return shape[1] if layer.form.columns is Columns.WINDOWS else shape[-1]


def _row_factors(model: Model, node: Node, operands: Sequence[str], layer: LinearLayer) -> Matrix | None:
    """Return the factors by which a node multiplies the rows, float64 (1,) or (rows,); None if it does more."""
    if traits(node.op).moves in PASS_THROUGH or (node.op == "Add" and len(operands) == 1):
        return np.ones(1)
    rank = len(model.shape(node.outputs[0]) or ())
    if node.op == "BatchNormalization" and (layer.form.columns is Columns.WINDOWS or rank == 2):
        scale, _, _, variance = (model.constant(name) for name in operands)
        if scale is None or variance is None:
            return None
        return np.asarray(scale / np.sqrt(variance.astype(np.float64) + node.attributes.get("epsilon", 1e-5)))
    factor = model.constant(operands[0]) if node.op == "Mul" and len(operands) == 1 else None
    if factor is None:
        return None
    spatial = factor.shape[factor.ndim - rank + 2 :] if layer.form.columns is Columns.WINDOWS else ()
    channels = factor.shape[-1 - len(spatial)] if factor.ndim > len(spatial) else 1
    return factor.astype(np.float64).ravel() if prod(spatial) == 1 and factor.size == channels else None
