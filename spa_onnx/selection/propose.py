"""Propose a plan: score the groups, weight the scores by sensitivity, select channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import UNREAD_CAUSE, Analysis, Group
from spa_onnx.config import Settings
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import fill_missing_scores, score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.perturbation import MASKS_PER_GROUP
from spa_onnx.scoring.registry import Criterion
from spa_onnx.selection.budgets import UNITS, Budget, PlanCost, Spent, saved_per_channel
from spa_onnx.selection.select import Constraints, GroupScores, select
from spa_onnx.selection.sensitivity import sensitivities
from spa_onnx.selection.trials import Trials
from spa_onnx.statistics.calibration import Calibration

FALLBACK = "l1"
"""The criterion that ranks the channels of groups that no linear layer with known inputs reads."""

HELPING_OPTIONS = {"--width": "only need --width", "kept by --attention": "are kept by --attention"}
"""Part of the reason of a pin -> what the user can do about it."""

LEEWAY = 2.0
"""With uncertain samples no group loses more than this many times the share that `local` would remove."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The channels that are removed, and how they were selected. Reports read it.

    Args:
        removed: Group name -> channels that are removed, sorted.
        scores: Group name -> score of each channel, float64 (channels,), as they were ranked.
        sensitivities: Group name -> relative error of the outputs per unit of loss, divided by the median; empty if it
        was
            not measured.
        costs: Group name -> what the first channel of the group saves, in the unit that is saved.
        spent: What the plan spends of each limit.
        stopped: Why no more channels are removed, as a sentence.
    """

    removed: Mapping[str, Indices]
    scores: GroupScores = field(default_factory=dict)
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    spent: tuple[Spent, ...] = ()
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Scores of groups, and the weights that were applied to them."""

    scores: dict[str, NDArray[np.float64]]
    sensitivities: dict[str, float]


def choose(
    analysis: Analysis,
    settings: Settings,
    calibration: Calibration | None = None,
    clock: Callable[[str], None] = lambda _: None,
    *,
    must: bool = True,
) -> Selection:
    """Score the groups and select the channels that are removed.

    Args:
        analysis: The groups of the model.
        settings: How to prune.
        calibration: Statistics, for criteria that need them.
        clock: Called with the name of each step as it begins.
        must: Whether a selection of no channels is refused.

    Raises:
        RefusedError: No channel can be removed, or none would be and one must.
    """
    groups = analysis.prunable()
    if not groups:
        raise RefusedError(why_nothing_is_prunable(analysis, settings))
    ranking = _ranked(analysis, groups, settings, calibration, clock)
    clock("select")
    leeway = LEEWAY if calibration is not None and calibration.uncertain else np.inf
    constraints = Constraints(settings.scope, lambda name: settings.of_group(name).multiple, leeway)
    removed = select(groups, analysis.model, ranking.scores, settings.goal(), constraints)
    if not removed and must:
        largest = max(group.size for group in groups)
        goal = settings.target or f"ratio {settings.ratio}"
        raise RefusedError(
            f"{goal} with multiples of {settings.multiple} removes no channel: the largest of {len(groups)} groups has "
            f"{largest}; remove more, or use a smaller multiple"
        )
    return _selection(analysis, groups, settings, ranking, removed)


def _ranked(
    analysis: Analysis,
    groups: Sequence[Group],
    settings: Settings,
    calibration: Calibration | None,
    clock: Callable[[str], None],
) -> _Ranking:
    """Score the groups, and make losses comparable across them."""
    criterion = CRITERIA[settings.criterion]
    context = _context(analysis, groups, settings, criterion, calibration)
    scores = score_groups(groups, criterion, context, settings.aggregate, settings.normalise)
    measured: dict[str, float] = {}
    scored = [group for group in groups if group.name in scores]
    if criterion.loss and calibration is not None and settings.scope != "local" and scored:
        clock("weigh")
        saved = np.maximum(saved_per_channel(analysis.model, scored, settings.unit()), 1.0)
        weights = np.ones(len(scored))
        if context.trial is None:
            weights = sensitivities(analysis, scored, scores, calibration)
            measured = {group.name: weight for group, weight in zip(scored, weights.tolist(), strict=True)}
        for group, weight in zip(scored, (weights / saved).tolist(), strict=True):
            scores[group.name] = scores[group.name] * weight
    if criterion.needs_statistics:
        scores = fill_missing_scores(scores, score_groups(groups, CRITERIA[FALLBACK], context))
    if not scores:
        raise RefusedError(
            f"criterion {settings.criterion} knows nothing about any of the {len(groups)} groups; use --criterion l1"
        )
    return _Ranking(scores, measured)


