"""Criteria that look at weights and at the inputs of the products that read a channel.

Each gives every index of a weight's input axis a score: float64 of shape (indices,). Inputs of the kernel's positions are added up, and
so are those of groups of a convolution that lose the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.linalg.blas import Matrix
from spa_onnx.scoring.context import Scores, ScoringContext
from spa_onnx.scoring.registry import criterion
from spa_onnx.statistics.moments import Moments

Measure = Callable[[Matrix, Moments], Matrix]
"""(weight (blocks, rows, inputs), moments of the inputs) -> score of each input, (blocks, inputs)."""


def readers(group: Group, context: ScoringContext) -> Iterator[tuple[LinearLayer, Matrix, Moments]]:
    """The products that sum over the group's channels, with their weight and the moments of their inputs."""
    for layer in context.layers:
        weight = context.model.weight(layer.weight)
        moments = (context.statistics or {}).get(layer.key)
        if layer.axis in group.owner and weight is not None and moments is not None and moments.count:
            yield layer, layer.matrix(weight), moments


def _scores(group: Group, context: ScoringContext, measure: Measure) -> Scores:
    found: Scores = []
    for layer, weight, moments in readers(group, context):
        score = measure(weight, moments)
        indices = score.reshape(-1, layer.window).sum(axis=1)
        found.append((layer.axis, indices.reshape(-1, group.owner[layer.axis].size).sum(axis=0)))
    return found


def _variance(moments: Moments) -> Matrix:
    return np.maximum(moments.mean_square() - np.square(moments.mean), 0.0)


@criterion("wanda", needs=("weights", "statistics"))
def wanda(group: Group, context: ScoringContext) -> Scores:
    """Sum over rows of |W_ri| ||X_i||, with the norm over all positions (Sun et al., Wanda, 2024); norms are per position here."""
    return _scores(group, context, lambda weight, moments: np.abs(weight).sum(axis=1) * np.sqrt(moments.mean_square()))


@criterion("activation-variance", needs=("weights", "statistics"), repair="mean")
def activation_variance(group: Group, context: ScoringContext) -> Scores:
    """Fluctuation: var(X_i) ||W_i||^2, what is lost once the bias has taken up the mean (An et al., FLAP, 2024).

    Its compensation is the repair `mean`: b + W_i mean(X_i).
    """
    return _scores(group, context, lambda weight, moments: _variance(moments) * np.square(weight).sum(axis=1))


@criterion("activation-mean", needs=("statistics",))
def activation_mean(group: Group, context: ScoringContext) -> Scores:
    """|mean(X_i)|: behind a ReLU low for channels that are mostly zero (in the spirit of APoZ, Hu et al., Network Trimming, 2016)."""
    return _scores(group, context, lambda _, moments: np.abs(moments.mean))
