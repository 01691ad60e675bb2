"""OBSPA: what removing a channel costs the outputs of all its consumers when everything else is refitted (SPA, section 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.linalg.hessian import Operation
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.registry import criterion

CHUNK = 8
"""Of the channels left, one in CHUNK (at least one) goes before saliencies are computed again."""


def column_blocks(layer: LinearLayer, group: Group) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each of the products side by side, the inputs that each channel owns, int64 (channels, size), and which channels these are.

    Nothing where the layer reads none of the group, or where channels own unequal numbers of inputs: their losses could not be compared.
    """
    owner = group.owner.get(layer.axis)
    counts = np.zeros(1) if owner is None else np.bincount(owner[owner >= 0], minlength=group.size)
    if owner is None or counts.min() != counts.max() or counts[0] == 0:
        return
    window = np.arange(layer.window)
    for row in np.broadcast_to(owner, (layer.blocks, owner.shape[-1])):
        members = np.unique(row[row >= 0])
        indices = np.argsort(row, kind="stable")[(row < 0).sum() :].reshape(len(members), -1)
        yield (indices[:, :, None] * layer.window + window).reshape(len(members), -1), members


def surgeons(group: Group, context: ScoringContext) -> Iterator[Operation]:
    """One for each product that reads the group's channels and whose inputs are known."""
    if context.statistics is None:
        return
    for layer in context.layers:
        columns = list(column_blocks(layer, group))
        moments = context.statistics.get(layer.key)
        weight = context.model.weight(layer.weight)
        if not columns or moments is None or weight is None:
            continue
        mean, damping = context.regularisation.of(biased=bool(layer.bias))
        for matrix, hessian, (blocks, members) in zip(
            layer.matrix(weight), moments.hessians(mean, damping), columns, strict=True
        ):
            yield hessian.surgeon(matrix, blocks, members, group.size)


@criterion("obspa", needs=("weights", "statistics"), loss=True, repair="obs")
def obspa(group: Group, context: ScoringContext) -> NDArray[np.float64]:
    """Relative loss at the moment a channel goes in greedy order, float64 (channels,): so scores rise in that order.

    The increments of all consumers, each divided by the energy of its output, are added; a later channel never scores below an
    earlier one.
    """
    found = [surgeon for surgeon in surgeons(group, context) if surgeon.energy > 0]
    if not found:
        return np.empty(0)
    scores = np.full(group.size, np.inf)
    level = 0.0
    left = np.arange(group.size)
    while len(left):
        loss = np.asarray(sum(s.saliency()[left] / s.energy for s in found))
        going = np.argsort(loss, kind="stable")[: max(1, len(left) // CHUNK)]
        for place in going:
            level = max(level, float(loss[place]))
            scores[left[place]] = level = np.nextafter(level, np.inf)
        for surgeon in found:
            surgeon.remove(*left[going].tolist())
        left = np.delete(left, going)
    return scores
