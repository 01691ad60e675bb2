"""The cost of a plan before it is carried out, and the limits that it has to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.config import Target
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import COUNTED, Model, parameters
from spa_onnx.operators.macs import axes_of, batch_size, macs, multiplications, size_of

Counts = NDArray[np.int64]
"""The number of channels that each group loses, int64 (groups,)."""

CLOSE = 0.01
"""A limit counts as used up if less than this share of it is left."""


def _weights(model: Model) -> Iterator[list[Axis]]:
    """Yield the axes of each weight once. A weight with a name per use is counted as all its uses cut it alike."""
    uses = {source: use for use, source in reversed(list(model.source.items()))}
    return (
        axes_of(model, uses.get(name, name)) for name, tensor in model.constants.items() if tensor.data_type in COUNTED
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of cost.

    Args:
        products: Returns the lists of axes whose sizes multiply; the products add up to the cost.
        whole: Returns the cost of a model at batch 1.
        batched: Whether the products count a whole batch.
    """

    products: Callable[[Model], Iterator[list[Axis]]]
    whole: Callable[[Model], int]
    batched: bool


UNITS: Mapping[str, Unit] = {
    "macs": Unit(multiplications, macs, batched=True),
    "params": Unit(_weights, lambda model: parameters(model.proto), batched=False),
}
"""The units of cost that a plan can save."""


class PlanCost:
    """The cost of a model as a function of the number of channels that each group loses."""

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
        nothing = np.zeros(len(groups), np.int64)
        self._fixed += (
            kind.whole(model) * self._batch - self(nothing) * self._batch
        )  # weights in graphs that stay closed

    def __call__(self, removed: Counts) -> float:
        """Return the cost at batch 1 when each group loses so many channels, int64 (groups,)."""
        total = self._fixed
        for constant, moving in self._terms:
            total += constant * prod(
                size - sum(count * removed[number] for number, count in owners) for size, owners in moving
            )
        return total / self._batch


def saved_per_channel(model: Model, groups: Sequence[Group], unit: str = "macs") -> NDArray[np.float64]:
    """Return what is saved when a group loses its first channel, float64 (groups,)."""
    cost = PlanCost(model, groups, unit)
    whole = cost(np.zeros(len(groups), np.int64))
    return np.asarray([whole - cost(one) for one in np.eye(len(groups), dtype=np.int64)], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum of a unit of cost that a plan may leave.

    Args:
        unit: A unit of `UNITS`.
        whole: The cost of the original, at batch 1.
        allowed: The maximum, in the same unit.
        cost: The cost of a plan.
    """

    unit: str
    whole: float
    allowed: float
    cost: Callable[[Counts], float]


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of a plan against a limit: the unit, the cost of the original, the maximum, and what the plan leaves."""

    unit: str
    whole: float
    allowed: float
    spent: float


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that must all hold."""

    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, targets: Sequence[Target], model: Model, groups: Sequence[Group]) -> Budget:
        """Return the budget for shares that are kept."""
        limits = []
        for target in targets:
            whole = UNITS[target.unit].whole(model)
            limits.append(Limit(target.unit, whole, target.share * whole, PlanCost(model, groups, target.unit)))
        return cls(tuple(limits))

    @classmethod
    def of_plan(cls, removed: Counts, model: Model, groups: Sequence[Group]) -> Budget:
        """Return the multiply-accumulates that a plan leaves as a budget for others."""
        cost = PlanCost(model, groups)
        return cls((Limit("macs", UNITS["macs"].whole(model), cost(removed), cost),))

    def is_met(self, removed: Counts) -> bool:
        """Return whether a plan keeps all limits."""
        return all(limit.cost(removed) <= limit.allowed for limit in self.limits)

    def is_used_up(self, removed: Counts) -> bool:
        """Return whether a plan comes within CLOSE of a limit, or exceeds it."""
        return any(limit.cost(removed) >= (1 - CLOSE) * limit.allowed for limit in self.limits)

    def out_of_reach(self, removed: Counts) -> Spent | None:
        """Return the first limit that a plan exceeds; None if it keeps all."""
        exceeded = (spent for spent in self.spent(removed) if spent.spent > spent.allowed)
        return next(exceeded, None)

    def spent(self, removed: Counts) -> tuple[Spent, ...]:
        """Return what a plan spends of each limit."""
        return tuple(Spent(each.unit, each.whole, each.allowed, each.cost(removed)) for each in self.limits)
