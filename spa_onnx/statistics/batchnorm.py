"""Stored statistics of BatchNormalizations: which there are, and how they have to move once the layers before are repaired."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.plan.removal import Removal
from spa_onnx.statistics.collect import ChannelMoments

SMALLEST = 1e-12
"""A variance below this says nothing about its ratio to another."""


def normalisations(model: Model) -> list[Node]:
    """The BatchNormalizations of the main graph whose stored statistics are constants."""
    found = [node for node in model.nodes if node.op == "BatchNormalization" and not node.inside]
    return [node for node in found if all(model.is_float(name) for name in node.inputs[3:5])]


def corrected_statistics(
    model: Model, dense: Mapping[str, ChannelMoments], pruned: Mapping[str, ChannelMoments], removal: Removal
) -> dict[str, Array]:
    """Move each BatchNormalization's mean, and scale its variance, as its input has moved: constant -> new value.

    dense, pruned: input tensor -> (mean, variance) of its channels on the same samples, before pruning and after repair; those of the
    pruned model only for the channels that are left. Relative, so that made-up samples serve as well as real ones.
    """
    values: dict[str, Array] = {}
    for node in normalisations(model):
        x, (mean, variance) = node.inputs[0], node.inputs[3:5]
        if x not in dense or x not in pruned:
            continue
        kept = removal.kept(Axis(x, 1))
        shift = pruned[x][0] - dense[x][0][kept]
        ratio = np.divide(pruned[x][1], dense[x][1][kept], out=np.ones(len(kept)), where=dense[x][1][kept] > SMALLEST)
        for name, scale, offset in ((mean, np.ones(len(kept)), shift), (variance, ratio, np.zeros(len(kept)))):
            if name not in model.source:  # statistics that several nodes share stay
                array = np.array(model.constant(name))
                array[kept] = (array[kept].astype(np.float64) * scale + offset).astype(array.dtype)
                values[name] = array
    return values
