"""The linear layers of a model, found by the functions that its operators register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from spa_onnx.layers.layer import LinearLayer
from spa_onnx.layers.weight_view import WeightView, count_uses, weight_view
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import float_form
from spa_onnx.model.traits import Quantised, traits

LayerFinder: TypeAlias = Callable[[Node, Model], Iterator[LinearLayer]]
"""(node, model) -> the linear layers with constant weights that the node computes."""

LAYERS: dict[str, LayerFinder] = {}
"""Operator -> the function that yields its linear layers. The modules of `spa_onnx.operators` fill this table."""

DYNAMIC = "DynamicQuantizeLinear"
"""The operator that quantises its input with a scale that it computes at run time."""


def linear_layers(model: Model) -> Iterator[LinearLayer]:
    """Yield every linear layer with a constant weight, float or quantised, in the order of the graph.

    Layers inside subgraphs (If branches, Loop and Scan bodies) are omitted, because their inputs cannot be captured
    from the main graph.
    """
    for node in (node for node in model.nodes if not node.inside):
        operator, plain = float_form(node) or (node.op, node)
        if operator in LAYERS and len(plain.inputs) > 1:
            for layer in LAYERS[operator](plain, model):
                yield from _with_known_input(layer, node, model)


def _with_known_input(layer: LinearLayer, node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the layer with its float input or with a constant input scale; nothing if the scale is not constant."""
    form = traits(node.op).quantised or Quantised()
    added = node.input(form.added) if form.added >= 0 else ""
    layer = replace(layer, bias=unshared_bias(model, added)) if added else layer
    operand = next((entry for entry in form.operands if entry.data == 0), None)
    source = model.producer.get(layer.data)
    if operand is None or not form.operator:
        yield layer
    elif source is not None and source.op == DYNAMIC:
        yield replace(layer, data=source.inputs[0])
    elif operand.scale >= 0:
        slots = (operand.scale, operand.zero)
        step, zero = (model.constant(node.input(slot)) if node.input(slot) else np.zeros(()) for slot in slots)
        if step is not None and zero is not None and step.size == zero.size == 1:
            yield replace(layer, step=float(step.item()), zero=float(zero.item()))


def weight_of(model: Model, name: str) -> tuple[WeightView, tuple[int, ...]] | None:
    """Return (view of the constant that holds a weight, shape that the node reads); None if it is not constant."""
    view, shape = weight_view(model, name) if name else WeightView(""), model.shape(name)
    return (view, shape) if name and shape is not None and model.is_weight(view.constant) else None


def unshared_bias(model: Model, name: str) -> str:
    """Return the constant that holds a bias, or an empty name if it is no constant or is used more than once."""
    constant = weight_view(model, name).constant if name else ""
    is_own = constant and model.is_weight(constant) and constant not in model.source
    return constant if is_own and count_uses(model, constant) == 1 else ""
