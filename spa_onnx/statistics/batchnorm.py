"""Stored statistics of BatchNormalization: moments of its inputs, and how to correct what is stored after repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node

SMALLEST_VARIANCE = 1e-12
"""Smaller variances are not divided by."""


ChannelMoments: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(mean, variance) of each channel."""


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Sums over the elements of each channel.

    Args:
        total: Sum of the elements, float64 (channels,).
        squares: Sum of the squares of the elements, float64 (channels,).
        count: Number of elements of each channel.
    """

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, tensor: Array) -> ChannelSums:
        """Return the sums of a tensor (samples, channels, ...).

        Each sample is summed in the tensor's own precision (at least float32), and samples in float64.
        """
        flat = tensor.reshape(*tensor.shape[:2], -1).astype(np.promote_types(tensor.dtype, np.float32), copy=False)
        total, squares = flat.sum(axis=2), np.einsum("ncp,ncp->nc", flat, flat)
        return cls(
            total.sum(axis=0, dtype=np.float64), squares.sum(axis=0, dtype=np.float64), flat.shape[0] * flat.shape[2]
        )

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.total + other.total, self.squares + other.squares, self.count + other.count)

    def moments(self) -> ChannelMoments:
        """Return (mean, variance) of each channel."""
        mean = self.total / self.count
        return mean, np.maximum(self.squares / self.count - np.square(mean), 0.0)


def batch_normalizations(model: Model) -> list[Node]:
    """Return the BatchNormalization nodes of the main graph whose stored mean and variance are constants."""
    nodes = [node for node in model.nodes if node.op == "BatchNormalization" and not node.inside]
    return [node for node in nodes if all(model.is_float(name) for name in node.inputs[3:5])]


def corrected_statistics(
    model: Model,
    dense: Mapping[str, ChannelMoments],
    pruned: Mapping[str, ChannelMoments],
    kept_on: Callable[[Axis], Indices],
) -> dict[str, Array]:
    """Correct stored statistics for the change of each BatchNormalization's input.

    Means are shifted and variances are scaled by the change relative to the dense model, so synthetic samples serve as
    well as real ones. Statistics that several nodes share do not change.

    Args:
        model: The dense model.
        dense: Input tensor -> (mean, variance) of its channels in the dense model.
        pruned: The same after repair, for the kept channels only, on the same samples.
        kept_on: The kept indices of an axis, as `Removal.kept` returns them.

    Returns:
        Constant -> new value in the original's shape.
    """
    values: dict[str, Array] = {}
    for node in batch_normalizations(model):
        x, (mean, variance) = node.inputs[0], node.inputs[3:5]
        if x not in dense or x not in pruned:
            continue
        kept = kept_on(Axis(x, 1))
        (dense_mean, dense_variance), (pruned_mean, pruned_variance) = dense[x], pruned[x]
        shift = pruned_mean - dense_mean[kept]
        usable = dense_variance[kept] > SMALLEST_VARIANCE
        ratio = np.divide(pruned_variance, dense_variance[kept], out=np.ones(len(kept)), where=usable)
        for name, scale, offset in ((mean, np.ones(len(kept)), shift), (variance, ratio, np.zeros(len(kept)))):
            if name not in model.source:  # shared by several nodes
                array = np.array(model.constant(name))
                array[kept] = (array[kept].astype(np.float64) * scale + offset).astype(array.dtype)
                values[name] = array
    return values
