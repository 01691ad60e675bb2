"""How bright made-up pictures have to be: of variance one, as networks are mostly trained, or pixels from 0 to 255.

Where BatchNormalization is folded into the first product, its weights are divided by the deviation that their outputs had, and its biases
are in proportion to these outputs. So pictures of the right brightness move the outputs about as far as they lie from zero; much
darker ones leave them at their biases.
"""

from __future__ import annotations

import numpy as np

from spa_onnx.errors import RefusedError
from spa_onnx.graph.model import Model
from spa_onnx.products import Consumer, columns, consumers
from spa_onnx.runtime import Feed
from spa_onnx.samples.pictures import as_pixels
from spa_onnx.walk import Walk

STILL = 1 / 16
"""Outputs whose deviation is less than this share of their mean are not moved. It is 0.00 to 0.03 where a network wants pixels and pictures
have variance one, 0.13 to 60 in 30 networks that want these."""

POSITIONS = 256
"""Looked at in each picture."""


def takes_pixels(model: Model, name: str, feed: Feed) -> bool:
    """Whether pictures of variance one, which the feed holds, do not move what the first product makes of this input, and pixels do."""
    first = _first_product(model, name)
    if first is None:
        return False
    bright = feed | {name: as_pixels(feed[name]).astype(feed[name].dtype)}
    try:
        return _moved(model, first, feed) < STILL <= _moved(model, first, bright)
    except RefusedError:
        return False


def _first_product(model: Model, name: str) -> Consumer | None:
    """The first product in whose data the input enters."""
    found = {consumer.node.index: consumer for consumer in reversed(list(consumers(model)))}
    reached = {name}
    for node in model.nodes:
        if reached.intersection(node.inputs):
            if node.index in found and found[node.index].data in reached:
                return found[node.index]
            reached.update(node.outputs)
    return None


def _moved(model: Model, first: Consumer, feed: Feed) -> float:
    """Median over the outputs of deviation / |mean|; infinite where they have no bias, so that their mean says nothing."""
    weight, bias = model.weight(first.weight), model.weight(first.bias) if first.bias else None
    if weight is None or bias is None or bias.dtype.kind != "f":
        return np.inf
    (data,) = Walk(model.proto, [feed]).tensor(first.data)
    seen = columns(first, first.numbers(data), POSITIONS, np.random.default_rng(0))
    made = (first.matrix(weight) @ seen).reshape(bias.size, -1) + bias.reshape(-1, 1).astype(np.float64)
    deviation, mean = made.std(axis=1), np.abs(made.mean(axis=1))
    live = deviation + mean > 0
    return float(np.median(deviation[live] / np.maximum(mean[live], np.finfo(np.float64).tiny))) if live.any() else np.inf
