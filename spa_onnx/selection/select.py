"""Select channels: from scores and a ratio or a budget to the channels that are removed. No group is ever emptied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.config import Target
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.model.model import Model
from spa_onnx.selection.budgets import CLOSE, Budget, Counts

GroupScores = Mapping[str, NDArray[np.float64]]
"""Group name -> score of each channel, float64 (channels,)."""


def step(group: Group, multiple: int) -> int:
    """Return the smallest number of channels by which each weight axis of a group changes by a multiple of indices."""
    owned = {int(group.share(axis)) for axis in group.owner}
    return lcm(*(multiple // gcd(multiple, count) for count in owned if count))


def _rounded(removed: Counts, sizes: Counts, steps: Counts) -> Counts:
    """Return the numbers rounded so that kept channels are a multiple of `steps`; groups below one step stay whole."""
    kept = np.maximum(np.floor((sizes - removed) / steps + 0.5).astype(np.int64), 1) * steps
    kept = np.where(kept > sizes, sizes // steps * steps, kept)
    return np.asarray(np.where(sizes < steps, 0, sizes - kept), dtype=np.int64)


def _same_share(sizes: Counts, ratio: float) -> Counts:
    """Return the numbers of channels for the same share of every group."""
    return np.asarray(np.minimum(np.floor(sizes * ratio + 0.5), sizes - 1), dtype=np.int64)


def _shape_key(group: Group, model: Model) -> Hashable:
    """Return the key that groups share whose weights have the same shapes and lose indices along the same axes."""
    return group.size, tuple(sorted((model.shape(axis.tensor) or (), axis.dim) for axis in group.weights(model)))


SCOPES: Mapping[str, Callable[[Group, Model], Hashable]] = {
    "local": lambda group, _: group.name,
    "global": lambda _, __: "",
    "isomorphic": _shape_key,
}
"""The groups that are ranked together: each group by itself, all groups, or groups of the same shape."""


def _ranking(groups: Sequence[Group], scores: GroupScores, most: Counts) -> Counts:
    """Return the group of each channel that may be removed, the lowest score first.

    most: the maximum number of channels per group.
    """
    owner = np.concatenate([np.full(int(most[n]), n) for n in range(len(groups))])
    value = np.concatenate([np.sort(scores[group.name])[: int(most[n])] for n, group in enumerate(groups)])
    return owner[np.argsort(value, kind="stable")]


class _Candidates:
    """Groups that can lose channels, and their scores.

    Under `local` the number of channels per group is a function of the ratio, otherwise of a share of the rankings.
    """

    def __init__(self, groups: Sequence[Group], scores: GroupScores, steps: Counts) -> None:
        self.groups, self.scores, self.steps = groups, scores, steps
        self.sizes: Counts = np.asarray([group.size for group in groups])

    def local(self, ratio: float) -> Counts:
        """Return the same share of every group."""
        return _rounded(_same_share(self.sizes, ratio), self.sizes, self.steps)

    def ranked(self, model: Model, scope: str, most_share: float) -> tuple[Callable[[float], Counts], float]:
        """Return a function and the smallest share at which its result changes.

        The function maps a share of every ranking to the numbers of channels that are removed.

        Args:
            model: The model.
            scope: A name of SCOPES.
            most_share: The share of its channels that a group may lose.
        """
        most = np.minimum(np.ceil(self.sizes * most_share).astype(np.int64), self.sizes - 1)
        members: dict[Hashable, list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            members[SCOPES[scope](group, model)].append(number)
        rankings = [
            np.asarray(numbers)[_ranking([self.groups[n] for n in numbers], self.scores, most[numbers])]
            for numbers in members.values()
        ]

        def counts(share: float) -> Counts:
            """Return the numbers of channels for a share of every ranking."""
            removed = sum(np.bincount(r[: round(share * len(r))], minlength=len(self.groups)) for r in rankings)
            return _rounded(np.asarray(removed, dtype=np.int64), self.sizes, self.steps)

        return counts, 0.5 / max(len(ranking) for ranking in rankings)

    def closest(self, counts: Callable[[float], Counts], finest: float, budget: Budget) -> tuple[float, Counts]:
        """Return (share, numbers) of the least removal that meets the budget; the last groups are cut one by one."""
        low, high = 0.0, 1.0
        while high - low > finest:
            middle = (low + high) / 2
            low, high = (low, middle) if budget.is_met(counts(middle)) else (middle, high)
        below, removed = counts(low), counts(high)
        scores = {n: self._last_score(n, removed) for n in np.flatnonzero(removed > below).tolist()}
        for number in sorted(scores, key=scores.__getitem__, reverse=True):
            fewer = removed.copy()
            fewer[number] = below[number]
            removed = fewer if budget.is_met(fewer) else removed
        return high, removed

    def filled(self, removed: Counts, budget: Budget) -> Counts:
        """Put channels back, step by step, while the budget allows it, or exchange some for cheaper ones."""
        while not budget.is_used_up(removed):
            back = next((fewer for fewer in self._one_put_back(removed) if budget.is_met(fewer)), None)
            if back is None:
                exchanges = (more for fewer in self._one_put_back(removed) for more in self._one_taken(fewer))
                close = (more for more in exchanges if budget.is_met(more) and budget.is_used_up(more))
                return next(close, removed)
            removed = back
        return removed

    def nearest(self, removed: Counts, budget: Budget) -> Counts:
        """Return the numbers, or those with one step put back, whichever is nearer to the budget's first limit."""
        limit = budget.limits[0]
        options = [removed, *self._one_put_back(removed)]
        return min(options, key=lambda counts: abs(limit.cost(counts) - limit.allowed))

    def _last_score(self, number: int, removed: Counts) -> float:
        """Return the score of the last channel that a group loses."""
        return float(np.sort(self.scores[self.groups[number].name])[removed[number] - 1])

    def _one_taken(self, removed: Counts) -> Iterator[Counts]:
        """Yield the numbers with one more step of channels removed, the group with the lowest next score first."""
        able = np.flatnonzero(self.sizes - removed >= 2 * self.steps).tolist()
        following = {n: float(np.sort(self.scores[self.groups[n].name])[removed[n]]) for n in able}
        for number in sorted(following, key=following.__getitem__):
            yield removed + np.eye(1, len(removed), number, dtype=np.int64)[0] * self.steps[number]

    def _one_put_back(self, removed: Counts) -> Iterator[Counts]:
        """Yield the numbers with one step of channels less removed, the group with the highest last score first."""
        last = {n: self._last_score(n, removed) for n in np.flatnonzero(removed).tolist()}
        for number in sorted(last, key=last.__getitem__, reverse=True):
            fewer = np.minimum(self.steps[number], removed[number])
            yield removed - np.eye(1, len(removed), number, dtype=np.int64)[0] * fewer


