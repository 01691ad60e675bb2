"""The range of synthetic pictures: variance one, as for most networks, or a range that the graph implies.

If BatchNormalization is folded into the first linear layer, its weights are divided by the deviation of its outputs,
and its biases are proportional to these outputs. For pictures of the right brightness, the deviation of the outputs is
therefore about as large as their distance from zero. For much darker pictures, the outputs stay at the biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from spa_onnx.errors import RefusedError
from spa_onnx.execution.partial import PartialExecution
from spa_onnx.execution.session import Feed
from spa_onnx.layers import LinearLayer, columns, linear_layers
from spa_onnx.model.model import Model
from spa_onnx.model.traits import Moves, traits
from spa_onnx.synthetic.images import PIXELS, between

CONSTANT_SHARE = 1 / 16
"""Outputs whose deviation is less than this share of their mean count as constant.

Pictures of variance one give 0.00 to 0.03 in five pretrained networks that take pixels, and 0.13 and more in 16 that do
not.
"""

POSITIONS_PER_SAMPLE = 256
"""The number of positions that are evaluated in each picture."""


def input_ranges(model: Model, names: Iterable[str], feed: Feed) -> dict[str, tuple[float, float]]:
    """Return the ranges of the inputs for which pictures of variance one are unsuitable.

    Args:
        model: The model.
        names: The inputs that take pictures.
        feed: Pictures of variance one.

    Returns:
        Input name -> (smallest value, largest value).
    """
    layers = list(linear_layers(model))
    ranges = {
        name: _quantised(model, name) or (PIXELS if _takes_pixels(model, layers, name, feed) else None)
        for name in names
    }
    return {name: ends for name, ends in ranges.items() if ends}


def _quantised(model: Model, name: str) -> tuple[float, float] | None:
    """Return the representable range of a quantised input, which was measured on real samples; None for others."""
    for node in model.consumers[name]:
        if traits(node.op).moves is Moves.ROUND and not node.attributes.get("output_dtype"):
            scale = model.constant(node.input(1))
            zero = model.constant(node.input(2)) if node.input(2) else np.zeros((), np.uint8)
            if scale is not None and scale.size == 1 and zero is not None and zero.dtype.kind in "iu":
                step, middle, ends = float(scale.item()), float(zero.item()), np.iinfo(zero.dtype)
                return (ends.min - middle) * step, (ends.max - middle) * step
    return None


def _takes_pixels(model: Model, layers: Sequence[LinearLayer], name: str, feed: Feed) -> bool:
    """Return whether the first linear layer is constant on pictures of variance one, but not on pixels."""
    tensors = _computed_from(model, name)
    first_layer = next((layer for layer in layers if layer.data in tensors), None)
    if first_layer is None:
        return False
    bright = feed | {name: between(feed[name], *PIXELS).astype(feed[name].dtype)}
    try:
        return (
            _relative_deviation(model, first_layer, feed)
            < CONSTANT_SHARE
            <= _relative_deviation(model, first_layer, bright)
        )
    except RefusedError:
        return False


def _computed_from(model: Model, name: str) -> set[str]:
    """Return the tensors that depend on this input and on constants only, not on a recurrent state."""
    tensors, constants = {name}, {""}
    for node in model.nodes:
        sources = {source for source in node.inputs if source not in constants and not model.is_constant(source)}
        if not sources:
            constants.update(node.outputs)
        elif sources <= tensors:
            tensors.update(node.outputs)
    return tensors


def _relative_deviation(model: Model, layer: LinearLayer, feed: Feed) -> float:
    """Return the median of deviation / |mean| over the outputs of a layer; infinite if it has no bias."""
    weight, bias = model.weight(layer.weight), model.weight(layer.bias) if layer.bias else None
    if weight is None or bias is None:
        return np.inf
    (data,) = PartialExecution(model.proto, [feed]).tensor(layer.data)
    inputs = columns(layer, layer.numbers(data), POSITIONS_PER_SAMPLE, np.random.default_rng(0))
    outputs = (layer.matrix(weight) @ inputs).reshape(bias.size, -1) + bias.reshape(-1, 1).astype(np.float64)
    deviation, mean = outputs.std(axis=1), np.abs(outputs.mean(axis=1))
    nonzero = deviation + mean > 0
    return (
        float(np.median(deviation[nonzero] / np.maximum(mean[nonzero], np.finfo(np.float64).tiny)))
        if nonzero.any()
        else np.inf
    )
