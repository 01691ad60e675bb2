"""What the layer-wise losses of a group mean for the outputs of the model: measured, on a trial cut of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.errors import RefusedError
from spa_onnx.selection.trials import Trials
from spa_onnx.statistics.calibration import Calibration

TRIAL = 0.25
"""Share of a group's channels that the trial cut takes."""

SPREAD = 30.0
"""No sensitivity is further than this factor from the middle one: a trial sees few samples."""

SMALLEST = 1e-30
"""A summed loss below this is rounding."""


def sensitivities(
    analysis: Analysis, groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], known: Calibration
) -> NDArray[np.float64]:
    """Relative error of the outputs per unit of summed loss, over the middle one; float64 (groups,).

    Ones where outputs tell nothing, or onnxruntime cannot run the model with its weights as inputs, as some kernels want constants.

    Each group by itself loses its TRIAL least important channels, its consumers are refitted, and some samples run through. On
    uncertain samples none counts as less sensitive than the middle one: outputs may only seem not to need what these do not stir.
    """
    try:
        trials = Trials(analysis, groups, known, len(groups))
    except RefusedError:  # layer-wise losses still say which channels go
        return np.ones(len(groups))
    found = np.full(len(groups), np.nan)
    for number in sorted(range(len(groups)), key=lambda number: trials.first_node(groups[number])):
        found[number] = _sensitivity(groups[number], scores[groups[number].name], trials)
    usable = np.isfinite(found) & (found > 0)
    if not usable.any():
        return np.ones(len(groups))
    middle = float(np.median(found[usable]))
    return np.clip(np.where(usable, found, middle) / middle, 1.0 if known.uncertain else 1 / SPREAD, SPREAD)


def _sensitivity(group: Group, scores: NDArray[np.float64], trials: Trials) -> float:
    """Error of the outputs over the summed loss of the trial."""
    going = group.ranked(scores)[: max(1, round(group.steps * TRIAL))].ravel()
    loss = float(scores[going].sum())
    return trials.error({group.name: np.sort(going)}) / loss if loss > SMALLEST else float("nan")
