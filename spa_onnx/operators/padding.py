"""Pad: padding before and after each axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spa_onnx.model.facts import Axis, Coupling, Fact, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import Held, register
from spa_onnx.operators.updates import Cut, SetAttribute, SetInput, ShapeEdit


def _pads(node: Node, model: Model) -> dict[int, tuple[int, int]]:
    """Return axis -> (before, after) for each axis with constant padding."""
    rank = len(model.shape(node.inputs[0]) or ())
    if "pads" in node.attributes or "paddings" in node.attributes:
        attribute = node.attributes.get("pads", node.attributes.get("paddings", ()))
        return {dim: (attribute[dim], attribute[dim + rank]) for dim in range(rank)}
    value, axes = model.value(node.input(1)), model.constant(node.input(3)) if node.input(3) else np.arange(rank)
    if value is None or axes is None:
        return {}
    pads, half = value.array.ravel(), len(axes)
    positions = {int(a) % rank: i for i, a in enumerate(axes)}
    literal = {dim: i for dim, i in positions.items() if not value.origin[i] and not value.origin[i + half]}
    unpadded = {dim: (0, 0) for dim in range(rank) if dim not in positions}
    return unpadded | {dim: (int(pads[i]), int(pads[i + half])) for dim, i in literal.items()}


def pad(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x with padding before and after each axis. Padded indices belong to no channel and can be removed."""
    x, y = node.inputs[0], node.outputs[0]
    shape, constant = model.shape(x) or (), node.attributes.get("mode", "constant") == "constant"
    for dim, (before, after) in _pads(node, model).items():
        if (before, after) == (0, 0):
            yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"{node} pads another axis")
        elif constant and before >= 0 and after >= 0:
            moved = Span(Axis(y, dim), shape[dim], start=before)
            yield Coupling(whole(Axis(x, dim), shape[dim]), moved, f"{node} puts it behind {before} padded ones")


def update_pad(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set the number of kept padded indices on both sides of each axis."""
    y, shape = node.outputs[0], model.shape(node.inputs[0]) or ()
    changed = {}
    for dim, (before, after) in _pads(node, model).items():
        kept = cut.kept(Axis(y, dim))
        kept_padding = (int((kept < before).sum()), int((kept >= before + shape[dim]).sum()))
        if kept_padding != (before, after) and min(before, after) >= 0:
            changed[dim] = kept_padding
    if not changed:
        return
    if node.input(1):
        yield _pad_input(node, model, changed, len(shape))
        return
    name = "pads" if "pads" in node.attributes else "paddings"
    pads = list(node.attributes[name])
    for dim, (before, after) in changed.items():
        pads[dim], pads[dim + len(shape)] = before, after
    yield SetAttribute(name, pads)


def _pad_input(node: Node, model: Model, changed: dict[int, tuple[int, int]], rank: int) -> SetInput:
    """Return the edit of the `pads` input for the changed axes."""
    value, axes = model.value(node.inputs[1]), model.constant(node.input(3)) if node.input(3) else np.arange(rank)
    if value is None or axes is None:  # `_pads` returned constant padding, so both are known
        raise AssertionError(node)
    values, where = value.array.copy(), np.zeros(value.array.shape, bool)
    for place, axis in enumerate(axes):
        if int(axis) % rank in changed:
            for index, count in zip((place, place + len(axes)), changed[int(axis) % rank], strict=True):
                values[index], where[index] = count, True
    return SetInput(1, values, where)


def pads_with_zero(node: Node, model: Model, held: Held) -> bool:
    """Return whether a Pad keeps zero: its input and its padding value are zero."""
    value = model.constant(node.input(2)) if node.input(2) else None
    filled = node.attributes.get("value", 0.0) if value is None else value.item()
    return bool(held[0] and filled == 0)


register("Pad", coupling=pad, parameters=(1, 2, 3), update=update_pad, zero=pads_with_zero)
