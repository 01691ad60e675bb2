"""Criteria that use weights and the inputs of the linear layers that read a channel.

Each returns a score for every index of a weight's input axis, float64 (indices,). Scores are summed over kernel
positions and over the groups of a convolution that lose the same channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.linalg.blas import Matrix
from spa_onnx.scoring.context import Scores, ScoringContext
from spa_onnx.scoring.registry import criterion
from spa_onnx.statistics.moments import Moments

Measure: TypeAlias = Callable[[Matrix, Moments], Matrix]
"""(weight (blocks, rows, inputs), moments of the inputs) -> score of each input, (blocks, inputs)."""


def reading_layers(group: Group, context: ScoringContext) -> Iterator[tuple[LinearLayer, Matrix, Moments]]:
    """Yield the layers that sum over the group's channels and have statistics.

    Yields:
        (layer, its weight (blocks, rows, inputs), moments of its inputs).
    """
    for layer in context.layers:
        weight = context.model.weight(layer.weight)
        moments = (context.statistics or {}).get(layer.key)
        if layer.axis in group.owner and weight is not None and moments is not None and moments.count:
            yield layer, layer.matrix(weight), moments


def _scores(group: Group, context: ScoringContext, measure: Measure) -> Scores:
    scores: Scores = []
    for layer, weight, moments in reading_layers(group, context):
        indices = measure(weight, moments).reshape(-1, layer.window).sum(axis=1)
        scores.append((layer.axis, indices.reshape(-1, group.owner[layer.axis].size).sum(axis=0)))
    return scores


def _variance(moments: Moments) -> Matrix:
    return np.maximum(moments.mean_square() - np.square(moments.mean), 0.0)


@criterion("wanda", needs=("weights", "statistics"))
def wanda(group: Group, context: ScoringContext) -> Scores:
    """Sum over rows of |W_ri| ||X_i|| (Sun et al., Wanda, 2024), with root mean squares as norms."""
    return _scores(group, context, lambda weight, moments: np.abs(weight).sum(axis=1) * np.sqrt(moments.mean_square()))


@criterion("activation-variance", needs=("weights", "statistics"), repair="mean")
def activation_variance(group: Group, context: ScoringContext) -> Scores:
    """Fluctuation: var(X_i) ||W_i||^2, the loss once the bias has absorbed the mean (An et al., FLAP, 2024).

    The repair `mean` is its compensation: b + W_i mean(X_i).
    """
    return _scores(group, context, lambda weight, moments: _variance(moments) * np.square(weight).sum(axis=1))


@criterion("activation-mean", needs=("statistics",))
def activation_mean(group: Group, context: ScoringContext) -> Scores:
    """Absolute mean |mean(X_i)|: low for channels that are mostly zero after a ReLU.

    In the spirit of APoZ (Hu et al., Network Trimming, 2016).
    """
    return _scores(group, context, lambda _, moments: np.abs(moments.mean))