@dataclass(frozen=True, slots=True)
class Constraints:
    """How channels are ranked, and what limits a group.

    Args:
        scope: A name of SCOPES.
        multiple: Every channel count that changes stays a multiple of it, or of what it returns for the name of a
            group. A group that is too small for one multiple stays whole.
        leeway: No group loses more than this many times the share that `local` takes, at least 1.
    """

    scope: str = "local"
    multiple: int | Callable[[str], int] = 1
    leeway: float = np.inf

    def multiple_of(self, group: str) -> int:
        """Return the multiple for a group, by its name."""
        return self.multiple(group) if callable(self.multiple) else self.multiple


def select(
    groups: Sequence[Group],
    model: Model,
    scores: GroupScores,
    goal: float | Sequence[Target],
    constraints: Constraints = Constraints(),
) -> dict[str, Indices]:
    """Select the channels that are removed.

    Args:
        groups: The groups that can lose channels.
        model: The model.
        scores: The scores; a group without scores keeps its channels.
        goal: A share of the channels, or targets. Under `local` every group loses the share. Under the other scopes as
            many channels are removed as save the same multiply-accumulates, and no group loses more than half of what
            `local` would leave it. With multiples the plan comes as near as it can to what the share alone would save.
            Targets are met from below, as closely as whole channels allow.
        constraints: How channels are ranked, and what limits a group.

    Returns:
        Group name -> channels that are removed, sorted; groups that lose none are left out.

    Raises:
        RefusedError: A target is out of reach.
    """
    scored = [group for group in groups if group.name in scores]
    if not scored:
        return {}
    ranks = [group.ranked(scores[group.name]) for group in scored]
    scores = {group.name: scores[group.name][rank].mean(axis=1) for group, rank in zip(scored, ranks, strict=True)}
    chosen = [by_rank(group, rank) if group.parts > 1 else group for group, rank in zip(scored, ranks, strict=True)]
    steps = [step(group, constraints.multiple_of(group.name)) for group in chosen]
    candidates = _Candidates(chosen, scores, np.asarray(steps))
    is_ratio, is_rounded = isinstance(goal, float | int), max(steps) > 1
    finest = 0.5 / int(candidates.sizes.max())
    if isinstance(goal, float | int):
        ratio, removed = float(goal), candidates.local(goal)
        budget = Budget.of_plan(_same_share(candidates.sizes, goal), model, chosen)
        if is_rounded:
            _, removed = candidates.closest(candidates.local, finest, budget)
    else:
        budget = Budget.of(goal, model, chosen)
        _check_reach(candidates, budget)
        if budget.is_met(candidates.local(0.0)):
            return {}
        ratio, removed = candidates.closest(candidates.local, finest, budget)
    if constraints.scope != "local":
        most_share = min((1 + ratio) / 2, constraints.leeway * ratio)
        _, removed = candidates.closest(*candidates.ranked(model, constraints.scope, most_share), budget)
    if is_rounded or not is_ratio:
        removed = candidates.filled(removed, budget)
    if is_rounded and is_ratio:
        removed = candidates.nearest(removed, budget)
    return {
        group.name: np.sort(rank[:count], axis=None)
        for group, rank, count in zip(chosen, ranks, removed.tolist(), strict=True)
        if count > 0
    }


def by_rank(group: Group, ranked: Indices) -> Group:
    """Return the group with channels of the same rank, one of each part, as one channel. ranked: (ranks, parts)."""
    rank = np.full(group.size + 1, -1)
    rank[ranked] = np.arange(len(ranked))[:, None]
    owner = {axis: rank[numbers] for axis, numbers in group.owner.items()}
    return replace(group, size=len(ranked), owner=owner, parts=1)


def _check_reach(candidates: _Candidates, budget: Budget) -> None:
    exceeded = budget.out_of_reach(candidates.local(1.0))
    if exceeded is not None:
        raise RefusedError(
            f"target {exceeded.unit}={exceeded.allowed / exceeded.whole:g} is out of reach: "
            f"with one step of channels left in each of {len(candidates.groups)} groups "
            f"{exceeded.spent / exceeded.whole:.3f} would be kept, which is the nearest"
        )


__all__ = ["CLOSE", "SCOPES", "Counts", "GroupScores", "by_rank", "select", "step"]
