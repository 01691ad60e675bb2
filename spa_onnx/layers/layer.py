"""A linear layer: Y = W X at every position, with the input as columns X (inputs, positions) and the weight as a matrix W (rows, inputs).

A grouped convolution is several such layers side by side: its blocks.
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
"""What tells a linear layer from all others: the index of its node, and the tensor that the node reads as weight."""


class Columns(Enum):
    """Where the columns X lie in the input of a layer."""

    WINDOWS = auto()
    """The window of an image at each position of the output, as of Conv: features on axis 1."""
    PIXELS = auto()
    """The channels at each position of the input, as of ConvTranspose: features on axis 1."""
    VECTORS = auto()
    """Vectors along the last axis, once the input is arranged."""


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """How an operator stores its weight, and where it finds its inputs.

    Args:
        to_matrix: (layer, what it reads) -> float64 (blocks, rows, inputs); inputs count channels first, then positions of the kernel.
        to_tensor: The inverse of `to_matrix`, which is also told the shape of what the layer reads.
        arranged: (layer, input) -> the same numbers with the inputs along the last axis; for vectors alone.
        columns: Where the columns lie in the input.
        linear: Whether the output is no more than W X and a bias, its rows along the axis where the operator usually has its features.
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
        view: The constant behind the weight.
        axis: The axis of the weight, as the node reads it, over which the layer sums.
        shape: The shape of the weight as the node reads it.
        form: How the weight is a matrix.
        blocks: Layers side by side: groups of a convolution, directions of a recurrent layer.
        window: Positions of the kernel that each input channel has.
        bias: The constant that is added and that may change for the sake of this layer alone, or empty.
        scale: The factor by which W X is multiplied.
        step: The input tensor holds number / step + zero.
        zero: See `step`.
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
        """The constant that holds the weight, by the name of its use."""
        return self.view.constant

    @property
    def key(self) -> LayerKey:
        """See `LayerKey`."""
        return self.node.index, self.axis.tensor

    @property
    def inputs(self) -> int:
        """How many inputs each row of W sums over."""
        return self.shape[self.axis.dim] * self.window

    def numbers(self, data: Array) -> Array:
        """Return what the input tensor stands for, with the inputs along the last axis where columns are vectors."""
        is_plain = self.step == 1.0 and self.zero == 0.0
        plain = data if is_plain else np.asarray((data.astype(np.float32) - self.zero) * self.step)
        return plain if self.form.arranged is None else self.form.arranged(self, plain)

    def matrix(self, weight: Array) -> Matrix:
        """Return the weight as float64 (blocks, rows, inputs); inputs count channels first, then positions of the kernel."""
        return self.scale * self.form.to_matrix(self, self.view.read(weight).astype(np.float64))

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """Return the inverse of `matrix`: numbers in the shape and type of the constant, which are those of `like`."""
        return self.view.store(self.form.to_tensor(self, matrix / self.scale, self.shape)).astype(like.dtype)
