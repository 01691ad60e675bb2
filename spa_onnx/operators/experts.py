"""Mixture of experts (MoE) as a single operator.

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
    """Y = sum over the selected experts of (act(x W1') * (x W3')) W2', for each token x; its scores select the experts.

    W1 and W3 are (experts, inner, features), W2 is (experts, features, inner). If W3 is fused into W1, its rows are
    interleaved with the rows of W1 (swiglu_fusion 1) or follow them (swiglu_fusion 2). All experts are kept.
    """
    x, y, (w1, b1, w2, b2, w3, b3) = node.inputs[0], node.outputs[0], (node.input(slot) for slot in range(2, 8))
    shape, count = model.shape(x) or (), (model.shape(w2) or ())[2]
    last = len(shape) - 1
    fusion = int(node.attributes.get("swiglu_fusion", 0))
    interleaved, stacked = {0: (1, 1), 1: (2, 1), 2: (1, 2)}[fusion]
    for dim in range(last):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"row of {node}")
    for axis in (Axis(w1, 2), *([Axis(w3, 2)] if w3 else [])):
        yield from same(Axis(x, last), axis, shape[last], f"{node} sums over it")
    for axis in (Axis(w2, 1), *([Axis(b2, 1)] if b2 else [])):
        yield from same(axis, Axis(y, last), shape[last], f"{node} writes feature k with it")
    for tensor, inner, outer in ((w1, interleaved, stacked), (b1, interleaved, stacked), (w3, 1, 1), (b3, 1, 1)):
        if tensor:
            rows = Span(Axis(tensor, 1), count, inner=inner, outer=outer, period=count)
            yield Coupling(whole(Axis(w2, 2), count), rows, f"every expert of {node} has one inner width")


def experts_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes: each token is multiplied by all weights of `k` experts."""
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
