"""Pruning in rounds: each round prunes and repairs the model that the rounds before have left.

All rounds share the groups of the original and number its channels, so that their plans add up to one plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.config import Settings
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.removal import Removal, put, taken
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.repair.repair import refitted as repaired_constants
from spa_onnx.selection.budgets import UNITS
from spa_onnx.selection.propose import Selection, choose, final_share
from spa_onnx.statistics.calibration import Calibration


def shares(final: float, rounds: int) -> list[float]:
    """Return the share of the original that is kept after each round.

    Every round keeps the same share of the model that it finds.

    Args:
        final: The share that is kept after the last round.
        rounds: The number of rounds.
    """
    return [final ** (number / rounds) for number in range(1, rounds + 1)]


def kept_channels(group: Group, removed: Mapping[str, Indices]) -> Indices:
    """Return the channels of a group that are kept, sorted."""
    return np.setdiff1d(np.arange(group.size), removed.get(group.name, ()))


def narrowed(analysis: Analysis, removed: Mapping[str, Indices], removal: Removal, model: Model) -> Analysis:
    """Return the groups of the original in a pruned model, with renumbered channels.

    Axes of tensors that the pruned model does not have under the same name are left out.

    Args:
        analysis: The groups of the original.
        removed: Group name -> channels of the original that are removed.
        removal: The same as a removal.
        model: The pruned model.
    """
    groups = []
    for group in analysis.groups:
        channels = kept_channels(group, removed)
        renumbered = np.full(group.size + 1, -1)
        renumbered[channels] = np.arange(len(channels))
        owner: dict[Axis, Indices] = {}
        for axis, numbers in group.owner.items():
            stays, shape = np.broadcast_to(removal.stays(axis), numbers.shape), model.shape(axis.tensor)
            left = renumbered[numbers[stays]].reshape(*numbers.shape[:-1], -1)
            if shape is not None and len(shape) > axis.dim and shape[axis.dim] == left.shape[-1]:
                owner[axis] = left
        if owner:
            groups.append(Group(group.name, len(channels), owner, group.pinned, group.cause, group.parts))
    return Analysis.of_groups(model, groups)


def joined(analysis: Analysis, before: Mapping[str, Indices], later: Mapping[str, Indices]) -> dict[str, Indices]:
    """Return two removals as one.

    Args:
        analysis: The groups of the original.
        before: Group name -> channels of the original that are removed first.
        later: Group name -> channels that are removed next, as `narrowed` numbers them.
    """
    removed = dict(before)
    for group in analysis.groups:
        if len(later.get(group.name, ())):
            removed[group.name] = np.setdiff1d(
                np.arange(group.size), np.delete(kept_channels(group, before), later[group.name])
            )
    return removed


def widened(
    model: Model, values: Mapping[str, Array], removal: Removal, before: Mapping[str, Array]
) -> dict[str, Array]:
    """Return new values of constants of a pruned model in the shapes of the original.

    Constants that the original does not have under that name, or that have a name per use there, keep their old values.

    Args:
        model: The original.
        values: Constant of the pruned model -> new value.
        removal: What the pruned model has lost.
        before: Constant of the original -> value that has changed already.
    """
    shared = set(model.source.values())
    result = dict(before)
    for name, value in values.items():
        old = before.get(name, model.constant(name))
        if old is None or name in shared:
            continue
        slices = removal.slices(name)
        if taken(old, slices).shape == value.shape:
            result[name] = put(old, slices, value)
    return result


@dataclass(frozen=True, slots=True)
class Rounds:
    """What pruning in rounds gives.

    Args:
        selection: The channels of the original that are removed by all rounds, and what the last round measured.
        values: New values of constants, in the shapes of the original.
        repair: How they were found, for people.
    """

    selection: Selection
    values: Mapping[str, Array]
    repair: str


def in_rounds(
    analysis: Analysis,
    settings: Settings,
    calibrated: Callable[[Analysis], Calibration | None],
    clock: Callable[[str], None],
) -> Rounds:
    """Prune and repair round by round.

    Args:
        analysis: The groups of the original.
        settings: How to prune; `rounds` says how often.
        calibrated: Collects the statistics of a model; None if nothing needs them.
        clock: Called with the name of each step as it begins.
    """
    values: dict[str, Array] = {}
    selection, model, repair = Selection({}), analysis.model, ""
    for number in range(1, settings.rounds + 1):
        removal = Removal(analysis, selection.removed)
        here = narrowed(analysis, selection.removed, removal, model)
        calibration = calibrated(here)
        clock("score")
        target = _target(analysis, settings, model, number)
        if target:
            goal = replace(settings, ratio=None, target=target)
            is_last = number == settings.rounds
            proposed = choose(here, goal, calibration, clock, must=is_last and not selection.removed)
        else:
            proposed = Selection({})
        clock("rewrite")
        selection = replace(proposed, removed=joined(analysis, selection.removed, proposed.removed))
        if calibration is not None and settings.repair != "none" and proposed.removed:
            clock("repair")
            repair = f"{settings.repair}: fitted on {calibration.describe()} in each of {settings.rounds} rounds"
            values = _repaired(
                analysis, settings, calibration, (here, proposed.removed), (selection.removed, removal), values
            )
        smaller = rewrite(analysis, Plan.removing(selection.removed), values)
        model = Model.of(smaller.proto, analysis.model.inference.dims)
    return Rounds(selection, values, repair)


def _target(analysis: Analysis, settings: Settings, model: Model, number: int) -> str:
    """Return the target of a round for the model that it finds; empty if that meets it already."""
    goal = settings.goal()
    finals = (
        [(settings.unit(), final_share(analysis, settings))]
        if isinstance(goal, float | int)
        else [(target.unit, target.share) for target in goal]
    )
    left = []
    for unit, final in finals:
        whole = UNITS[unit].whole
        share = shares(final, settings.rounds)[number - 1] * whole(analysis.model) / whole(model)
        left += [f"{unit}={share!r}"] if share < 1 else []
    return ",".join(left)


def _repaired(
    analysis: Analysis,
    settings: Settings,
    calibration: Calibration,
    this_round: tuple[Analysis, Mapping[str, Indices]],
    all_rounds: tuple[Mapping[str, Indices], Removal],
    values: Mapping[str, Array],
) -> dict[str, Array]:
    """Return new values of constants after the repair, in the shapes of the original.

    this_round holds the groups that the round found and the channels that it removes; all_rounds the channels of the
    original that all rounds so far remove, and the removal of the rounds before.
    """
    (here, proposed), (removed, before) = this_round, all_rounds
    cut = Removal(here, proposed)
    refit = widened(analysis.model, repaired_constants(calibration, cut, settings), before, values)
    smaller = rewrite(analysis, Plan.removing(removed), refit)
    return widened(analysis.model, calibration.correction(smaller.proto, cut.kept), before, refit)
