"""OBSPA: the loss at the outputs of all layers that read a channel when it is removed and the rest is refitted.

See SPA, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.linalg.hessian import GroupSurgeon
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.registry import criterion

STEP_DIVISOR = 8
"""Each greedy step removes 1 / STEP_DIVISOR of the channels left (at least one) before saliencies are recomputed."""


def column_blocks(layer: LinearLayer, group: Group) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the inputs that each channel owns, for each block of the layer.

    Yields nothing if the layer does not read the group, or if channels own different numbers of inputs, because their
    losses cannot be compared.

    Yields:
        (input numbers, int64 (channels, size); numbers of these channels, int64 (channels,)).
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


def surgeons(group: Group, context: ScoringContext) -> Iterator[GroupSurgeon]:
    """Yield a surgeon for each block of each layer that reads the group's channels and has statistics."""
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
    """Relative loss when channels are removed greedily, the cheapest first.

    The loss of a channel is the sum over all layers that read it, each divided by the energy of the layer's output. A
    channel always scores above those that were removed before it.

    Returns:
        float64 (channels,); empty if no layer that reads the group has statistics.
    """
    operations = [surgeon for surgeon in surgeons(group, context) if surgeon.energy > 0]
    if not operations:
        return np.empty(0)
    scores = np.full(group.size, np.inf)
    score = 0.0
    left = np.arange(group.size)
    while len(left):
        loss = np.asarray(sum(s.saliency()[left] / s.energy for s in operations))
        cheapest = np.argsort(loss, kind="stable")[: max(1, len(left) // STEP_DIVISOR)]
        for index in cheapest:
            score = max(score, float(loss[index]))
            scores[left[index]] = score = np.nextafter(score, np.inf)
        for surgeon in operations:
            surgeon.remove(*left[cheapest].tolist())
        left = np.delete(left, cheapest)
    return scores
