"""Perturbation: regress the model's loss on random masks, with forward passes alone (Dery et al., Bonsai, 2024).

The loss is the relative error of the outputs. Each mask removes a random share of the group's channels. Masks are
disjoint until every channel was removed once; then the channels are shuffled again, until there are MASKS_PER_GROUP
masks. There are more channels than masks, so the regression corrects a prior: the scores that the same regression would
converge to if only the layers that read the group counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.model.facts import Indices
from spa_onnx.scoring.activations import reading_layers
from spa_onnx.scoring.aggregate import Vector
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.registry import criterion

MASKS_PER_GROUP = 64
"""Masks for each group."""

MASKED_SHARE = 0.25
"""Share of the channels that a mask removes."""

RIDGE_PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties to choose from, as shares of the mean diagonal of the masks' Gram matrix."""

INPUTS_AT_A_TIME = 512
"""Inputs whose interactions with all others are computed at a time."""


@criterion("perturbation", needs=("weights", "statistics", "trials"), loss=True)
def perturbation(group: Group, context: ScoringContext) -> Vector:
    """Coefficients of a regression of the loss on random masks.

    Returns:
        float64 (channels,): the coefficients, or the prior if no masks can be tried; empty if there is no prior.
    """
    prior = prior_scores(group, context)
    if context.trial is None or not len(prior):
        return prior
    rng = np.random.default_rng([context.seed, *group.name.encode()])
    removed, losses = np.zeros((MASKS_PER_GROUP, group.size)), np.zeros(MASKS_PER_GROUP)
    for number, channels in zip(range(MASKS_PER_GROUP), _masks(group, rng), strict=False):
        removed[number, channels] = 1.0
        losses[number] = context.trial(group, channels)
    usable = np.isfinite(losses)
    return regression_scores(removed[usable], losses[usable], prior) if usable.sum() > 1 else prior


def _masks(group: Group, rng: np.random.Generator) -> Iterator[Indices]:
    """Yield removed channels without end: disjoint shares of the group, then of a new order, equal for every part."""
    step = max(1, round(MASKED_SHARE * group.steps))
    while True:
        order = group.ranked(rng.random(group.size))
        for first in range(0, group.steps - step + 1, step):
            yield np.sort(order[first : first + step].ravel())


def regression_scores(removed: NDArray[np.float64], losses: Vector, prior: Vector) -> Vector:
    """Regress losses on masks by a ridge regression towards a multiple of the prior.

    A channel's score may differ from the prior in proportion to the prior. The ridge penalty is the one of
    RIDGE_PENALTIES with the smallest leave-one-out error, or infinite (the prior alone) if that has a smaller one
    (leave-one-out residuals of kernel ridge regression: Rasmussen & Williams, Gaussian Processes for Machine
    Learning, 2006, section 5.4.2).

    Args:
        removed: 1 for removed channels, 0 for kept ones, float64 (masks, channels).
        losses: float64 (masks,).
        prior: float64 (channels,).

    Returns:
        float64 (channels,).
    """
    prior_losses = removed @ prior
    scale = max(float(losses @ prior_losses) / max(float(prior_losses @ prior_losses), np.finfo(float).tiny), 0.0)
    design = (removed - removed.mean(axis=0)) * np.abs(prior)
    residual = losses - scale * prior_losses
    residual -= residual.mean()
    kernel = design @ design.T
    best, correction = np.square(residual).sum(), np.zeros(len(prior))
    for share in RIDGE_PENALTIES:
        penalty = share * float(np.trace(kernel)) / len(kernel)
        inverse = np.linalg.inv(kernel + penalty * np.eye(len(kernel))) if penalty > 0 else None
        if inverse is not None:
            dual = inverse @ residual
            error = float(np.square(dual / np.diag(inverse)).sum())
            if error < best:
                best, correction = error, np.abs(prior) * (design.T @ dual)
    return scale * prior + correction


def prior_scores(group: Group, context: ScoringContext) -> Vector:
    """Return the scores that the regression converges to if only the layers that read the group counted.

    The loss is then the squared error of their outputs, relative to their energy. It is a quadratic form g' Q g of
    the mask g. With a share p of the channels removed at random, the regression converges to s = (1 - 2p) diag(Q) +
    2p Q 1: what a channel costs alone, and what it costs together with others. Q_kl is the sum over the inputs i of
    channel k and j of channel l of (W' W)_ij C_ij, where C are the second moments of the inputs.

    Returns:
        float64 (channels,); empty if no layer that reads the group has statistics.
    """
    total = np.zeros(group.size)
    is_empty = True
    for layer, weight, moments in reading_layers(group, context):
        owners = _owners(group, layer, len(weight))
        for block, (matrix, energy, owner) in enumerate(
            zip(weight, moments.energy(weight).tolist(), owners, strict=True)
        ):
            if energy > 0:
                owned = np.flatnonzero(owner >= 0)
                for first in range(0, len(owned), INPUTS_AT_A_TIME):
                    rows = owned[first : first + INPUTS_AT_A_TIME]
                    interaction = (matrix[:, rows].T @ matrix[:, owned]) * moments.rows(block, rows)[:, owned]
                    same_channel = owner[rows][:, None] == owner[owned]
                    cost = np.where(same_channel, 1.0, 2 * MASKED_SHARE) * interaction
                    total += np.bincount(owner[rows], cost.sum(axis=1) / energy, group.size)
                is_empty = False
    return np.empty(0) if is_empty else total


def _owners(group: Group, layer: LinearLayer, blocks: int) -> NDArray[np.int64]:
    """Return the channel that owns each input of each block, (blocks, inputs)."""
    owner = np.repeat(group.owner[layer.axis], layer.window, axis=-1)
    return np.broadcast_to(owner, (blocks, owner.shape[-1]))
