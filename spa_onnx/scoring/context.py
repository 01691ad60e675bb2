"""What a criterion is given, and the form of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from spa_onnx.analysis.groups import Group
from spa_onnx.layers import LayerKey, LinearLayer
from spa_onnx.linalg.obs import CALIBRATED, Regularisation
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.statistics.moments import Moments

Scores: TypeAlias = list[tuple[Axis, Array]]
"""(axis, score of each of its indices) for each axis that was scored; float64, as many as `Group.owner` has for it."""


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """The model and what has been collected from it.

    Args:
        model: The dense model.
        seed: The seed for criteria that draw random numbers.
        layers: The linear layers whose inputs were observed.
        statistics: Key of a layer -> moments of its input; None for criteria that use weights alone.
        regularisation: The regularisation for the kind of samples that the statistics come from.
        trial: (group, channels) -> relative error of the outputs when the group loses these channels and nothing is
            refitted; NaN if onnxruntime cannot run the trial. None if no criterion needs it, or onnxruntime can run
            none.
    """

    model: Model
    seed: int = 0
    layers: tuple[LinearLayer, ...] = ()
    statistics: Mapping[LayerKey, Moments] | None = None
    regularisation: Regularisation = CALIBRATED
    trial: Callable[[Group, Indices], float] | None = None
