"""The blocks that random networks are made of; each takes any numbers and makes something valid of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from divisors import divisors
from random_nested_blocks import branch, loop, scan
from random_net import BATCH, CHANNELS, LARGEST, WIDEST, Net, convolve
from random_spatial_blocks import depth_to_space, pad, pool, resize


def conv(net: Net, x: str, size: int, kind: int) -> list[str]:
    return [convolve(net, x, CHANNELS[size % 4], (1, 3)[kind % 2], bias=kind % 3 > 0)]


def grouped(net: Net, x: str, size: int, kind: int) -> list[str]:
    filters = CHANNELS[size % 4]
    common = divisors(net.channels(x), filters) or [1]
    return [convolve(net, x, filters, 3, common[kind % len(common)], bias=kind % 3 > 0, dilation=1 + kind % 2)]


def depthwise(net: Net, x: str, size: int, kind: int) -> list[str]:
    channels = net.channels(x)
    twice = size % 3 == 0 and channels <= 8
    return [convolve(net, x, channels * (2 if twice else 1), 3, channels, bias=kind % 2 > 0)]


def transposed(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    filters, scale = CHANNELS[size % 4], 2 if 2 * height <= LARGEST else 1
    common = [1, *divisors(channels, filters)]
    groups = common[kind % len(common)]
    inputs = [x, net.weight(channels, filters // groups, scale, scale), *([net.weight(filters)] if kind % 3 else [])]
    return [
        net.op(
            "ConvTranspose", inputs, (batch, filters, scale * height, scale * width), strides=[scale] * 2, group=groups
        )
    ]


def batch_norm(net: Net, x: str, _size: int, _kind: int) -> list[str]:
    channels = net.channels(x)
    vectors = [net.weight(channels), net.weight(channels), net.weight(channels), net.weight(channels, low=0.5)]
    return [net.op("BatchNormalization", [x, *vectors], net.shapes[x])]


def instance_norm(net: Net, x: str, _size: int, _kind: int) -> list[str]:
    return [
        net.op("InstanceNormalization", [x, net.weight(net.channels(x)), net.weight(net.channels(x))], net.shapes[x])
    ]


def activation(net: Net, x: str, size: int, kind: int) -> list[str]:
    shape = net.shapes[x]
    if kind % 3 == 0:
        return [net.op("PRelu", [x, net.weight(*((shape[1], 1, 1) if len(shape) == 4 else shape[1:]))], shape)]
    if kind % 3 == 1:
        return [net.op("Clip", [x, net.constant(np.float32(-1.0)), net.constant(np.float32(2.0))], shape)]
    return [net.op(("Relu", "Sigmoid", "LeakyRelu", "Tanh", "Elu", "Softplus")[size % 6], [x], shape)]


def residual(net: Net, x: str, _size: int, kind: int) -> list[str]:
    twins = [y for y in net.images if y != x and net.shapes[y] == net.shapes[x]]
    other = twins[kind % len(twins)] if twins and kind % 2 else convolve(net, x, net.channels(x))
    return [net.op(("Add", "Add", "Sub", "Mul", "Max")[kind % 5], [x, other], net.shapes[x])]


def concat(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    fitting = [y for y in net.images if net.shapes[y][2:] == (height, width) and channels + net.channels(y) <= WIDEST]
    other = fitting[kind % len(fitting)] if fitting and kind % 2 else convolve(net, x, CHANNELS[size % 4])
    both = [x, other] if kind % 3 else [other, x]
    return [net.op("Concat", both, (batch, channels + net.channels(other), height, width), axis=1 if size % 2 else -3)]


def split(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, *rest = net.shapes[x]
    if channels < 4:
        return []
    if kind % 2 and channels % 2 == 0:
        equal = {"num_outputs": 2} if net.opset >= 18 else {}
        return net.ops("Split", [x], [(batch, channels // 2, *rest)] * 2, axis=1, **equal)
    first = 1 + size % (channels - 2)
    return net.ops(
        "Split",
        [x, net.numbers(first, channels - first)],
        [(batch, first, *rest), (batch, channels - first, *rest)],
        axis=1,
    )


def slice_(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, *rest = net.shapes[x]
    step = (1, 1, 1, 2, -1)[kind % 5]
    start = 1 + size % max(channels // 2, 1) if step > 0 else channels - 1 - size % 2
    end = (channels, 2**31, channels - 1)[size % 3] if step > 0 else -(2**31) if size % 2 else 0
    taken = len(range(channels)[slice(start, None if end < 0 else end, step)])
    if taken < 2:
        return []
    start = start - channels if kind % 2 else start
    bounds = [net.numbers(value) for value in (start, end, 1, step)]
    return [net.op("Slice", [x, *bounds], (batch, taken, *rest))]


def gather(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, *rest = net.shapes[x]
    count = 2 + size % channels
    picked = net.rng.integers(0, channels, count) if kind % 3 == 0 else net.rng.permutation(channels)[:count]
    picked = picked - channels if kind % 5 == 0 else picked
    return [net.op("Gather", [x, net.constant(picked.astype(np.int64))], (batch, len(picked), *rest), axis=1)]


def shuffle(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels, *rest = net.shapes[x]
    ways = [d for d in divisors(channels) if d < channels]
    if not ways:
        return []
    groups = ways[size % len(ways)]
    apart = net.reshape(x, (batch, groups, channels // groups, *rest), kind)
    perm = [0, 2, 1, *range(3, 3 + len(rest))]
    swapped = net.op("Transpose", [apart], (batch, channels // groups, groups, *rest), perm=perm)
    return [net.reshape(swapped, (batch, channels, *rest), kind // 4)]


def squeeze_excite(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, channels = net.shapes[x][:2]
    mean = net.op("GlobalAveragePool", [x], (batch, channels, 1, 1)) if kind % 2 else spatial_mean(net, x, keep=True)
    inner = net.op("Relu", [convolve(net, mean, CHANNELS[size % 4], 1)], (batch, CHANNELS[size % 4], 1, 1))
    gate = net.op("Sigmoid", [convolve(net, inner, channels, 1)], (batch, channels, 1, 1))
    return [net.op("Mul", [x, gate] if kind % 3 else [gate, x], net.shapes[x])]


def spatial_mean(net: Net, x: str, *, keep: bool, kind: str = "ReduceMean") -> str:
    batch, channels = net.shapes[x][:2]
    shape = (batch, channels, 1, 1) if keep else (batch, channels)
    if net.opset >= 18:
        return net.op(kind, [x, net.numbers(2, -1)], shape, keepdims=int(keep))
    return net.op(kind, [x], shape, axes=[2, -1], keepdims=int(keep))


def reduce(net: Net, x: str, _size: int, kind: int) -> list[str]:
    summary = spatial_mean(net, x, keep=True, kind=("ReduceMean", "ReduceMax", "ReduceL2")[kind % 3])
    return [net.op("Sub", [x, summary], net.shapes[x])]


def scale(net: Net, x: str, size: int, kind: int) -> list[str]:
    """A constant per channel, of either rank; sometimes two nodes read the same one."""
    shape = net.shapes[x]
    tail = (1,) * (len(shape) - 2)
    vector = net.weight(*((1,) * (kind % 2)), shape[1], *tail, low=0.5)
    operator = ("Mul", "Add", "Div", "Sub")[size % 4]
    y = net.op(operator, [x, vector], shape)
    return [net.op("Add", [convolve(net, y, shape[1]), vector], shape)] if kind % 3 == 0 and len(shape) == 4 else [y]


def across(net: Net, x: str, size: int, _kind: int) -> list[str]:
    """Operators that need the channels whole."""
    return [
        net.op(
            ("Softmax", "LRN", "LpNormalization")[size % 3],
            [x],
            net.shapes[x],
            **({"size": 3} if size % 3 == 1 else {"axis": 1}),
        )
    ]


def linear(net: Net, x: str, size: int, kind: int) -> list[str]:
    batch, width = net.shapes[x]
    features = CHANNELS[size % 4]
    if kind % 3 == 0:
        y = net.op("MatMul", [x, net.weight(width, features)], (batch, features))
        return [net.op("Add", [y, net.weight(features)], (batch, features))]
    weight = net.weight(features, width) if kind % 2 else net.weight(width, features)
    return [net.op("Gemm", [x, weight, net.weight(features)], (batch, features), transB=kind % 2)]


def shortcut(net: Net, x: str, size: int, kind: int) -> list[str]:
    width = net.shapes[x][1]
    inner = net.op("Relu", linear(net, x, size, kind), (BATCH, CHANNELS[size % 4]))
    y = net.op("MatMul", [inner, net.weight(CHANNELS[size % 4], width)], net.shapes[x])
    return [net.op("Add", [x, y], net.shapes[x])]


def heads(net: Net, x: str, size: int, kind: int) -> list[str]:
    """To heads, a product with a constant or a swap of the two axes, and back."""
    batch, width = net.shapes[x]
    ways = [d for d in divisors(width) if d < width]
    if not ways:
        return []
    count = ways[size % len(ways)]
    apart = net.reshape(x, (batch, count, width // count), kind)
    if kind % 2:
        product = net.op("MatMul", [apart, net.weight(width // count, 4)], (batch, count, 4))
        return [net.reshape(net.op("Tanh", [product], (batch, count, 4)), (batch, 4 * count), kind // 4)]
    swapped = net.op("Transpose", [apart], (batch, width // count, count), perm=[0, 2, 1])
    return [net.reshape(net.op("Tanh", [swapped], (batch, width // count, count)), (batch, width), kind // 4)]


def layer_norm(net: Net, x: str, size: int, kind: int) -> list[str]:
    if net.opset < 17:
        return activation(net, x, size, kind)
    width = net.shapes[x][1]
    return [net.op("LayerNormalization", [x, net.weight(width), net.weight(width)], net.shapes[x])]


def where(net: Net, x: str, size: int, _kind: int) -> list[str]:
    shape = net.shapes[x]
    larger = net.op("Greater", [x, net.weight(shape[1], *(1,) * (len(shape) - 2))], shape)
    other = net.weight(1) if size % 2 else net.op("Neg", [x], shape)
    return [net.op("Where", [larger, x, other], shape)]


def tile(net: Net, x: str, size: int, _kind: int) -> list[str]:
    batch, channels, height, width = net.shapes[x]
    times = 2 if 2 * channels <= WIDEST and size % 2 else 1
    side = 2 if 2 * width <= LARGEST else 1
    return [net.op("Tile", [x, net.numbers(1, times, 1, side)], (batch, times * channels, height, side * width))]


def expand(net: Net, x: str, _size: int, kind: int) -> list[str]:
    """One value per channel, stretched to the size of the image by a shape that is written or read from it."""
    batch, channels, height, width = shape = net.shapes[x]
    summary = spatial_mean(net, x, keep=True)
    target = net.op("Shape", [x], (4,)) if kind % 2 else net.numbers(1, channels if kind % 3 else 1, height, width)
    return [net.op("Add", [net.op("Expand", [summary, target], shape), x], (batch, channels, height, width))]


def attend(net: Net, x: str, _size: int, kind: int) -> list[str]:
    """Attention between positions: products of two activations, over channels and over positions."""
    batch, channels, height, width = net.shapes[x]
    places = height * width
    flat = net.op("Relu", [net.reshape(x, (batch, channels, places), kind)], (batch, channels, places))
    keys = net.op("Transpose", [flat], (batch, places, channels), perm=[0, 2, 1])
    logits = net.op("MatMul", [keys, flat], (batch, places, places))
    weights = net.op("Softmax", [logits], (batch, places, places), axis=1)
    mixed = net.op("MatMul", [flat, weights], (batch, channels, places))
    return [net.reshape(mixed, (batch, channels, height, width), kind // 4)]


Block = Callable[[Net, str, int, int], list[str]]

IMAGE_BLOCKS: dict[str, Block] = {
    f.__name__: f
    for f in (
        *(
            conv,
            grouped,
            depthwise,
            transposed,
            batch_norm,
            instance_norm,
            activation,
            residual,
            concat,
            split,
            slice_,
            gather,
        ),
        *(
            shuffle,
            pool,
            pad,
            resize,
            squeeze_excite,
            reduce,
            depth_to_space,
            scale,
            across,
            where,
            tile,
            expand,
            attend,
            branch,
            scan,
        ),
    )
}
FEATURE_BLOCKS: dict[str, Block] = {
    f.__name__: f for f in (linear, shortcut, heads, layer_norm, scale, where, split, slice_, gather, branch, loop)
}
