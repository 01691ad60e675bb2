"""OBSPA: what removing a channel costs the outputs of all its consumers when everything else is refitted (SPA, section 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spa_onnx.consumers import Consumer
from spa_onnx.criteria.evidence import Evidence
from spa_onnx.groups import Group
from spa_onnx.obs import Surgeon

CHUNK = 16
"""Of the channels left, one in CHUNK (at least one) goes before saliencies are computed again."""


def column_blocks(consumer: Consumer, group: Group) -> NDArray[np.int64] | None:
    """The inputs of the consumer's product that each channel owns, int64 (channels, size); None where it reads none of them.

    Channels that own unequal numbers of inputs give None too: their losses could not be compared.
    """
    owner = group.owner.get(consumer.axis)
    if owner is None:
        return None
    counts = np.bincount(owner[owner >= 0], minlength=group.size)
    if counts.min() != counts.max() or counts[0] == 0:
        return None
    indices = np.argsort(owner, kind="stable")[(owner < 0).sum() :].reshape(group.size, -1)
    window = np.arange(consumer.window)
    return np.asarray((indices[:, :, None] * consumer.window + window).reshape(group.size, -1), dtype=np.int64)


def surgeons(group: Group, evidence: Evidence) -> Iterator[Surgeon]:
    """One for each product that reads the group's channels and whose inputs are known."""
    if evidence.statistics is None:
        return
    for consumer in evidence.consumers:
        blocks = column_blocks(consumer, group)
        moments = evidence.statistics.get(consumer.node.index)
        weight = evidence.model.weight(consumer.weight)
        if blocks is None or moments is None or weight is None:
            continue
        gram = moments.covariance() if consumer.bias else moments.gram / moments.count
        for matrix, inner in zip(consumer.matrix(weight), gram, strict=True):
            yield Surgeon(matrix, inner, blocks)


def obspa(group: Group, evidence: Evidence) -> NDArray[np.float64]:
    """Relative loss at the moment a channel goes in greedy order, float64 (channels,): so scores rise in that order.

    The increments of all consumers, each divided by the energy of its output, are added; a later channel never scores below an
    earlier one.
    """
    found = [surgeon for surgeon in surgeons(group, evidence) if surgeon.energy > 0]
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
