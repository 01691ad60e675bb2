"""The range of synthetic pictures: variance one, as most networks are trained on, or a range that the graph implies.

If BatchNormalization is folded into the first product, its weights are divided by the deviation of their outputs, and
its biases are proportional to these outputs. Pictures of the right brightness therefore vary the outputs about as much
as their distance from zero; much darker pictures leave them at their biases.
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
from spa_onnx.synthetic.images import between

STILL = 1 / 16
"""Outputs whose deviation is less than this share of their mean count as constant.

Pictures of variance one give 0.00 to 0.03 in five pretrained networks that take pixels, and 0.13 and more in 16 that do
not.
"""

PIXELS = 0.0, 255.0
"""The smallest and the largest pixel."""

POSITIONS_PER_SAMPLE = 256
"""The number of positions that are evaluated in each picture."""


def input_ranges(model: Model, names: Iterable[str], feed: Feed) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each input for which pictures of variance one are unsuitable.

    Args:
        model: The model.
        names: The inputs that take pictures.
        feed: Pictures of variance one.
    """
    products = list(linear_layers(model))
    found = {
        name: _quantised(model, name) or (PIXELS if _takes_pixels(model, products, name, feed) else None)
        for name in names
    }
    return {name: ends for name, ends in found.items() if ends}


def _quantised(model: Model, name: str) -> tuple[float, float] | None:
    """Return the representable range of an input that is quantised at once: it was measured on real samples."""
    for node in model.consumers[name]:
        if traits(node.op).moves is Moves.ROUND and not node.attributes.get("output_dtype"):
            scale = model.constant(node.input(1))
            zero = model.constant(node.input(2)) if node.input(2) else np.zeros((), np.uint8)
            if scale is not None and scale.size == 1 and zero is not None and zero.dtype.kind in "iu":
                step, middle, ends = float(scale.item()), float(zero.item()), np.iinfo(zero.dtype)
                return (ends.min - middle) * step, (ends.max - middle) * step
    return None


def _takes_pixels(model: Model, products: Sequence[LinearLayer], name: str, feed: Feed) -> bool:
    """Return whether the first product is constant on pictures of variance one, and is not on pixels."""
    reached = _of_this_alone(model, name)
    first = next((product for product in products if product.data in reached), None)
    if first is None:
        return False
    bright = feed | {name: between(feed[name], *PIXELS).astype(feed[name].dtype)}
    try:
        return _moved(model, first, feed) < STILL <= _moved(model, first, bright)
    except RefusedError:
        return False


def _of_this_alone(model: Model, name: str) -> set[str]:
    """Return the tensors that are computed from this input and constants alone; a recurrent state is no picture."""
    reached, fixed = {name}, {""}
    for node in model.nodes:
        given = {read for read in node.inputs if read not in fixed and not model.is_constant(read)}
        if not given:
            fixed.update(node.outputs)
        elif given <= reached:
            reached.update(node.outputs)
    return reached


def _moved(model: Model, first: LinearLayer, feed: Feed) -> float:
    """Return the median over the outputs of deviation / |mean|; infinite if they have no bias."""
    weight, bias = model.weight(first.weight), model.weight(first.bias) if first.bias else None
    if weight is None or bias is None:
        return np.inf
    (data,) = PartialExecution(model.proto, [feed]).tensor(first.data)
    seen = columns(first, first.numbers(data), POSITIONS_PER_SAMPLE, np.random.default_rng(0))
    made = (first.matrix(weight) @ seen).reshape(bias.size, -1) + bias.reshape(-1, 1).astype(np.float64)
    deviation, mean = made.std(axis=1), np.abs(made.mean(axis=1))
    live = deviation + mean > 0
    return (
        float(np.median(deviation[live] / np.maximum(mean[live], np.finfo(np.float64).tiny))) if live.any() else np.inf
    )
