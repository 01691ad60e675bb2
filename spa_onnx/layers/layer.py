"""A linear layer Y = W X, with the input as columns X (inputs, positions) and the weight as a matrix W (rows, inputs).

A layer may consist of several blocks side by side, each with a matrix of its own. A grouped convolution has one block
per group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

import numpy as np

from spa_onnx.layers.weight_view import WeightView
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.facts import Axis
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array

LayerKey: TypeAlias = tuple[int, str]
"""The identity of a linear layer: (index of its node, name of the tensor that the node reads as weight)."""


class Columns(Enum):
    """How the columns X are taken from the input of a layer."""

    WINDOWS = auto()
    """One column is the input window of an output position, as in Conv. Features are on axis 1."""
    PIXELS = auto()
    """One column holds the channels at an input position, as in ConvTranspose. Features are on axis 1."""
    VECTORS = auto()
    """One column is a vector along the last axis, after `MatrixForm.arranged`."""


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """How an operator stores its weight and reads its input.

    The functions are module-level ones, or partials of these, so that layers can be pickled.

    Args:
        to_matrix: (layer, weight as the node reads it) -> float64 (blocks, rows, inputs). Inputs are ordered by
            channel, then by kernel position.
        to_tensor: (layer, matrix, shape of the weight as the node reads it) -> weight; the inverse of `to_matrix`.
        arranged: (layer, input) -> the input with its features along the last axis; for `Columns.VECTORS` only. None if
            they are there already.
        columns: How the columns X are taken from the input.
        linear: Whether the output is exactly W X plus a bias, with its rows along the usual feature axis of the
            operator.
    """

    to_matrix: Callable[[LinearLayer, Matrix], Matrix]
    to_tensor: Callable[[LinearLayer, Matrix, tuple[int, ...]], Matrix]
    arranged: Callable[[LinearLayer, Array], Array] | None = None
    columns: Columns = Columns.VECTORS
    linear: bool = True


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A linear layer with a constant weight.

    Args:
        node: The operator in its float form.
        data: The input tensor.
        view: The constant that holds the weight, and the movements between it and the node.
        axis: The axis of the weight, as the node reads it, over which the layer sums.
        shape: The shape of the weight as the node reads it.
        form: How the operator stores its weight and reads its input.
        blocks: The number of blocks: groups of a convolution, directions of a recurrent layer.
        window: The number of kernel positions per input channel.
        bias: The constant that holds the bias, if no other node uses it; otherwise empty.
        scale: The factor by which W X is multiplied.
        step: The scale of a quantised input: the tensor holds value / step + zero.
        zero: The zero point of a quantised input.
    """

    node: Node
    data: str
    view: WeightView
    axis: Axis
    shape: tuple[int, ...]
    form: MatrixForm = field(repr=False)
    blocks: int = 1
    window: int = 1
    bias: str = ""
    scale: float = 1.0
    step: float = 1.0
    zero: float = 0.0

    @property
    def weight(self) -> str:
        """The name of the constant that holds the weight."""
        return self.view.constant

    @property
    def key(self) -> LayerKey:
        """The identity of the layer, see `LayerKey`."""
        return self.node.index, self.axis.tensor

    @property
    def inputs(self) -> int:
        """The number of inputs that each row of W sums over."""
        return self.shape[self.axis.dim] * self.window

    def numbers(self, data: Array) -> Array:
        """Return the dequantised input; with `Columns.VECTORS`, with its features along the last axis."""
        is_float = self.step == 1.0 and self.zero == 0.0
        values = data if is_float else np.asarray((data.astype(np.float32) - self.zero) * self.step)
        return values if self.form.arranged is None else self.form.arranged(self, values)

    def matrix(self, weight: Array) -> Matrix:
        """Return the weight as matrices.

        Args:
            weight: The value of the constant.

        Returns:
            float64 (blocks, rows, inputs). Inputs are ordered by channel, then by kernel position.
        """
        return self.scale * self.form.to_matrix(self, self.view.read(weight).astype(np.float64))

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """Return a value of the constant; the inverse of `matrix`.

        Args:
            matrix: float64 (blocks, rows, inputs).
            like: An array with the dtype of the constant.
        """
        return self.view.store(self.form.to_tensor(self, matrix / self.scale, self.shape)).astype(like.dtype)


def reshaped(_: LinearLayer, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    """Return a matrix in the shape of its weight: `MatrixForm.to_tensor` where both have the same order of elements."""
    return matrix.reshape(shape)
