"""Multiply-accumulates and parameters of a plan before it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import COUNTED, Model, parameters
from spa_onnx.operators.macs import axes_of, batch_size, macs, multiplications, size_of


def _weights(model: Model) -> Iterator[list[Axis]]:
    """Weights, float and quantised, each once: those with a name per use are taken for cut alike by all users."""
    uses = {source: use for use, source in reversed(list(model.source.items()))}
    return (
        axes_of(model, uses.get(name, name)) for name, tensor in model.constants.items() if tensor.data_type in COUNTED
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """products: the sets of axes whose sizes multiply, to be added up. whole: of the original model, at batch 1. batched: per batch."""

    products: Callable[[Model], Iterator[list[Axis]]]
    whole: Callable[[Model], int]
    batched: bool


UNITS: Mapping[str, Unit] = {
    "macs": Unit(multiplications, macs, batched=True),
    "params": Unit(_weights, lambda model: parameters(model.proto), batched=False),
}
"""What a plan can save."""


def per_channel(model: Model, groups: Sequence[Group], unit: str = "macs") -> NDArray[np.float64]:
    """What is saved when a group loses its first channel, float64 (groups,)."""
    cost = PlanCost(model, groups, unit)
    whole = cost(np.zeros(len(groups), np.int64))
    return np.asarray([whole - cost(one) for one in np.eye(len(groups), dtype=np.int64)], dtype=np.float64)


class PlanCost:
    """What a model costs, in a unit, as a function of how many channels each group loses."""

    def __init__(self, model: Model, groups: Sequence[Group], unit: str = "macs") -> None:
        kind = UNITS[unit]
        self._batch = batch_size(model) if kind.batched else 1
        owned = [{axis: group.share(axis) for axis in group.owner} for group in groups]
        touched: dict[Axis, list[tuple[int, float]]] = {}
        for number, axes in enumerate(owned):
            for axis, count in axes.items():
                touched.setdefault(axis, []).append((number, count))
        self._fixed = 0.0
        self._terms: list[tuple[float, list[tuple[float, list[tuple[int, float]]]]]] = []
        for product in kind.products(model):
            constant = float(prod(size_of(model, axis) for axis in product if axis not in touched))
            moving = [(float(size_of(model, axis)), touched[axis]) for axis in product if axis in touched]
            if moving:
                self._terms.append((constant, moving))
            else:
                self._fixed += constant
        self._fixed += (
            kind.whole(model) * self._batch - self(np.zeros(len(groups), np.int64)) * self._batch
        )  # in nested graphs

    def __call__(self, removed: NDArray[np.int64]) -> float:
        """removed: channels that each group loses, int64 (groups,)."""
        total = self._fixed
        for constant, moving in self._terms:
            total += constant * prod(
                size - sum(count * removed[number] for number, count in owners) for size, owners in moving
            )
        return total / self._batch
