"""Inputs as columns: for each position of a product's output, the inputs that it sums over."""

from __future__ import annotations

import numpy as np

from spa_onnx.consumers import Consumer, Matrix
from spa_onnx.fold import Array
from spa_onnx.model import Model

AUTO_PADS = ("SAME_UPPER", "SAME_LOWER")


def columns(consumer: Consumer, model: Model, data: Array, positions: int, rng: np.random.Generator) -> Matrix:
    """Inputs of randomly chosen positions, float64 (blocks, inputs, samples * positions).

    data: the consumer's input, with the samples along its first axis. positions: at most this many output positions per sample, drawn
    without repetition and alike for all samples of a batch; all of them where there are no more.
    """
    if consumer.node.op == "Conv":
        return _patches(consumer, model, data, positions, rng)
    if consumer.node.op == "ConvTranspose":
        flat = data.reshape(*data.shape[:2], -1)
        chosen = _choose(flat.shape[2], positions, rng)
        return np.asarray(flat[:, :, chosen].transpose(1, 0, 2).reshape(1, flat.shape[1], -1), dtype=np.float64)
    rows = data.reshape(-1, data.shape[-1])
    chosen = _choose(len(rows), positions * len(data), rng)
    return np.asarray(rows[chosen].T[None], dtype=np.float64)


def _choose(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _patches(consumer: Consumer, model: Model, data: Array, positions: int, rng: np.random.Generator) -> Matrix:
    """Windows of a convolution's input, with its pads, strides and dilations: (groups, C/g * k, samples * positions)."""
    kernel = (model.shape(consumer.weight) or ())[2:]
    rank = len(kernel)
    strides = consumer.node.attributes.get("strides", (1,) * rank)
    dilations = consumer.node.attributes.get("dilations", (1,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(consumer, data.shape[2:], strides, reach)
    padded = np.pad(data, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    chosen = np.unravel_index(_choose(int(np.prod(sizes)), positions, rng), sizes)
    index = []
    for axis in range(rank):
        shape = [1] * (rank + 1)
        shape[axis + 1] = kernel[axis]
        offsets = (np.arange(kernel[axis]) * dilations[axis]).reshape(shape)
        index.append(chosen[axis].reshape(-1, *[1] * rank) * strides[axis] + offsets)
    window = (slice(None), slice(None), *index)
    taken = padded[window]  # (samples, channels, positions, kernel...)
    samples, channels, count = taken.shape[:3]
    blocks = consumer.blocks
    shaped = taken.reshape(samples, blocks, channels // blocks, count, consumer.window)
    flat = shaped.transpose(1, 2, 4, 0, 3).reshape(blocks, channels // blocks * consumer.window, samples * count)
    return np.asarray(flat, dtype=np.float64)


def _pads(consumer: Consumer, sizes: tuple[int, ...], strides: tuple[int, ...], reach: list[int]) -> tuple[list[int], list[int]]:
    """(begin, end) padding of each position axis; SAME splits what is missing, the odd one at the end (UPPER) or in front."""
    rank = len(sizes)
    mode = consumer.node.attributes.get("auto_pad", "NOTSET")
    if mode not in AUTO_PADS:
        pads = consumer.node.attributes.get("pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    missing = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True)]
    small, large = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return (small, large) if mode == "SAME_UPPER" else (large, small)
