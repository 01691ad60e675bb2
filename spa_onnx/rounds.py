"""Pruning in rounds: each round prunes and repairs the result of the previous one.

All rounds use the groups and the channel numbers of the original, so that their plans can be joined to one plan.
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

    Every round keeps the same share of the model that it starts with.

    Args:
        final: The share that is kept after the last round.
        rounds: The number of rounds.

    Returns:
        One share per round, falling; the last one is `final`.
    """
    return [final ** (number / rounds) for number in range(1, rounds + 1)]


def kept_channels(group: Group, removed: Mapping[str, Indices]) -> Indices:
    """Return the kept channels of a group, sorted."""
    return np.setdiff1d(np.arange(group.size), removed.get(group.name, ()))


def narrowed(analysis: Analysis, removed: Mapping[str, Indices], removal: Removal, model: Model) -> Analysis:
    """Return the groups of the original in a pruned model, with channels numbered anew.

    Axes of tensors that the pruned model does not have under the same name are left out.

    Args:
        analysis: The groups of the original.
        removed: Group name -> channels of the original that are removed.
        removal: The same channels as a removal.
        model: The pruned model.
    """
    groups = []
    for group in analysis.groups:
        channels = kept_channels(group, removed)
        renumbered = np.full(group.size + 1, -1)
        renumbered[channels] = np.arange(len(channels))
        owner: dict[Axis, Indices] = {}
        for axis, numbers in group.owner.items():
            is_kept, shape = np.broadcast_to(removal.stays(axis), numbers.shape), model.shape(axis.tensor)
            kept = renumbered[numbers[is_kept]].reshape(*numbers.shape[:-1], -1)
            if shape is not None and len(shape) > axis.dim and shape[axis.dim] == kept.shape[-1]:
                owner[axis] = kept
        if owner:
            groups.append(Group(group.name, len(channels), owner, group.pinned, group.cause, group.parts))
    return Analysis.of_groups(model, groups)


def joined(analysis: Analysis, earlier: Mapping[str, Indices], later: Mapping[str, Indices]) -> dict[str, Indices]:
    """Join two removals.

    Args:
        analysis: The groups of the original.
        earlier: Group name -> channels of the original that are removed first.
        later: Group name -> channels that are removed next, as `narrowed` numbers them.

    Returns:
        Group name -> channels of the original that are removed by both, sorted.
    """
    removed = dict(earlier)
    for group in analysis.groups:
        if len(later.get(group.name, ())):
            removed[group.name] = np.setdiff1d(
                np.arange(group.size), np.delete(kept_channels(group, earlier), later[group.name])
            )
    return removed


def widened(
    model: Model, values: Mapping[str, Array], removal: Removal, earlier: Mapping[str, Array]
) -> dict[str, Array]:
    """Return new values of a pruned model's constants in the shapes of the original.

    Constants that the original does not have under the same name, and those that have a name for each use there, keep
    their values.

    Args:
        model: The original.
        values: Constant of the pruned model -> new value.
        removal: The indices that were removed from the original.
        earlier: Constant of the original -> value from earlier repairs.

    Returns:
        Constant of the original -> value, including those of `earlier`.
    """
    shared = set(model.source.values())
    result = dict(earlier)
    for name, value in values.items():
        old = earlier.get(name, model.constant(name))
        if old is None or name in shared:
            continue
        slices = removal.slices(name)
        if taken(old, slices).shape == value.shape:
            result[name] = put(old, slices, value)
    return result


@dataclass(frozen=True, slots=True)
class Rounds:
    """The result of pruning in rounds.

    Args:
        selection: The channels of the original that all rounds remove, with the measurements of the last round.
        values: Constant of the original -> repaired value, in the original's shape.
        repair: A description of the repair, for people.
    """

    selection: Selection
    values: Mapping[str, Array]
    repair: str


def in_rounds(
    analysis: Analysis,
    settings: Settings,
    collect: Callable[[Analysis], Calibration | None],
    clock: Callable[[str], None],
) -> Rounds:
    """Prune and repair in rounds.

    Args:
        analysis: The groups of the original.
        settings: How to prune; `rounds` is the number of rounds.
        collect: Returns the statistics of the model of an analysis; None if nothing needs them.
        clock: Called with the name of each step as it begins.

    Raises:
        RefusedError: No channel can be removed, or all rounds together would remove none.
    """
    values: dict[str, Array] = {}
    selection, model, repair = Selection({}), analysis.model, ""
    for number in range(1, settings.rounds + 1):
        removal = Removal(analysis, selection.removed)
        current = narrowed(analysis, selection.removed, removal, model)
        calibration = collect(current)
        clock("score")
        target = _target(analysis, settings, model, number)
        if target:
            goal = replace(settings, ratio=None, target=target)
            is_last = number == settings.rounds
            proposed = choose(current, goal, calibration, clock, must=is_last and not selection.removed)
        else:
            proposed = Selection({})
        clock("rewrite")
        selection = replace(proposed, removed=joined(analysis, selection.removed, proposed.removed))
        if calibration is not None and settings.repair != "none" and proposed.removed:
            clock("repair")
            repair = f"{settings.repair}: fitted on {calibration.describe()} in each of {settings.rounds} rounds"
            values = _repaired(
                analysis, settings, calibration, (current, proposed.removed), (selection.removed, removal), values
            )
        smaller = rewrite(analysis, Plan.removing(selection.removed), values)
        model = Model.of(smaller.proto, analysis.model.inference.dims)
    return Rounds(selection, values, repair)


def _target(analysis: Analysis, settings: Settings, model: Model, number: int) -> str:
    """Return the target of a round relative to the model that it starts with; empty if that model meets it already."""
    goal = settings.goal()
    finals = (
        [(settings.unit(), final_share(analysis, settings))]
        if isinstance(goal, float | int)
        else [(target.unit, target.share) for target in goal]
    )
    targets = []
    for unit, final in finals:
        whole = UNITS[unit].whole
        share = shares(final, settings.rounds)[number - 1] * whole(analysis.model) / whole(model)
        targets += [f"{unit}={share!r}"] if share < 1 else []
    return ",".join(targets)


def _repaired(
    analysis: Analysis,
    settings: Settings,
    calibration: Calibration,
    this_round: tuple[Analysis, Mapping[str, Indices]],
    all_rounds: tuple[Mapping[str, Indices], Removal],
    values: Mapping[str, Array],
) -> dict[str, Array]:
    """Return the values of constants after the repair of a round, in the shapes of the original.

    this_round: The groups of the model that the round starts with, and the channels that the round removes.
    all_rounds: The channels of the original that are removed including this round, and the removal before it.
    """
    (current, proposed), (removed, earlier) = this_round, all_rounds
    removal = Removal(current, proposed)
    refitted = widened(analysis.model, repaired_constants(calibration, removal, settings), earlier, values)
    smaller = rewrite(analysis, Plan.removing(removed), refitted)
    return widened(analysis.model, calibration.correction(smaller.proto, removal.kept), earlier, refitted)
