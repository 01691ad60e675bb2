"""Sensitivity: the error of the outputs per unit of layer-wise loss, measured on a trial removal in each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.errors import RefusedError
from spa_onnx.selection.trials import Trials
from spa_onnx.statistics.calibration import Calibration

TRIAL = 0.25
"""The share of a group's channels that a trial removes."""

SPREAD = 30.0
"""Sensitivities are clipped to this factor around the median: a trial runs few samples."""

SMALLEST = 1e-30
"""Summed losses below this are rounding errors."""


def sensitivities(
    analysis: Analysis, groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], calibration: Calibration
) -> NDArray[np.float64]:
    """Measure the relative error of the outputs per unit of summed loss, divided by the median.

    Each group by itself loses its TRIAL least important channels, the linear layers that read them are refitted, and
    some samples run through the model. With uncertain samples sensitivities are clipped below at the median: such
    samples hardly activate some layers, and the outputs may only seem independent of them.

    Args:
        analysis: The groups of the model.
        groups: The groups that are tried.
        scores: Group name -> loss of each channel.
        calibration: The samples and statistics.

    Returns:
        float64 (groups,); ones if no trial changes the outputs, or the executor cannot run the model with its weights
        as inputs.
    """
    try:
        trials = Trials(analysis, groups, calibration, len(groups))
    except RefusedError:  # layer-wise losses still order the channels
        return np.ones(len(groups))
    measured = np.full(len(groups), np.nan)
    for number in sorted(range(len(groups)), key=lambda number: trials.first_node(groups[number])):
        measured[number] = _sensitivity(groups[number], scores[groups[number].name], trials)
    usable = np.isfinite(measured) & (measured > 0)
    if not usable.any():
        return np.ones(len(groups))
    median = float(np.median(measured[usable]))
    lowest = 1.0 if calibration.uncertain else 1 / SPREAD
    return np.clip(np.where(usable, measured, median) / median, lowest, SPREAD)


def _sensitivity(group: Group, scores: NDArray[np.float64], trials: Trials) -> float:
    """Return the error of the outputs divided by the summed loss of a trial."""
    removed = group.ranked(scores)[: max(1, round(group.steps * TRIAL))].ravel()
    loss = float(scores[removed].sum())
    return trials.error({group.name: np.sort(removed)}) / loss if loss > SMALLEST else float("nan")
