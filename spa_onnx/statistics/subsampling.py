"""Which columns of a layer's input are used: how many positions of how many samples."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from spa_onnx.execution.session import Feed, feed_size
from spa_onnx.layers import Columns, LinearLayer
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model

BASE_COLUMNS = 2048
"""Columns that are collected even for a layer with few inputs."""

COLUMNS_PER_INPUT = 8
"""Columns that are collected for each input, on top of BASE_COLUMNS."""

ENOUGH_SAMPLES = 2048
"""From this many samples on, BASE_COLUMNS is enough.

Positions of one sample are correlated, so fewer samples need more positions each: ENOUGH_SAMPLES / k samples give k
times BASE_COLUMNS columns, with k at most MOST_COLUMNS_FACTOR.
"""

MOST_COLUMNS_FACTOR = 8


def positions_per_sample(layer: LinearLayer, samples: int, *, dense: bool = True) -> int:
    """Return how many positions of each sample are used.

    Args:
        layer: The layer.
        samples: Number of samples.
        dense: Whether to use more positions of each sample if there are few samples.
    """
    factor = min(max(ENOUGH_SAMPLES / samples, 1), MOST_COLUMNS_FACTOR) if dense else 1
    wanted = max(BASE_COLUMNS * factor, BASE_COLUMNS + COLUMNS_PER_INPUT * layer.inputs)
    return -(-round(wanted) // samples)


def available_positions(layer: LinearLayer, model: Model) -> int | None:
    """Return how many positions one sample has, None if the shape is unknown."""
    is_image = layer.form.columns is not Columns.VECTORS
    shape = model.shape(layer.node.outputs[0] if layer.form.columns is Columns.WINDOWS else layer.data)
    if not shape or min(shape) < 1:
        return None
    if is_image:
        return prod(shape[2:])
    return max(prod(shape) // (layer.blocks * layer.inputs) // max(model.batch, 1), 1)


@dataclass(frozen=True, slots=True)
class Subsampling:
    """Which columns of a layer's input are used.

    Args:
        positions: The most positions that are used of each sample.
        every: One in this many samples is used.
    """

    positions: int
    every: int = 1

    def takes(self, keys: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return which samples are used, bool (samples,).

        The last bit of a key is ignored, because it says in which half for cross-validation a sample is. So the same
        share of both halves is used.
        """
        return np.asarray(keys // 2 % self.every == 0)

    def of(self, data: Array, keys: NDArray[np.uint32]) -> tuple[Array, NDArray[np.uint32]]:
        """Return the rows of data that belong to used samples, and the keys of these samples."""
        rows, remainder = divmod(len(data), len(keys))
        chosen = self.takes(keys)
        return (data, keys) if remainder or chosen.all() else (data[np.repeat(chosen, rows)], keys[chosen])


def subsampling(layer: LinearLayer, samples: int, limit: int | None = None, *, dense: bool = True) -> Subsampling:
    """Return which columns of a layer's input are used.

    Args:
        layer: The layer.
        samples: Number of samples.
        limit: The most columns, None for no limit.
        dense: See `positions_per_sample`.
    """
    positions = positions_per_sample(layer, samples, dense=dense)
    if limit is None:
        return Subsampling(positions)
    return Subsampling(max(min(positions, limit // samples), 1), max(-(-samples // limit), 1))


def column_count(layer: LinearLayer, model: Model, samples: int) -> int:
    """Return how many columns are collected from this many samples; an upper bound if shapes are unknown."""
    available = available_positions(layer, model)
    positions = positions_per_sample(layer, samples)
    return samples * (positions if available is None else min(positions, available))


def sample_keys(feed: Feed, seed: int, *, batched: bool = True) -> NDArray[np.uint32]:
    """Return a hash of the contents of each sample, uint32 (samples,), which does not depend on its place or batch."""
    size = feed_size(feed, batched=batched)
    samples = feed if batched else {name: array[None] for name, array in feed.items()}
    plain = (array.astype(str) if array.dtype.kind == "O" else array for array in samples.values())
    arrays = [np.ascontiguousarray(array) for array in plain if array.ndim and len(array) == size]
    keys = []
    for sample in range(size):
        key = seed
        for array in arrays:
            key = zlib.crc32(array[sample].tobytes(), key)
        keys.append(key)
    return np.asarray(keys, np.uint32)
