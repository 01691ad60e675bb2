"""Scores and a ratio -> which channels go. No group is ever emptied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.config import Target
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.model.model import Model
from spa_onnx.selection.budgets import UNITS, PlanCost

Counts = NDArray[np.int64]
Scores = Mapping[str, NDArray[np.float64]]


def step(group: Group, multiple: int) -> int:
    """The smallest number of channels by which every weight axis of the group changes by a multiple of `multiple` indices."""
    owned = {int(group.share(axis)) for axis in group.owner}
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


CLOSE = 0.01
"""A budget counts as used up where less than this share of it is left."""


class _Choice:
    """How many channels each group could lose: as a function of the ratio under `local`, of a share of the rankings else."""

    def __init__(self, groups: Sequence[Group], scores: Scores, steps: Counts) -> None:
        self.groups, self.scores, self.steps = groups, scores, steps
        self.sizes: Counts = np.asarray([group.size for group in groups])

    def local(self, ratio: float) -> Counts:
        """The same share of every group."""
        return _rounded(_local(self.sizes, ratio), self.sizes, self.steps)

    def ranked(self, model: Model, scope: str, most_share: float) -> tuple[Callable[[float], Counts], float]:
        """(channels that go when a share of every ranking goes, the smallest share that makes a difference).

        most_share: of its channels that a group may lose.
        """
        most = np.minimum(np.ceil(self.sizes * most_share).astype(np.int64), self.sizes - 1)
        members: dict[Hashable, list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            members[SCOPES[scope](group, model)].append(number)
        rankings = []
        for numbers in members.values():
            place, _ = _ranking([self.groups[n] for n in numbers], self.scores, most[numbers])
            rankings.append(np.asarray(numbers)[place])

        def counts(share: float) -> Counts:
            removed = sum(np.bincount(r[: round(share * len(r))], minlength=len(self.groups)) for r in rankings)
            return _rounded(np.asarray(removed, dtype=np.int64), self.sizes, self.steps)

        return counts, 0.5 / max(len(ranking) for ranking in rankings)

    def closest(
        self, counts: Callable[[float], Counts], finest: float, cost: PlanCost, budget: float
    ) -> tuple[float, Counts]:
        """(share, counts): the least that goes for the budget to be met, the groups at the brink one after the other."""
        low, high = 0.0, 1.0
        while high - low > finest:
            middle = (low + high) / 2
            low, high = (low, middle) if cost(counts(middle)) <= budget else (middle, high)
        below, removed = counts(low), counts(high)
        scores = {n: self._last_score(n, removed) for n in np.flatnonzero(removed > below).tolist()}
        for number in sorted(scores, key=scores.__getitem__, reverse=True):
            fewer = removed.copy()
            fewer[number] = below[number]
            removed = fewer if cost(fewer) <= budget else removed
        return high, removed

    def filled(self, removed: Counts, cost: PlanCost, budget: float) -> Counts:
        """Channels put back, step by step, as long as more than CLOSE of the budget is left and one fits; or exchanged for cheaper ones."""
        while cost(removed) < (1 - CLOSE) * budget:
            back = next((fewer for fewer in self._one_put_back(removed) if cost(fewer) <= budget), None)
            if back is None:
                exchanges = (more for fewer in self._one_put_back(removed) for more in self._one_taken(fewer))
                return next((more for more in exchanges if (1 - CLOSE) * budget <= cost(more) <= budget), removed)
            removed = back
        return removed

    def _last_score(self, number: int, removed: Counts) -> float:
        """The score of the last channel that went."""
        return float(np.sort(self.scores[self.groups[number].name])[removed[number] - 1])

    def _one_taken(self, removed: Counts) -> Iterator[Counts]:
        """One step of channels more: first of the group whose next channel scores lowest."""
        able = np.flatnonzero(self.sizes - removed >= 2 * self.steps).tolist()
        following = {n: float(np.sort(self.scores[self.groups[n].name])[removed[n]]) for n in able}
        for number in sorted(following, key=following.__getitem__):
            yield removed + np.eye(1, len(removed), number, dtype=np.int64)[0] * self.steps[number]

    def _one_put_back(self, removed: Counts) -> Iterator[Counts]:
        """One step of channels fewer: first of the group whose last channel that went scores highest."""
        last = {n: self._last_score(n, removed) for n in np.flatnonzero(removed).tolist()}
        for number in sorted(last, key=last.__getitem__, reverse=True):
            yield removed - np.eye(1, len(removed), number, dtype=np.int64)[0] * np.minimum(
                self.steps[number], removed[number]
            )


def select(
    groups: Sequence[Group],
    model: Model,
    scores: Scores,
    goal: float | Target,
    scope: str = "local",
    multiple: int = 1,
    *,
    leeway: float = np.inf,
) -> dict[str, Indices]:
    """Group name -> the channels that go, sorted; groups that lose none are left out.

    goal: share of the channels of every group under `local`; under the other scopes as many channels go as save the same
    multiply-accumulates, and no group loses more than half of what `local` would leave it. Or a target, met from below as closely as
    whole channels allow. multiple: every channel count that changes stays a multiple of it; groups too small for one multiple stay whole.
    leeway: no group loses more than so many times the share that `local` takes, at least 1.
    Raises RefusedError where the target is out of reach.
    """
    whole = [group for group in groups if group.name in scores]
    if not whole:
        return {}
    ranks = [group.ranked(scores[group.name]) for group in whole]
    scores = {group.name: scores[group.name][rank].mean(axis=1) for group, rank in zip(whole, ranks, strict=True)}
    chosen = [by_rank(group, rank) if group.parts > 1 else group for group, rank in zip(whole, ranks, strict=True)]
    choice = _Choice(chosen, scores, np.asarray([step(group, multiple) for group in chosen]))
    unit = goal.unit if isinstance(goal, Target) else "macs"
    cost = PlanCost(model, chosen, unit)
    if isinstance(goal, Target):
        budget = goal.share * UNITS[unit].whole(model)
        _check_reach(choice, cost, goal, UNITS[unit].whole(model))
        if cost(choice.local(0.0)) <= budget:
            return {}
        ratio, removed = choice.closest(choice.local, 0.5 / int(choice.sizes.max()), cost, budget)
    else:
        ratio, removed = goal, choice.local(goal)
        budget = cost(removed)
    if scope != "local":
        _, removed = choice.closest(*choice.ranked(model, scope, min((1 + ratio) / 2, leeway * ratio)), cost, budget)
    if isinstance(goal, Target):
        removed = choice.filled(removed, cost, budget)
    drop = {}
    for group, rank, count in zip(chosen, ranks, removed.tolist(), strict=True):
        if count > 0:
            drop[group.name] = np.sort(rank[:count], axis=None)
    return drop


def by_rank(group: Group, ranked: Indices) -> Group:
    """The group with those channels as one that have the same rank, each in its part. ranked: (ranks, parts)."""
    rank = np.full(group.size + 1, -1)
    rank[ranked] = np.arange(len(ranked))[:, None]
    return replace(group, size=len(ranked), owner={axis: rank[owner] for axis, owner in group.owner.items()}, parts=1)


def _check_reach(choice: _Choice, cost: PlanCost, goal: Target, whole: float) -> None:
    least = cost(choice.local(1.0)) / whole
    if least > goal.share:
        raise RefusedError(
            f"target {goal.unit}={goal.share:g} is out of reach: with one step of channels left in each of {len(choice.groups)} groups "
            f"{least:.3f} would be kept, which is the nearest"
        )
