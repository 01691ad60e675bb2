"""Blocks of random networks that change the height and the width."""

from __future__ import annotations

import numpy as np
from random_net import LARGEST, WIDEST, Net


def pool(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    stride = 2 if height >= 4 and size % 2 else 1
    operator = ("MaxPool", "AveragePool")[kind % 2]
    if height < 2:
        return []
    shape = (batch, channels, (height - 2) // stride + 1, (width - 2) // stride + 1)
    return [net.op(operator, [x], shape, kernel_shape=[2, 2], strides=[stride] * 2)]


def pad(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    front, back, side = (size % 3, 1 + size % 2, 0) if kind % 2 else (0, 0, 1)
    pads = net.numbers(0, front, side, side, 0, back, side, side)
    inputs = [x, pads, net.constant(np.float32(0.7))] if kind % 3 else [x, pads]
    return [net.op("Pad", inputs, (batch, channels + front + back, height + 2 * side, width + 2 * side))]


def resize(net: Net, x: str, _size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    shape = (batch, channels, 2 * height, 2 * width)
    if 2 * height > LARGEST:
        return []
    if kind % 2 or net.symbolic:
        scales = net.constant(np.asarray([1, 1, 2, 2], np.float32))
        return [net.op("Resize", [x, "", scales], shape, mode=("nearest", "linear")[kind // 2 % 2])]
    return [net.op("Resize", [x, "", "", net.numbers(*shape)], shape, mode="nearest")]


def depth_to_space(net: Net, x: str, _size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    if channels % 4 == 0 and 2 * height <= LARGEST:
        mode = ("DCR", "CRD")[kind % 2]
        return [net.op("DepthToSpace", [x], (batch, channels // 4, 2 * height, 2 * width), blocksize=2, mode=mode)]
    if height % 2 == 0 and width % 2 == 0 and 4 * channels <= WIDEST:
        return [net.op("SpaceToDepth", [x], (batch, 4 * channels, height // 2, width // 2), blocksize=2)]
    return []
