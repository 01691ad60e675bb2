"""Pruning in rounds: what is left after some is looked at again, and what goes next is prompt in channels of the original.

All rounds share the groups of the original, so their plans compose by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import networkx as nx
import numpy as np

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.config import Settings
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.removal import Removal, put, taken
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.repair.repair import refitted
from spa_onnx.selection.budgets import UNITS
from spa_onnx.selection.propose import choose, share_in_the_end
from spa_onnx.statistics.calibration import Calibration


def shares(final: float, rounds: int) -> list[float]:
    """What each round keeps of the original: every one the same share of what it finds, and the last `final`."""
    return [final ** (number / rounds) for number in range(1, rounds + 1)]


def left_over(group: Group, drop: Mapping[str, Indices]) -> Indices:
    """The channels of a group that a plan leaves, sorted."""
    return np.setdiff1d(np.arange(group.size), drop.get(group.name, ()))


def narrowed(analysis: Analysis, drop: Mapping[str, Indices], removal: Removal, model: Model) -> Analysis:
    """The groups of the original as they are in the model that `drop` has left; the channels are renumbered.

    removal: of the same plan. Axes of tensors that the smaller model does not have under their old name are left out.
    """
    groups = []
    for group in analysis.groups:
        channels = left_over(group, drop)
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
    return Analysis(model, tuple(groups), nx.MultiGraph(), (), {})


def joined(analysis: Analysis, before: Mapping[str, Indices], later: Mapping[str, Indices]) -> dict[str, Indices]:
    """Both plans as one for the original. later: channels as `narrowed` has numbered them."""
    drop = dict(before)
    for group in analysis.groups:
        if len(later.get(group.name, ())):
            drop[group.name] = np.setdiff1d(
                np.arange(group.size), np.delete(left_over(group, before), later[group.name])
            )
    return drop


def widened(
    model: Model, values: Mapping[str, Array], removal: Removal, before: Mapping[str, Array]
) -> dict[str, Array]:
    """New values of constants as they are after `removal`, in the shapes of the original; `before` holds what had changed already.

    Constants that the original does not have under that name, or that have a name per use there, keep their old values.
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


def in_rounds(
    analysis: Analysis, settings: Settings, look: Callable[[Analysis], Calibration | None], clock: Callable[[str], None]
) -> tuple[dict[str, Indices], dict[str, Array], str]:
    """(channels that go, new values of constants, how they were found): pruned and repaired round by round.

    look: what the inputs of a model's products look like, where anybody asks. clock: called with the name of each step as it begins.
    """
    drop: dict[str, Indices] = {}
    values: dict[str, Array] = {}
    model, whole, unit, repair = analysis.model, UNITS[settings.unit()].whole, settings.unit(), ""
    for number, share in enumerate(shares(share_in_the_end(analysis, settings), settings.rounds), 1):
        removal = Removal(analysis, drop)
        here = narrowed(analysis, drop, removal, model)
        known = look(here)
        clock("score")
        left = min(share * whole(analysis.model) / whole(model), 1.0)
        goal = replace(settings, ratio=None, target=f"{unit}={left!r}") if left < 1 else None
        going = choose(here, goal, known, clock, must=number == settings.rounds and not drop) if goal else {}
        clock("rewrite")
        drop = joined(analysis, drop, going)
        if known is not None and settings.repair != "none" and going:
            clock("repair")
            repair = f"{settings.repair}: fitted on {known.describe()} in each of {settings.rounds} rounds"
            cut = Removal(here, going)
            new = refitted(known, cut, settings)
            values = widened(analysis.model, new, removal, values)
            moved = known.correction(rewrite(analysis, Plan(drop, ""), values).proto, cut)
            values = widened(analysis.model, moved, removal, values)
        model = Model.of(rewrite(analysis, Plan(drop, ""), values).proto, analysis.model.inference.dims)
    return drop, values, repair
