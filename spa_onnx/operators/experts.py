"""Mixtures of experts as one operator.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE
"""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.model.contrib_shapes import like_first
from spa_onnx.model.facts import Axis, Coupling, Fact, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import register


def experts(node: Node, model: Model) -> Iterator[Fact]:
    """For each token, the sum of y = act(x W1') * (x W3') W2' over the experts that its row of scores picks; the experts stay.

    W1 and W3 are (experts, inner, features), W2 is (experts, features, inner). Fused, W1 has the rows of W3 beside or behind its own.
    """
    x, y, (w1, b1, w2, b2, w3, b3) = node.inputs[0], node.outputs[0], (node.input(slot) for slot in range(2, 8))
    shape, count = model.shape(x) or (), (model.shape(w2) or ())[2]
    last = len(shape) - 1
    fusion = int(node.attributes.get("swiglu_fusion", 0))
    inner, outer = {0: (1, 1), 1: (2, 1), 2: (1, 2)}[fusion]
    for dim in range(last):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"row of {node}")
    for axis in (Axis(w1, 2), *([Axis(w3, 2)] if w3 else [])):
        yield from same(Axis(x, last), axis, shape[last], f"{node} sums over it")
    for axis in (Axis(w2, 1), *([Axis(b2, 1)] if b2 else [])):
        yield from same(axis, Axis(y, last), shape[last], f"{node} writes feature k with it")
    for tensor, beside, behind in ((w1, inner, outer), (b1, inner, outer), (w3, 1, 1), (b3, 1, 1)):
        if tensor:
            rows = Span(Axis(tensor, 1), count, inner=beside, outer=behind, period=count)
            yield Coupling(whole(Axis(w2, 2), count), rows, f"every expert of {node} has one inner width")


def experts_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Each token goes through all weights of `k` experts."""
    tokens = axes_of(model, node.inputs[0])[:-1]
    weights = [node.input(slot) for slot in (2, 4, 6) if node.input(slot)]
    return [[*tokens, *axes_of(model, weight)[1:]] for weight in weights] * int(node.attributes.get("k", 1))


register(
    "com.microsoft.MoE",
    coupling=experts,
    macs=experts_macs,
    not_refitted="its experts read their inputs inside the operator",
    shape=like_first(),
)
