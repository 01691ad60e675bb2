"""Perturbation: a regression of the model's loss on random masks, by forward passes alone (Dery et al., Bonsai: Everybody prune now, 2024).

The loss is the relative error of the outputs. Of each group a share of the channels goes at random, and then the next, until each has gone
once; and all over again until there are MASKS. There are more channels than masks, so what the masks say moves a prior: what the same
regression on ever more masks would tend to if only the products that read the group counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LinearLayer
from spa_onnx.model.facts import Indices
from spa_onnx.scoring.activations import readers
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.registry import criterion

Vector = NDArray[np.float64]

MASKS = 64

SHARE = 0.25
"""Of the channels that a mask takes."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""How strongly the prior may hold, over the mean diagonal of the masks' Gram matrix."""


AT_ONCE = 512
"""Inputs whose interactions with all others are looked at together."""


@criterion("perturbation", needs=("weights", "statistics", "trials"), loss=True)
def perturbation(group: Group, context: ScoringContext) -> Vector:
    """What each channel costs, float64 (channels,): coefficients of the regression, or the prior where no masks can be tried."""
    prior = expected(group, context)
    if context.trial is None or not len(prior):
        return prior
    rng = np.random.default_rng([context.seed, *group.name.encode()])
    gone, losses = np.zeros((MASKS, group.size)), np.zeros(MASKS)
    for number, channels in zip(range(MASKS), _masks(group, rng), strict=False):
        gone[number, channels] = 1.0
        losses[number] = context.trial(group, channels)
    usable = np.isfinite(losses)
    return regressed(gone[usable], losses[usable], prior) if usable.sum() > 1 else prior


def _masks(group: Group, rng: np.random.Generator) -> Iterator[Indices]:
    """The channels that go, for ever: disjoint shares of the group, then others; every part of a group loses as many."""
    step = max(1, round(SHARE * group.steps))
    while True:
        order = group.ranked(rng.random(group.size))
        for first in range(0, group.steps - step + 1, step):
            yield np.sort(order[first : first + step].ravel())


def regressed(gone: NDArray[np.float64], losses: Vector, prior: Vector) -> Vector:
    """Ridge regression of the losses on what is gone, towards a multiple of the prior, float64 (channels,).

    gone: ones and zeros, (masks, channels). losses: (masks,). A channel may differ from the prior in proportion to it. The strength is the
    one of STRENGTHS that predicts each mask best from all others, unless the prior alone does (leave-one-out residuals of kernel ridge
    regression, Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.2).
    """
    before = gone @ prior
    scale = max(float(losses @ before) / max(float(before @ before), np.finfo(float).tiny), 0.0)
    design = (gone - gone.mean(axis=0)) * np.abs(prior)
    rest = losses - scale * before
    rest -= rest.mean()
    kernel = design @ design.T
    best, moved = np.square(rest).sum(), np.zeros(len(prior))
    for strength in STRENGTHS:
        level = strength * float(np.trace(kernel)) / len(kernel)
        inverse = np.linalg.inv(kernel + level * np.eye(len(kernel))) if level > 0 else None
        if inverse is not None:
            dual = inverse @ rest
            left_out = float(np.square(dual / np.diag(inverse)).sum())
            if left_out < best:
                best, moved = left_out, np.abs(prior) * (design.T @ dual)
    return scale * prior + moved


def expected(group: Group, context: ScoringContext) -> Vector:
    """The coefficients that the regression tends to if the squared error of the products that read the group is the loss, (channels,).

    Relative to their energy. That error is a quadratic form g' Q g of the mask g, and with a share p of the channels gone at random the
    regression tends to s = (1 - 2p) diag(Q) + 2p Q 1: what a channel costs alone, and shares with others. Q_kl is the sum over the inputs i
    of channel k and j of channel l of (W' W)_ij C_ij, with C the second moments of the inputs. Empty where no product with known inputs
    reads the group.
    """
    total = np.zeros(group.size)
    known = False
    for layer, weight, moments in readers(group, context):
        owners = _owners(group, layer, len(weight))
        for block, (matrix, energy, owner) in enumerate(
            zip(weight, moments.energy(weight).tolist(), owners, strict=True)
        ):
            if energy > 0:
                owned = np.flatnonzero(owner >= 0)
                for first in range(0, len(owned), AT_ONCE):
                    some = owned[first : first + AT_ONCE]
                    interaction = (matrix[:, some].T @ matrix[:, owned]) * moments.rows(block, some)[:, owned]
                    shared = np.where(owner[some][:, None] == owner[owned], 1.0, 2 * SHARE) * interaction
                    total += np.bincount(owner[some], shared.sum(axis=1) / energy, group.size)
                known = True
    return total if known else np.empty(0)


def _owners(group: Group, layer: LinearLayer, blocks: int) -> NDArray[np.int64]:
    """The channel that owns each input of each product, (blocks, inputs): products side by side count their inputs alike."""
    owner = np.repeat(group.owner[layer.axis], layer.window, axis=-1)
    return np.broadcast_to(owner, (blocks, owner.shape[-1]))
