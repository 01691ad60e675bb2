"""One product: Y = W X for every position, its input unfolded into columns X (inputs, positions), its weight a matrix W (rows, inputs).

A grouped convolution is several such products side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from spa_onnx.layers.weight_view import ROUNDING, Form
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.node import Node

Key: TypeAlias = tuple[int, str]
"""What tells a consumer from all others: its node's index, and the tensor that this reads as weight."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an operator stores its weight, and where it finds its inputs.

    to_matrix: what is read -> float64 (blocks, rows, inputs); inputs count channels first, then positions of the kernel. to_tensor: its
    inverse, told the shape of what is read. arranged: data -> the same numbers with the inputs along the last axis, where the columns are
    vectors along one; None where they are windows or channels of images. linear: whether the output is no more than W X and a bias, its
    rows along the axis where the operator usually has its features.
    """

    to_matrix: Callable[[Consumer, Matrix], Matrix]
    to_tensor: Callable[[Consumer, Matrix, tuple[int, ...]], Matrix]
    arranged: Callable[[Consumer, Array], Array] | None = None
    linear: bool = True


@dataclass(frozen=True, slots=True)
class Consumer:
    """One product with a constant weight.

    node: the operator in its float form. data: the input tensor. form: the constant behind the weight. axis: the axis of the weight, as the
    node reads it, over which the product sums. shape: of the weight as the node reads it. layout: how that is a matrix. blocks: products
    side by side (groups of a convolution, directions of a recurrent layer). window: positions of the kernel that each input channel has.
    bias: the constant that is added and that may be changed for this product's sake, or empty. scale: by what the product is multiplied.
    step, zero: the input tensor holds (number / step + zero).
    """

    node: Node
    data: str
    form: Form
    axis: Axis
    shape: tuple[int, ...]
    layout: Layout = field(repr=False)
    blocks: int = 1
    window: int = 1
    bias: str = ""
    scale: float = 1.0
    step: float = 1.0
    zero: float = 0.0

    @property
    def weight(self) -> str:
        """The constant that holds the weight, by the name of its use."""
        return self.form.constant

    @property
    def key(self) -> Key:
        """See `Key`."""
        return self.node.index, self.axis.tensor

    @property
    def inputs(self) -> int:
        """How many inputs one product sums over."""
        return self.shape[self.axis.dim] * self.window

    def numbers(self, data: Array) -> Array:
        """What the input tensor stands for, with the inputs along the last axis where columns are vectors along one."""
        plain = (
            data
            if self.step == 1.0 and self.zero == 0.0
            else np.asarray((data.astype(np.float32) - self.zero) * self.step)
        )
        return plain if self.layout.arranged is None else self.layout.arranged(self, plain)

    def matrix(self, weight: Array) -> Matrix:
        """The constant's numbers as float64 (blocks, rows, inputs); inputs count channels first, then positions of the kernel."""
        return self.scale * self.layout.to_matrix(self, self.form.there(weight).astype(np.float64))

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`: numbers of the constant's shape and type, which are those of `like`."""
        return self.form.back(self.layout.to_tensor(self, matrix / self.scale, self.shape)).astype(like.dtype)


__all__ = ["ROUNDING", "Consumer", "Key", "Layout"]
