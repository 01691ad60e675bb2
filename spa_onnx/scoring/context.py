"""What a criterion may look at, and the form of its answer."""

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
"""For each axis that was looked at, a score per index: float64 of as many as its owner has."""


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """The model, the seed for criteria that draw numbers, and what is known of the inputs of its products.

    statistics: key of a layer -> moments of its input; None for criteria that look at weights alone. regularisation: how far these
    hold for real samples. trial: the relative error of the outputs when a group loses these channels and nothing is refitted, NaN
    where onnxruntime cannot tell; None where nobody asks or it can tell for none.
    """

    model: Model
    seed: int = 0
    layers: tuple[LinearLayer, ...] = ()
    statistics: Mapping[LayerKey, Moments] | None = None
    regularisation: Regularisation = CALIBRATED
    trial: Callable[[Group, Indices], float] | None = None
