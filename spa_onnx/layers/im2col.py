"""The input of a linear layer as columns: for each output position, the inputs that the layer sums over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.layers.layer import Columns, LinearLayer
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.folding import Array

AUTO_PADS = ("SAME_UPPER", "SAME_LOWER")


Draw: TypeAlias = "np.random.Generator | NDArray[np.uint32]"
"""How positions are drawn.

A generator draws the same positions for all samples of a batch. Keys, uint32 (samples,), determine the positions of
each sample, so that these do not depend on the batch.
"""


def columns(layer: LinearLayer, data: Array, positions: int, draw: Draw) -> Matrix:
    """Return the input columns at randomly drawn output positions.

    Args:
        layer: The layer.
        data: The input, as `LinearLayer.numbers` returns it, with the samples along the first axis. If it has more rows
            than there are keys, each sample has several consecutive rows.
        positions: The maximum number of output positions per sample, drawn without replacement.
        draw: A generator, or one key per sample.

    Returns:
        float64 (blocks, inputs, samples * positions).
    """
    if layer.form.columns is Columns.WINDOWS:
        return _patches(layer, data, positions, draw)
    if layer.form.columns is Columns.PIXELS:
        return _points(data, positions, draw, 1)
    if isinstance(draw, np.random.Generator):
        rows = data.reshape(-1, data.shape[-1])
        return np.asarray(rows[_choose(len(rows), positions * len(data), draw)].T[None], dtype=np.float64)
    return _rows(data, positions, draw, layer.blocks)


def outputs(layer: LinearLayer, data: Array, positions: int, draw: NDArray[np.uint32]) -> Matrix:
    """Return the outputs of a Conv, Gemm or MatMul at the positions that `columns` draws.

    Args:
        layer: The layer.
        data: A tensor with the shape of the output.
        positions: As in `columns`.
        draw: One key per sample.

    Returns:
        float64 (blocks, rows, samples * positions).
    """
    return (
        _points(data, positions, draw, layer.blocks)
        if layer.form.columns is Columns.WINDOWS
        else _rows(data, positions, draw, 1)
    )


def _rows(data: Array, positions: int, draw: NDArray[np.uint32], blocks: int) -> Matrix:
    """Return vectors along the last axis, float64 (blocks, size / blocks, samples * positions)."""
    samples = len(draw) if len(data) % len(draw) == 0 else len(data)
    rows = data.reshape(-1, data.shape[-1])
    places = _places(samples, len(rows) // samples, positions, draw)
    taken = rows.take(_flat(places, len(rows) // samples), axis=0).T
    return np.asarray(taken.reshape(blocks, -1, taken.shape[1]), dtype=np.float64)


def _points(data: Array, positions: int, draw: Draw, blocks: int) -> Matrix:
    """Return channels of data (samples, channels, ...), float64 (blocks, channels / blocks, samples * positions)."""
    flat = data.reshape(*data.shape[:2], -1)
    return _take(flat, _places(len(data), flat.shape[2], positions, draw)[:, None], blocks)


def _choose(count: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most `limit` of `count` positions, sorted."""
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))


@lru_cache(maxsize=8)
def _shuffled(count: int) -> NDArray[np.int64]:
    """Return a fixed random order of `count` positions."""
    return np.random.default_rng(count).permutation(count)


