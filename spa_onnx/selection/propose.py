"""Which channels go: score -> weigh -> select."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spa_onnx.analysis.groups import UNREAD, Analysis, Group
from spa_onnx.config import Settings, Target
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.operators.macs import macs
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import fill_in, score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.perturbation import MASKS
from spa_onnx.selection.budgets import PlanCost, per_channel
from spa_onnx.selection.select import select
from spa_onnx.selection.sensitivity import sensitivities
from spa_onnx.selection.trials import Trials
from spa_onnx.statistics.calibration import Calibration

FALLBACK = "l1"
"""Orders the channels of groups that no product with known inputs reads."""

LEEWAY = 2.0
"""On uncertain samples no group loses more than so many times what all would lose alike: they stir deep layers too little."""


def choose(
    analysis: Analysis,
    settings: Settings,
    known: Calibration | None = None,
    clock: Callable[[str], None] = lambda _: None,
    *,
    must: bool = True,
) -> dict[str, Indices]:
    """Score and select. Raises RefusedError, with the reason, where nothing can go, or nothing would and something must.

    clock: called with the name of each step as it begins.
    """
    groups = analysis.prunable()
    if not groups:
        raise RefusedError(nothing(analysis, settings))
    criterion = CRITERIA[settings.criterion]
    context = ScoringContext(analysis.model, settings.seed)
    if known is not None:
        trial = _trial(analysis, groups, known) if "trials" in criterion.needs else None
        context = ScoringContext(
            analysis.model, settings.seed, known.layers, known.statistics, known.regularisation, trial
        )
    scores = score_groups(groups, criterion, context, settings.aggregate, settings.normalise)
    if criterion.loss:
        scored = [group for group in groups if group.name in scores]
        if known is not None and settings.scope != "local" and scored:
            clock("weigh")
            saved = np.maximum(per_channel(analysis.model, scored, settings.unit()), 1.0)
            weights = (sensitivities(analysis, scored, scores, known) if context.trial is None else 1.0) / saved
            scores |= {
                group.name: scores[group.name] * weight for group, weight in zip(scored, weights.tolist(), strict=True)
            }
    if criterion.needs_statistics:
        scores = fill_in(scores, score_groups(groups, CRITERIA[FALLBACK], context))
    if not scores:
        raise RefusedError(
            f"criterion {settings.criterion} knows nothing about any of the {len(groups)} groups; use --criterion l1"
        )
    clock("select")
    leeway = LEEWAY if known is not None and known.uncertain else np.inf
    drop = select(groups, analysis.model, scores, settings.goal(), settings.scope, settings.multiple, leeway=leeway)
    if not drop and must:
        largest = max(group.size for group in groups)
        goal = settings.target or f"ratio {settings.ratio}"
        raise RefusedError(
            f"{goal} with multiples of {settings.multiple} removes no channel: the largest of {len(groups)} groups has "
            f"{largest}; remove more, or use a smaller multiple"
        )
    return drop


def _trial(analysis: Analysis, groups: Sequence[Group], known: Calibration) -> Callable[[Group, Indices], float] | None:
    """What `ScoringContext.trial` is; None where onnxruntime cannot run the model on the samples."""
    try:
        trials = Trials(analysis, groups, known, MASKS * len(groups))
    except RefusedError:
        return None
    return lambda group, channels: trials.error({group.name: channels}, refits=False)


def share_in_the_end(analysis: Analysis, settings: Settings) -> float:
    """What is kept in the end, of the unit that counts."""
    goal = settings.goal()
    if isinstance(goal, Target):
        return goal.share
    groups = analysis.prunable()
    if not groups:
        raise RefusedError(nothing(analysis, settings))
    even = select(
        groups, analysis.model, {group.name: np.zeros(group.size) for group in groups}, goal, "local", settings.multiple
    )
    removed = np.asarray([len(even.get(group.name, ())) for group in groups])
    return float(PlanCost(analysis.model, groups)(removed) / macs(analysis.model))


def nothing(analysis: Analysis, settings: Settings) -> str:
    """Why nothing can go."""
    pinned = sorted(analysis.pinned(), key=lambda group: (group.cause == UNREAD, -group.size))
    if settings.exclude and any("excluded by" in group.pinned for group in pinned):
        return f"nothing to prune: --exclude {' '.join(settings.exclude)} leaves no group free; exclude less"
    if not pinned:
        return "nothing to prune: the model has no float weights with channels; see spa-onnx groups MODEL"
    first = pinned[0]
    return (
        f"nothing to prune: all {len(pinned)} groups with weights are pinned. The largest, {first.name} ({first.size} channels): "
        f"{first.pinned}. See spa-onnx groups MODEL, and docs/new_rule.md to add a rule"
    )