def _context(
    analysis: Analysis,
    groups: Sequence[Group],
    settings: Settings,
    criterion: Criterion,
    calibration: Calibration | None,
) -> ScoringContext:
    """Return what the criterion can use."""
    if calibration is None:
        return ScoringContext(analysis.model, settings.seed)
    return ScoringContext(
        analysis.model,
        settings.seed,
        calibration.layers,
        calibration.statistics,
        calibration.regularisation,
        _trial(analysis, groups, calibration) if "trials" in criterion.needs else None,
    )


def _trial(
    analysis: Analysis, groups: Sequence[Group], calibration: Calibration
) -> Callable[[Group, Indices], float] | None:
    """Return `ScoringContext.trial`; None if onnxruntime cannot run the model on the samples."""
    try:
        trials = Trials(analysis, groups, calibration, MASKS_PER_GROUP * len(groups))
    except RefusedError:
        return None
    return lambda group, channels: trials.error({group.name: channels}, refits=False)


def _selection(
    analysis: Analysis,
    groups: Sequence[Group],
    settings: Settings,
    ranking: _Ranking,
    removed: Mapping[str, Indices],
) -> Selection:
    """Return the selection that reports read."""
    model, unit = analysis.model, settings.unit()
    counts = np.asarray([len(removed.get(group.name, ())) for group in groups], dtype=np.int64)
    goal = settings.goal()
    if isinstance(goal, float | int):
        budget = Budget.of_plan(counts, model, groups)
        stopped = f"ratio {goal:g} of the channels of every group, or channels that save as many multiply-accumulates"
    else:
        budget = Budget.of(goal, model, groups)
        shares = ", ".join(f"{s.unit} {s.spent / s.whole:.4f} of {s.allowed / s.whole:g}" for s in budget.spent(counts))
        stopped = f"the budget is met: {shares}"
    costs = saved_per_channel(model, groups, unit).tolist()
    return Selection(
        removed,
        ranking.scores,
        ranking.sensitivities,
        {group.name: cost for group, cost in zip(groups, costs, strict=True)},
        budget.spent(counts),
        stopped,
    )


def final_share(analysis: Analysis, settings: Settings) -> float:
    """Return the share of the saved unit that is kept in the end."""
    goal = settings.goal()
    if not isinstance(goal, float | int):
        return goal[0].share
    groups = analysis.prunable()
    if not groups:
        raise RefusedError(why_nothing_is_prunable(analysis, settings))
    flat = {group.name: np.zeros(group.size) for group in groups}
    even = select(groups, analysis.model, flat, goal, Constraints())
    removed = np.asarray([len(even.get(group.name, ())) for group in groups])
    return float(PlanCost(analysis.model, groups)(removed) / UNITS["macs"].whole(analysis.model))


def why_nothing_is_prunable(analysis: Analysis, settings: Settings) -> str:
    """Return the reason why no group can lose channels."""
    pinned = sorted(analysis.pinned(), key=lambda group: (group.cause == UNREAD_CAUSE, -group.size))
    if settings.exclude and any("excluded by" in group.pinned for group in pinned):
        return f"nothing to prune: --exclude {' '.join(settings.exclude)} leaves no group free; exclude less"
    if not pinned:
        return "nothing to prune: the model has no float weights with channels; see spa-onnx groups MODEL"
    advice = [
        f"{count} of {len(pinned)} groups {what}"
        for cause, what in HELPING_OPTIONS.items()
        if (count := sum(cause in group.pinned for group in pinned))
    ]
    largest = pinned[0]
    reason = f"The largest, {largest.name} ({largest.size} channels): {largest.pinned}"
    return (
        f"nothing to prune: all {len(pinned)} groups with weights are pinned. {'; '.join((*advice, reason))}. "
        "See spa-onnx groups MODEL, and docs/new_rule.md to add a rule"
    )