def _places(samples: int, count: int, limit: int, draw: Draw) -> NDArray[np.int64]:
    """Return positions for each sample, (samples, positions). A key is the start of its sample in a shuffled order."""
    if isinstance(draw, np.random.Generator) or count <= limit:
        common = np.arange(count) if count <= limit else _choose(count, limit, draw)  # type: ignore[arg-type]
        return np.broadcast_to(common, (samples, len(common)))
    rows = max(samples // len(draw), 1)
    keys = np.resize(np.repeat(draw, rows), samples).astype(np.int64) + np.arange(samples) % rows * limit
    return np.asarray(_shuffled(count)[(keys[:, None] + np.arange(limit)) % count])


def _flat(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return places (samples, ..., taken) as places in all samples, `size` positions each: (..., samples * taken)."""
    flat = places + size * np.arange(len(places)).reshape(-1, *[1] * (places.ndim - 1))
    return np.moveaxis(flat, 0, -2).reshape(*places.shape[1:-1], -1)


def _take(data: Array, places: NDArray[np.int64], blocks: int) -> Matrix:
    """Return data at the given places.

    Args:
        data: (samples, channels, positions).
        places: Positions, int64 (samples, window, taken).
        blocks: The number of blocks that share the channels.

    Returns:
        float64 (blocks, channels / blocks * window, samples * taken).
    """
    samples, channels, size = data.shape
    _, window, count = places.shape
    by_channel = data.swapaxes(0, 1)
    if data.dtype == np.float64 and by_channel.flags.c_contiguous:
        return np.take(by_channel.reshape(channels, -1), _flat(places, size), axis=1).reshape(
            blocks, -1, samples * count
        )
    taken = np.empty((channels, window, samples, count))
    for number in range(samples):
        taken[:, :, number] = np.take(data[number], places[number], axis=1)
    return taken.reshape(blocks, -1, samples * count)


def _patches(layer: LinearLayer, data: Array, positions: int, draw: Draw) -> Matrix:
    """Return windows of a convolution's input: float64 (groups, C/g * k, samples * positions)."""
    kernel = layer.shape[2:]
    rank = len(kernel)
    strides = layer.node.attributes.get("strides", (1,) * rank)
    dilations = layer.node.attributes.get("dilations", (1,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(layer, data.shape[2:], strides, reach)
    padded_sizes = [first + size + last for first, size, last in zip(begin, data.shape[2:], end, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded_sizes, reach, strides, strict=True)]
    corners, offsets = np.zeros(sizes, np.int64), np.zeros(kernel, np.int64)
    for axis in range(rank):
        stride = prod(padded_sizes[axis + 1 :])
        corners += (np.arange(sizes[axis]) * strides[axis] * stride).reshape(
            [-1 if n == axis else 1 for n in range(rank)]
        )
        offsets += (np.arange(kernel[axis]) * dilations[axis] * stride).reshape(
            [-1 if n == axis else 1 for n in range(rank)]
        )
    chosen = corners.ravel()[_places(len(data), corners.size, positions, draw)]
    places = offsets.reshape(1, -1, 1) + chosen[:, None]
    padded = _padded(data, begin, padded_sizes, convert=places[0].size >= prod(padded_sizes))
    return _take(padded.reshape(*padded.shape[:2], -1), places, layer.blocks)


def _padded(data: Array, begin: Sequence[int], sizes: Sequence[int], *, convert: bool) -> Array:
    """Return data (samples, channels, ...) padded with zeros.

    Args:
        data: The input of the convolution.
        begin: The padding in front of each position axis.
        sizes: The sizes of the position axes with padding.
        convert: Whether to return float64 with channel-major memory order. This pays off if the windows read every
            element about once or more often.
    """
    samples, channels, *unpadded = data.shape
    if not convert and unpadded == list(sizes):
        return data
    padded = (
        np.zeros((channels, samples, *sizes)).swapaxes(0, 1)
        if convert
        else np.zeros((samples, channels, *sizes), data.dtype)
    )
    inner = (
        slice(None),
        slice(None),
        *(slice(first, first + size) for first, size in zip(begin, unpadded, strict=True)),
    )
    padded[inner] = data
    return np.asarray(padded)


def _pads(
    layer: LinearLayer, sizes: tuple[int, ...], strides: tuple[int, ...], reach: list[int]
) -> tuple[list[int], list[int]]:
    """Return the (begin, end) padding of each position axis. SAME_UPPER puts an odd element at the end."""
    rank = len(sizes)
    mode = layer.node.attributes.get("auto_pad", "NOTSET")
    if mode not in AUTO_PADS:
        pads = layer.node.attributes.get("pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    missing = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True)]
    small, large = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return (small, large) if mode == "SAME_UPPER" else (large, small)
