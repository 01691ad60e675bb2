"""Scores and a ratio -> which channels go. No group is ever emptied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from spa_onnx.cost import PlanCost
from spa_onnx.facts import Indices
from spa_onnx.groups import Group
from spa_onnx.model import Model

Counts = NDArray[np.int64]
Scores = Mapping[str, NDArray[np.float64]]


def step(group: Group, multiple: int) -> int:
    """The smallest number of channels by which every weight axis of the group changes by a multiple of `multiple` indices."""
    owned = {np.count_nonzero(owner >= 0) // group.size for owner in group.owner.values()}
    return lcm(*(multiple // gcd(multiple, count) for count in owned if count))


def _rounded(removed: Counts, sizes: Counts, steps: Counts) -> Counts:
    """Keep a multiple of `steps` channels, the nearest; groups smaller than one step stay whole."""
    kept = np.maximum(np.floor((sizes - removed) / steps + 0.5).astype(np.int64), 1) * steps
    kept = np.where(kept > sizes, sizes // steps * steps, kept)
    return np.asarray(np.where(sizes < steps, 0, sizes - kept), dtype=np.int64)


def _local(sizes: Counts, ratio: float) -> Counts:
    return np.asarray(np.minimum(np.floor(sizes * ratio + 0.5), sizes - 1), dtype=np.int64)


def _shape_key(group: Group, model: Model) -> Hashable:
    """Groups whose weights have the same shapes, cut along the same axes."""
    return group.size, tuple(sorted((model.shape(axis.tensor) or (), axis.dim) for axis in group.weights(model)))


SCOPES: Mapping[str, Callable[[Group, Model], Hashable]] = {
    "local": lambda group, _: group.name,
    "global": lambda _, __: "",
    "isomorphic": _shape_key,
}
"""What is ranked together: each group by itself, all groups, or those of the same shape."""


def _ranking(groups: Sequence[Group], scores: Scores, most: Counts) -> tuple[Counts, NDArray[np.float64]]:
    """(group, score) of the channels that may go, the lowest score first."""
    owner = [np.full(int(most[n]), n) for n in range(len(groups))]
    values = [np.sort(scores[group.name])[: int(most[n])] for n, group in enumerate(groups)]
    number, value = np.concatenate(owner), np.concatenate(values)
    order = np.argsort(value, kind="stable")
    return number[order], value[order]


def _ranked(groups: Sequence[Group], model: Model, scores: Scores, ratio: float, scope: str, steps: Counts) -> Counts:
    """The same share of every ranking goes, as large as saves the multiply-accumulates that `local` would save."""
    sizes = np.asarray([group.size for group in groups])
    cost = PlanCost(model, groups)
    budget = cost(_rounded(_local(sizes, ratio), sizes, steps))
    most = np.minimum(np.ceil(sizes * (1 + ratio) / 2).astype(np.int64), sizes - 1)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        members[SCOPES[scope](group, model)].append(number)
    rankings = []
    for numbers in members.values():
        place, _ = _ranking([groups[n] for n in numbers], scores, most[numbers])
        rankings.append(np.asarray(numbers)[place])

    def counts(share: float) -> Counts:
        removed = sum(np.bincount(r[: round(share * len(r))], minlength=len(groups)) for r in rankings)
        return _rounded(np.asarray(removed, dtype=np.int64), sizes, steps)

    low, high = 0.0, 1.0
    finest = 0.5 / max(len(ranking) for ranking in rankings)
    while high - low > finest:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(counts(middle)) <= budget else (middle, high)
    return counts(high)


def select(
    groups: Sequence[Group], model: Model, scores: Scores, ratio: float, scope: str = "local", multiple: int = 1
) -> dict[str, Indices]:
    """Group name -> the channels that go, sorted; groups that lose none are left out.

    ratio: share of the channels of every group under `local`; under the other scopes as many channels go as save the same
    multiply-accumulates, and no group loses more than half of what `local` would leave it. multiple: every channel count that
    changes stays a multiple of it; groups too small for one multiple stay whole.
    """
    chosen = [group for group in groups if group.name in scores]
    if not chosen:
        return {}
    sizes = np.asarray([group.size for group in chosen])
    steps = np.asarray([step(group, multiple) for group in chosen])
    local = scope == "local"
    removed = _rounded(_local(sizes, ratio), sizes, steps) if local else _ranked(chosen, model, scores, ratio, scope, steps)
    drop = {}
    for group, count in zip(chosen, removed.tolist(), strict=True):
        if count > 0:
            drop[group.name] = np.sort(np.argsort(scores[group.name], kind="stable")[:count])
    return drop
