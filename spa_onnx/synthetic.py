"""Calibration without data: samples made up, and BatchNormalization put into batch statistics while they run.

A BatchNormalization knows the mean and variance that its output had on real data (its bias and scale). If it normalises by the
statistics of the made-up batch instead of the stored ones, every layer behind it sees inputs with the real moments, whatever the samples
were. No data, no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx.fold import Array
from spa_onnx.model import Model, feeds
from spa_onnx.runtime import Feed, random_feed
from spa_onnx.shapes import symbolic_dims
from spa_onnx.tokens import token_values

IR_WITHOUT_LISTED_CONSTANTS = 4
"""From this IR version on, initializers need not be listed as graph inputs."""

ROOT_3 = 3.0**0.5
"""Half the width of a uniform distribution with variance one."""


def has_stored_statistics(model: Model) -> bool:
    """Whether any BatchNormalization is left in the graph (many exporters fold it into the convolution before)."""
    return any(node.op == "BatchNormalization" for node in model.nodes)


def synthetic_feeds(model: Model, dims: Mapping[str, int], samples: int, batch: int, seed: int) -> list[Feed]:
    """Made-up samples, in batches where the batch is free: images as dead leaves or noise, tokens within their table.

    Float images are dead leaves (statistics of natural images) where the graph stores no BatchNormalization, else uniform noise.
    """
    inputs = feeds(model.proto.graph)
    free = {name for name, position, _ in symbolic_dims(inputs) if position == 0}
    size = batch if free else next((len(array) for array in random_feed(model, dims, 0).values() if array.ndim), 1)
    natural = not has_stored_statistics(model)
    made = []
    for number in range(max(-(-samples // size), 1)):
        feed = random_feed(model, {**dims, **dict.fromkeys(free, size)}, seed=seed * 7919 + number)
        rng = np.random.default_rng([seed, number])
        dressed = {name: _dress(array, rng, natural=natural) for name, array in feed.items()}
        tokens = {
            name: token_values(model, name, array, rng) for name, array in feed.items() if array.dtype.kind == "i" and array.ndim == 2
        }
        made.append(dressed | tokens)
    return made


def _dress(array: Array, rng: np.random.Generator, *, natural: bool) -> Array:
    if array.ndim != 4 or array.dtype.kind not in "fiu" or (array.dtype.kind != "f" and array.dtype.itemsize > 1):
        return array
    if array.dtype.kind == "f" and not natural:
        return rng.uniform(-ROOT_3, ROOT_3, array.shape).astype(array.dtype)
    last = array.shape[-1] in (1, 3, 4) and array.shape[1] > 4
    layout = (0, 3, 1, 2) if last else (0, 1, 2, 3)
    shape = tuple(array.shape[axis] for axis in layout)
    images = np.stack([dead_leaves(shape[1:], rng) for _ in range(shape[0])])
    if array.dtype.kind != "f":
        low = np.iinfo(array.dtype).min
        images = np.clip(np.rint((images / ROOT_3 + 1) * 127.5), 0, 255) + low
    return np.ascontiguousarray(images.transpose(np.argsort(layout))).astype(array.dtype)


def dead_leaves(shape: tuple[int, ...], rng: np.random.Generator, leaves: int = 120) -> Array:
    """An image of overlapping discs whose radii follow a power law, float64 (channels, height, width), about unit variance.

    Occlusion gives it the edges and the 1/f spectrum of natural images (Lee, Mumford & Huang 2001).
    """
    channels, height, width = shape
    rows, columns = np.mgrid[:height, :width]
    image = np.broadcast_to(rng.uniform(-ROOT_3, ROOT_3, (channels, 1, 1)), shape).copy()
    smallest, largest = 0.02 * max(height, width) + 0.5, 0.5 * max(height, width)
    radii = (rng.uniform(largest**-2, smallest**-2, leaves)) ** -0.5
    for radius in radii:
        y, x = rng.uniform(-radius, height + radius), rng.uniform(-radius, width + radius)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image[:, inside] = rng.uniform(-ROOT_3, ROOT_3, (channels, 1))
    return np.asarray(image)


def with_batch_statistics(model: Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` in which every BatchNormalization normalises by the batch: the same tensor names, for collecting only.

    proto: the model itself, or one whose BatchNormalizations stand in front of tensors of the same rank.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        rank = len(model.shape(node.output[0]) or ()) if node.op_type == "BatchNormalization" else 0
        nodes += _batch_nodes(node, rank, copy) if rank > 1 else [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _batch_nodes(node: onnx.NodeProto, rank: int, proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """y[:, c] = (x[:, c] - mean) / sqrt(var + eps) * scale[c] + bias[c], mean and var over all axes but the second.

    That is an InstanceNormalization of one image whose positions are those of the whole batch, laid end to end.
    """
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    name = f"{node.output[0]}__batch"
    swapped = [1, 0, *range(2, rank)]
    flat, back = f"{name}_flat_shape", f"{name}_shape"
    one = f"{name}_one"
    for constant, values in ((one, [1]), (f"{name}_rest", [-1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), constant))
        if proto.ir_version < IR_WITHOUT_LISTED_CONSTANTS:
            proto.graph.input.append(helper.make_tensor_value_info(constant, onnx.TensorProto.INT64, [1]))
    x, scale, bias = node.input[:3]
    return [
        helper.make_node("Transpose", [x], [f"{name}_channels_first"], perm=swapped),
        helper.make_node("Shape", [f"{name}_channels_first"], [back]),
        helper.make_node("Shape", [scale], [f"{name}_channels"]),
        helper.make_node("Concat", [one, f"{name}_channels", f"{name}_rest"], [flat], axis=0),
        helper.make_node("Reshape", [f"{name}_channels_first", flat], [f"{name}_flat"]),
        helper.make_node("InstanceNormalization", [f"{name}_flat", scale, bias], [f"{name}_normal"], epsilon=epsilon),
        helper.make_node("Reshape", [f"{name}_normal", back], [f"{name}_shaped"]),
        helper.make_node("Transpose", [f"{name}_shaped"], [node.output[0]], perm=swapped),
    ]
