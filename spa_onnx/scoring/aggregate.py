"""From scores of indices to scores of channels: aggregation over all that a channel owns, normalisation within its group.

The two steps of group-level importance in SPA (section 3.3 of the paper); every combination can be chosen.
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
    """(channel, score) of every index that a channel of the group owns."""
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
    """As a sum of logarithms: products of many norms leave the range of a float. The order is the same."""
    return np.asarray(np.bincount(owner, np.log(np.maximum(values, np.finfo(float).tiny)), size), dtype=np.float64)


AGGREGATIONS: Mapping[str, Callable[[NDArray[np.int64], Vector, int], Vector]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "prod": _prod,
}
"""How the scores of all indices that a channel owns become one: (owner, values, channels) -> (channels,)."""


def _divide(scores: Vector, scale: float) -> Vector:
    return scores / scale if scale else scores


NORMALISATIONS: Mapping[str, Callable[[Vector], Vector]] = {
    "none": lambda s: s,
    "sum": lambda s: _divide(s, float(np.abs(s).sum())),
    "mean": lambda s: _divide(s, float(np.abs(s).mean())),
    "max": lambda s: _divide(s, float(np.abs(s).max())),
    "gaussian": lambda s: _divide(s - s.mean(), float(s.std())),
}
"""How the scores of a group are made comparable with those of another."""


def fill_in(scores: Mapping[str, Vector], order: Mapping[str, Vector]) -> dict[str, Vector]:
    """Scores for groups that have none, from another criterion's order: group name -> float64 (channels,).

    The channel at rank r of n gets what stands at the same share of all scores that are known, so that a ranking across groups takes
    the same share of these groups as it takes overall.
    """
    pool = np.concatenate(list(scores.values())) if scores else np.linspace(0.0, 1.0, 101)
    found = dict(scores)
    for name, values in order.items():
        if name not in scores:
            rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            found[name] = np.quantile(pool, (rank + 0.5) / len(values))
    return found


def score_groups(
    groups: Sequence[Group],
    criterion: ScoreFunction,
    context: ScoringContext,
    aggregate: str = "sum",
    normalise: str = "mean",
) -> dict[str, Vector]:
    """Group name -> score of each channel, float64 (channels,). Groups that the criterion knows nothing about are left out."""
    found = {}
    for group in groups:
        scores = criterion(group, context)
        if isinstance(scores, np.ndarray):
            if len(scores):
                found[group.name] = scores
        elif scores:
            owner, values = _gather(scores, group)
            found[group.name] = NORMALISATIONS[normalise](AGGREGATIONS[aggregate](owner, values, group.size))
    return found
