"""What a criterion may look at, and the form of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.algebra.obs import GIVEN, Trust
from spa_onnx.calibration.moments import Moments
from spa_onnx.graph.facts import Axis, Indices
from spa_onnx.graph.fold import Array
from spa_onnx.graph.model import Model
from spa_onnx.groups import Group
from spa_onnx.products import Consumer, Key

Scores: TypeAlias = list[tuple[Axis, Array]]
"""For each axis that was looked at, a score per index: float64 of as many as its owner has."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The model, the seed for criteria that draw numbers, and what is known of the inputs of its products.

    statistics: key of a consumer -> moments of its input; None for criteria that look at weights alone. trust: how far these
    hold for real samples. trial: the relative error of the outputs when a group loses these channels and nothing is refitted, NaN
    where onnxruntime cannot tell; None where nobody asks or it can tell for none.
    """

    model: Model
    seed: int = 0
    consumers: tuple[Consumer, ...] = ()
    statistics: Mapping[Key, Moments] | None = None
    trust: Trust = GIVEN
    trial: Callable[[Group, Indices], float] | None = None


class Criterion(Protocol):
    """Scores a group; the channels with the lowest scores go first."""

    def __call__(self, group: Group, evidence: Evidence) -> Scores | NDArray[np.float64]:
        """Scores of indices, still to be aggregated over what a channel owns, or of the channels themselves, float64 (channels,).

        Empty where the criterion knows nothing about the group.
        """
