"""Scores of channels from scores of indices: aggregate the indices of a channel, then normalise within the group.

These are the two steps of group-level importance in SPA (section 3.3 of the paper). They can be combined freely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.scoring.context import Scores, ScoringContext
from spa_onnx.scoring.registry import ScoreFunction

Vector = NDArray[np.float64]


def _gather(scores: Scores, group: Group) -> tuple[NDArray[np.int64], Vector]:
    """Return (channel, score) of every index that a channel of the group owns."""
    owner = np.concatenate([group.owner[axis].ravel() for axis, _ in scores])
    values = np.concatenate([score.ravel() for _, score in scores])
    return owner[owner >= 0], values[owner >= 0]


def _sum(owner: NDArray[np.int64], values: Vector, size: int) -> Vector:
    return np.asarray(np.bincount(owner, values, size), dtype=np.float64)


def _mean(owner: NDArray[np.int64], values: Vector, size: int) -> Vector:
    return np.bincount(owner, values, size) / np.maximum(np.bincount(owner, minlength=size), 1)


def _max(owner: NDArray[np.int64], values: Vector, size: int) -> Vector:
    result = np.full(size, -np.inf)
    np.maximum.at(result, owner, values)
    return result


def _prod(owner: NDArray[np.int64], values: Vector, size: int) -> Vector:
    """Return the logarithm of the product, which has the same order: products of many norms overflow."""
    return np.asarray(np.bincount(owner, np.log(np.maximum(values, np.finfo(float).tiny)), size), dtype=np.float64)


AGGREGATIONS: Mapping[str, Callable[[NDArray[np.int64], Vector, int], Vector]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "prod": _prod,
}
"""Name -> aggregation of the scores of all indices that a channel owns.

Each is a function (channel of each index, score of each index, number of channels) -> float64 (channels,).
"""


def _divide(scores: Vector, scale: float) -> Vector:
    return scores / scale if scale else scores


NORMALISATIONS: Mapping[str, Callable[[Vector], Vector]] = {
    "none": lambda s: s,
    "sum": lambda s: _divide(s, float(np.abs(s).sum())),
    "mean": lambda s: _divide(s, float(np.abs(s).mean())),
    "max": lambda s: _divide(s, float(np.abs(s).max())),
    "gaussian": lambda s: _divide(s - s.mean(), float(s.std())),
}
"""Name -> function that makes the scores of groups comparable: float64 (channels,) -> float64 (channels,)."""


def fill_missing_scores(scores: Mapping[str, Vector], order: Mapping[str, Vector]) -> dict[str, Vector]:
    """Give scores to groups that have none, from the order of another criterion.

    The channel at rank r of n gets the same quantile of all existing scores. So a ranking across groups removes the
    same share of these groups as it removes overall.

    Args:
        scores: Group name -> score of each channel, float64 (channels,).
        order: Group name -> score of each channel by the other criterion.

    Returns:
        Both together: group name -> score of each channel, float64 (channels,).
    """
    pool = np.concatenate(list(scores.values())) if scores else np.linspace(0.0, 1.0, 101)
    result = dict(scores)
    for name, values in order.items():
        if name not in scores:
            rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            result[name] = np.quantile(pool, (rank + 0.5) / len(values))
    return result


def score_groups(
    groups: Sequence[Group],
    criterion: ScoreFunction,
    context: ScoringContext,
    aggregate: str = "sum",
    normalise: str = "mean",
) -> dict[str, Vector]:
    """Score the channels of each group.

    Args:
        groups: The groups.
        criterion: The score function of a criterion.
        context: What the criterion is given.
        aggregate: A name of `AGGREGATIONS`.
        normalise: A name of `NORMALISATIONS`.

    Returns:
        Group name -> score of each channel, float64 (channels,). Groups that the criterion cannot score are left out.
    """
    result = {}
    for group in groups:
        scores = criterion(group, context)
        if isinstance(scores, np.ndarray):
            if len(scores):
                result[group.name] = scores
        elif scores:
            owner, values = _gather(scores, group)
            result[group.name] = NORMALISATIONS[normalise](AGGREGATIONS[aggregate](owner, values, group.size))
    return result
