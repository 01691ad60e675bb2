"""Criteria that use weights alone.

Each returns a score for every index of an axis from the slice of the tensor at that index, float64 (indices,).
"""

from __future__ import annotations

import numpy as np

from spa_onnx.analysis.groups import Group
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.scoring.context import Scores, ScoringContext
from spa_onnx.scoring.registry import criterion


def filter_slices(group: Group, model: Model, axis: Axis) -> Array:
    """Return the filter_slices of a weight along an axis, dequantised, one part after the other (see `Group`).

    Args:
        group: The group that the axis belongs to.
        model: The model.
        axis: The axis.

    Returns:
        float64 (indices, elements of a slice).

    Raises:
        RefusedError: The tensor is not a constant.
    """
    array = model.weight(axis.tensor)
    if array is None:
        raise RefusedError(f"{axis.tensor} is not a constant, so it has no weights to score")
    parts = np.split(array, group.owner[axis].size // array.shape[axis.dim])
    return np.concatenate([np.moveaxis(part, axis.dim, 0).reshape(part.shape[axis.dim], -1) for part in parts]).astype(
        np.float64
    )


def scored_axes(group: Group, model: Model) -> list[Axis]:
    """Return the axes that are scored: those of matrices and filters, or of vectors if the group has nothing else."""
    axes = list(group.weights(model))
    wide = [axis for axis in axes if sum(size > 1 for size in model.shape(axis.tensor) or ()) > 1]
    return wide or axes


@criterion("l1")
def l1(group: Group, context: ScoringContext) -> Scores:
    """Sum of absolute values (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return [
        (axis, np.abs(filter_slices(group, context.model, axis)).sum(axis=1))
        for axis in scored_axes(group, context.model)
    ]


@criterion("l2")
def l2(group: Group, context: ScoringContext) -> Scores:
    """Euclidean norm."""
    return [
        (axis, np.sqrt(np.square(filter_slices(group, context.model, axis)).sum(axis=1)))
        for axis in scored_axes(group, context.model)
    ]


@criterion("linf")
def linf(group: Group, context: ScoringContext) -> Scores:
    """Largest absolute value."""
    return [
        (axis, np.abs(filter_slices(group, context.model, axis)).max(axis=1))
        for axis in scored_axes(group, context.model)
    ]


@criterion("fpgm")
def fpgm(group: Group, context: ScoringContext) -> Scores:
    """Sum of the distances to all other filter_slices, low near the geometric median (He et al., FPGM, 2019)."""
    from scipy.spatial.distance import cdist  # noqa: PLC0415 - slow to import, and only needed here

    scores = []
    for axis in scored_axes(group, context.model):
        rows = filter_slices(group, context.model, axis)
        scores.append((axis, cdist(rows, rows).sum(axis=1)))
    return scores


@criterion("lamp")
def lamp(group: Group, context: ScoringContext) -> Scores:
    """Squared norm of a slice over the sum of all squared norms that are not smaller (Lee et al., LAMP, 2021)."""
    scores = []
    for axis in scored_axes(group, context.model):
        energy = np.square(filter_slices(group, context.model, axis)).sum(axis=1)
        order = np.argsort(energy, kind="stable")
        not_smaller = np.cumsum(energy[order][::-1])[::-1]
        score = np.empty_like(energy)
        score[order] = np.divide(energy[order], not_smaller, out=np.zeros_like(energy), where=not_smaller > 0)
        scores.append((axis, score))
    return scores


@criterion("bn-scale")
def bn_scale(group: Group, context: ScoringContext) -> Scores:
    """Absolute scale of the BatchNormalization after each channel (Liu et al., Network Slimming, 2017)."""
    scales = {node.inputs[1] for node in context.model.nodes if node.op == "BatchNormalization"}
    return [
        (axis, np.abs(filter_slices(group, context.model, axis)).sum(axis=1))
        for axis in group.owner
        if axis.tensor in scales
    ]


@criterion("random")
def random(group: Group, context: ScoringContext) -> Scores:
    """A random number for each channel: the baseline that a criterion has to beat."""
    axis = next(iter(group.owner))
    owner = group.owner[axis]
    drawn = np.random.default_rng([context.seed, *group.name.encode()]).random(group.size)
    return [(axis, np.where(owner >= 0, drawn[owner], 0.0))]
