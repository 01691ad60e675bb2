"""Inputs as columns: for each position of a product's output, the inputs that it sums over."""

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
"""How positions are chosen: drawn alike for all samples of a batch, or by a key of each sample, whatever batch it is in."""


def columns(layer: LinearLayer, data: Array, positions: int, draw: Draw) -> Matrix:
    """Inputs of randomly chosen positions, float64 (blocks, inputs, samples * positions).

    data: the numbers of the layer's input, with the samples along their first axis. positions: at most this many output positions per
    sample, drawn without repetition; all of them where there are no more. Keys stand for samples; data with more rows than keys has
    several rows of each sample, one after the other.
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
    """The outputs of a Conv, Gemm or MatMul at the positions that `columns` chooses, float64 (blocks, rows, samples * positions).

    data: a tensor of the shape of the output.
    """
    return (
        _points(data, positions, draw, layer.blocks)
        if layer.form.columns is Columns.WINDOWS
        else _rows(data, positions, draw, 1)
    )


def _rows(data: Array, positions: int, draw: NDArray[np.uint32], blocks: int) -> Matrix:
    """Vectors along the last axis, float64 (blocks, size / blocks, samples * positions)."""
    samples = len(draw) if len(data) % len(draw) == 0 else len(data)
    rows = data.reshape(-1, data.shape[-1])
    places = _places(samples, len(rows) // samples, positions, draw)
    taken = rows.take(_flat(places, len(rows) // samples), axis=0).T
    return np.asarray(taken.reshape(blocks, -1, taken.shape[1]), dtype=np.float64)


def _points(data: Array, positions: int, draw: Draw, blocks: int) -> Matrix:
    """The channels at positions of data (samples, channels, ...), float64 (blocks, channels / blocks, samples * positions)."""
    flat = data.reshape(*data.shape[:2], -1)
    return _take(flat, _places(len(data), flat.shape[2], positions, draw)[:, None], blocks)


def _choose(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


@lru_cache(maxsize=8)
def _shuffled(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(count).permutation(count)


def _places(samples: int, count: int, most: int, draw: Draw) -> NDArray[np.int64]:
    """Positions for each sample, (samples, positions): a key says where in one shuffled order its sample starts."""
    if isinstance(draw, np.random.Generator) or count <= most:
        common = np.arange(count) if count <= most else _choose(count, most, draw)  # type: ignore[arg-type]
        return np.broadcast_to(common, (samples, len(common)))
    rows = max(samples // len(draw), 1)
    keys = np.resize(np.repeat(draw, rows), samples).astype(np.int64) + np.arange(samples) % rows * most
    return np.asarray(_shuffled(count)[(keys[:, None] + np.arange(most)) % count])


def _flat(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Places (samples, ..., taken) of samples that lie one after the other, `size` positions each: (..., samples * taken)."""
    counted = places + size * np.arange(len(places)).reshape(-1, *[1] * (places.ndim - 1))
    return np.moveaxis(counted, 0, -2).reshape(*places.shape[1:-1], -1)


def _take(data: Array, places: NDArray[np.int64], blocks: int) -> Matrix:
    """Data (samples, channels, positions) at places (samples, window, taken) as (blocks, channels / blocks * window, samples * taken)."""
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
    """Windows of a convolution's input, with its pads, strides and dilations: (groups, C/g * k, samples * positions)."""
    kernel = layer.shape[2:]
    rank = len(kernel)
    strides = layer.node.attributes.get("strides", (1,) * rank)
    dilations = layer.node.attributes.get("dilations", (1,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(layer, data.shape[2:], strides, reach)
    wide = [first + size + last for first, size, last in zip(begin, data.shape[2:], end, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(wide, reach, strides, strict=True)]
    corners, offsets = np.zeros(sizes, np.int64), np.zeros(kernel, np.int64)
    for axis in range(rank):
        stride = prod(wide[axis + 1 :])
        corners += (np.arange(sizes[axis]) * strides[axis] * stride).reshape(
            [-1 if n == axis else 1 for n in range(rank)]
        )
        offsets += (np.arange(kernel[axis]) * dilations[axis] * stride).reshape(
            [-1 if n == axis else 1 for n in range(rank)]
        )
    chosen = corners.ravel()[_places(len(data), corners.size, positions, draw)]
    places = offsets.reshape(1, -1, 1) + chosen[:, None]
    padded = _padded(data, begin, wide, often=places[0].size >= prod(wide))
    return _take(padded.reshape(*padded.shape[:2], -1), places, layer.blocks)


def _padded(data: Array, begin: Sequence[int], wide: Sequence[int], *, often: bool) -> Array:
    """Data (samples, channels, ...) between zeros. wide: its sizes then.

    often: whether each number is going to be taken once and more; it is then float64 already, and in memory channel by channel.
    """
    samples, channels, *sizes = data.shape
    if not often and sizes == list(wide):
        return data
    padded = (
        np.zeros((channels, samples, *wide)).swapaxes(0, 1)
        if often
        else np.zeros((samples, channels, *wide), data.dtype)
    )
    between = (
        slice(None),
        slice(None),
        *(slice(first, first + size) for first, size in zip(begin, sizes, strict=True)),
    )
    padded[between] = data
    return np.asarray(padded)


def _pads(
    layer: LinearLayer, sizes: tuple[int, ...], strides: tuple[int, ...], reach: list[int]
) -> tuple[list[int], list[int]]:
    """(begin, end) padding of each position axis; SAME splits what is missing, the odd one at the end (UPPER) or in front."""
    rank = len(sizes)
    mode = layer.node.attributes.get("auto_pad", "NOTSET")
    if mode not in AUTO_PADS:
        pads = layer.node.attributes.get("pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    missing = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True)]
    small, large = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return (small, large) if mode == "SAME_UPPER" else (large, small)
